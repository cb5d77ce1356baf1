"""Recordings with a table: exact samples and characters, every defect told or counted, and the real spoken digits."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from dlcli.datasets.batches.source import EvalSource, TrainSource
from dlcli.datasets.files.sound import decode_sound
from dlcli.datasets.files.speech_table import BLANK, UNKNOWN, locate, peek_speech, read_table
from dlcli.datasets.made_up import made_up_data
from dlcli.datasets.speech import Data, SpeechBatch, read_speech, read_spoken_digits
from dlcli.errors import DataError

RATE = 8000
ARCHIVE = "FSDD/fsdd_dev_1500.tar.gz"


def sound(samples: int = 800, *, seed: int = 0, rate: int = RATE, channels: int = 1, **how: Any) -> bytes:
    """A file of noise."""
    noise = np.random.default_rng(seed).integers(-9_000, 9_000, (samples, channels)).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, noise, rate, **({"format": "WAV", "subtype": "PCM_16"} | how))
    return file.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write({"a.wav": bytes, ...}, "file,transcript\\n...") makes a folder of them and returns it."""

    def make(files: dict[str, bytes], table: str, *, name: str = "transcripts.csv") -> Path:
        folder = tmp_path / "speech"
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        (folder / name).write_text(table, encoding="utf-8")
        return folder

    return make


def read(folder: Path, **how: Any) -> Data:
    return read_speech(str(folder), sample_rate=RATE, frame_ms=20, **how)


def texts(data: Data, split: str) -> list[str]:
    """Every transcript of a split, by way of a batch."""
    examples, alphabet = getattr(data, split), data.fitted["alphabet"]
    batch = examples.batch(torch.arange(len(examples)))
    rows = zip(batch.targets.tolist(), batch.target_lengths.tolist(), strict=True)
    return ["".join(alphabet[c] for c in row[:length]) for row, length in rows]


FOUR = {f"{name}.wav": sound(800 + 100 * i, seed=i) for i, name in enumerate("abcd")}
TABLE = "file,transcript,split\na.wav,Oh no,train\nb.wav,on,train\nc.wav,no,val\nd.wav,Hon,test\n"


# -------------------------------------------------------------------------------------------------------- what is read


def test_a_batch_holds_the_samples_and_the_characters(write: Callable[..., Path]) -> None:
    data = read(write(FOUR, TABLE))
    batch = data.train.batch(torch.tensor([1, 0]))
    assert isinstance(batch, SpeechBatch) and batch.inputs == (batch.waves, batch.lengths)
    assert batch.lengths.tolist() == [900, 800] and batch.waves.shape == (2, 900)
    samples, _ = soundfile.read(io.BytesIO(FOUR["a.wav"]), dtype="int16")
    assert torch.equal(batch.waves[1, :800], torch.from_numpy(samples).float() / 32_768)
    assert (batch.waves[1, 800:] == 0).all()
    assert data.fitted["alphabet"] == [BLANK, " ", "h", "n", "o"] and data.facts == {"num_tokens": 5}
    assert batch.targets.tolist() == [[4, 3, 0, 0, 0], [4, 2, 1, 3, 4]] and batch.target_lengths.tolist() == [2, 5]
    assert batch.index.tolist() == [1, 0] and data.notes == ()


def test_the_split_column_is_kept_and_letters_are_small_unless_wanted(write: Callable[..., Path]) -> None:
    folder = write(FOUR, TABLE)
    data = read(folder)
    assert [texts(data, split) for split in ("train", "val", "test")] == [["oh no", "on"], ["no"], ["hon"]]
    assert texts(read(folder, lowercase=False), "train") == ["Oh no", "on"]
    assert peek_speech(str(folder)) == {"num_tokens": 5}
    assert peek_speech(str(folder), lowercase=False) == {"num_tokens": 7}  # O, and H of the test split as unknown


def test_the_alphabet_is_the_training_transcripts_and_other_characters_are_errors(write: Callable[..., Path]) -> None:
    folder = write(FOUR, TABLE.replace("Hon", "honey"))
    data = read(folder)
    assert data.fitted["alphabet"] == [BLANK, " ", "h", "n", "o", UNKNOWN]
    assert texts(data, "test") == [f"hon{UNKNOWN}{UNKNOWN}"]
    assert peek_speech(str(folder)) == {"num_tokens": 6} and "no training transcript" in data.notes[0]


TABLES = {
    "tsv with Common Voice's names": ("validated.tsv", 'client_id\tpath\tsentence\nx\ta\tOh "no\nx\tb\ton, off\n'),
    "without a header": ("metadata.csv", 'a.wav,Oh "no\nb,"on, off"\n'),
    "LJSpeech's": ("metadata.csv", 'a|OH|Oh "no\nb|ON|on, off\n'),
    "a byte-order mark and Windows' lines": ("x.csv", '\ufeffaudio,text\r\na.wav,"Oh ""no"\r\nb.flac,"on,  off"\r\n'),
}


@pytest.mark.parametrize(("name", "table"), TABLES.values(), ids=TABLES.keys())
def test_the_usual_tables_are_understood(write: Callable[..., Path], name: str, table: str) -> None:
    folder = write({"clips/a.wav": sound(4_000), "wavs/b.flac": sound(4_000, format="FLAC")}, table, name=name)
    lines = read_table(locate(str(folder), None), lowercase=True)
    found = sorted((line.text, line.file.name) for lines in lines.values() for line in lines)
    assert found == [('oh "no', "a.wav"), ("on, off", "b.flac")]


def test_a_fifth_is_a_test_split_the_same_whatever_the_order_of_the_table(write: Callable[..., Path]) -> None:
    rows = [f"{i}.wav,{'ab'[i % 2]}" for i in range(20)]
    files = {f"{i}.wav": sound(400, seed=i) for i in range(20)}
    data = read(write(files, "\n".join(["file,transcript", *rows])))
    again = read_table(write({}, "\n".join(["file,transcript", *reversed(rows)])) / "transcripts.csv", lowercase=True)
    assert (len(data.train), len(data.test), data.val) == (16, 4, None)
    assert {line.name for line in again["test"]} == {
        line.name for line in read_table(locate("speech", None), lowercase=True)["test"]
    }


def test_a_folder_is_found_from_here_and_under_a_data_root(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(FOUR, TABLE)
    assert locate("speech", None) == Path("speech/transcripts.csv")
    assert locate(str(folder / "transcripts.csv"), None) == folder / "transcripts.csv"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert locate("speech", str(tmp_path)) == folder / "transcripts.csv"
    with pytest.raises(DataError, match=r"dataset\.path=speech is not in"):
        locate("speech", None)


def test_other_rates_and_channels_are_resampled_mixed_and_counted(write: Callable[..., Path]) -> None:
    files = FOUR | {"a.wav": sound(1_600, rate=16_000), "b.wav": sound(8_820, rate=44_100, channels=2)}
    data = read(write(files, TABLE))
    assert data.train.lengths is not None and data.train.lengths.tolist() == [800, 1_600]
    assert data.notes == (
        "recordings: 1 resampled from 16,000 to 8,000 Hz",
        "recordings: 1 resampled from 44,100 to 8,000 Hz",
        "recordings: 1 of several channels mixed to one",
    )


@pytest.mark.parametrize("form", ["WAV/FLOAT", "WAV/PCM_24", "FLAC/PCM_16", "OGG/VORBIS", "MP3/MPEG_LAYER_III"])
def test_a_tone_keeps_its_pitch_and_loudness(form: str) -> None:
    container, subtype = form.split("/")
    tone, file = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100), io.BytesIO()
    soundfile.write(file, np.stack([tone, tone], 1), 44_100, format=container, subtype=subtype)
    samples, rate, channels = decode_sound(file.getvalue(), RATE)
    assert (rate, channels, samples.dtype) == (44_100, 2, np.int16)
    spectrum = np.abs(np.fft.rfft(samples[1_000:5_000] / 32_768))  # bins of 2 Hz
    assert spectrum.argmax() == 220 and spectrum.max() * 2 / 4_000 == pytest.approx(0.5, rel=0.05)


def test_batches_hold_recordings_of_like_length_and_evaluation_goes_by_length(write: Callable[..., Path]) -> None:
    files = {f"{i}.wav": sound(200 + 37 * (i * 7 % 30), seed=i) for i in range(30)}
    rows = [f"{i}.wav,a,{'train' if i else 'test'}" for i in range(30)]
    records = read(write(files, "\n".join(["file,transcript,split", *rows]))).train
    spread = [
        int(batch.lengths.max() - batch.lengths.min())
        for (batch,), _ in zip(
            TrainSource(records, torch.arange(29), batch_size=5, accumulate=1, seed=0, device="cpu").from_step(0),
            range(5),
            strict=False,
        )
    ]
    assert max(spread) <= 5 * 37 < 29 * 37
    lengths = [batch.lengths for batch in EvalSource(records, torch.arange(29), batch_size=5, device="cpu")]
    assert torch.cat(lengths).diff().min() >= 0


def test_made_up_recordings_have_the_shapes_of_real_ones() -> None:
    settings = {"name": "x", "facts": {"gives": "speech"}, "sample_rate": RATE, "num_tokens": 5, "frame_ms": 20}
    batch = made_up_data(settings, 8).batch(torch.arange(8))
    assert batch.waves.dtype == torch.float32 and batch.waves.abs().max() <= 1
    assert batch.waves.shape == (8, batch.lengths.max()) and batch.targets.shape == (8, batch.target_lengths.max())
    assert batch.targets.max() < 5 and batch.lengths.min() >= RATE // 3


# ------------------------------------------------------------------------------------------------------------- defects


def test_what_cannot_be_learned_from_is_left_out_and_counted(write: Callable[..., Path]) -> None:
    files = FOUR | {"e.wav": sound(0), "f.wav": sound(800), "g.wav": sound(160 * 5), "h.wav": sound(160 * 5)}
    more = "e.wav,on,train\nf.wav,  ,train\ng.wav,nnnoo,train\nh.wav,nonono,train\n"  # twins need a blank between
    data = read(write(files, TABLE + more))
    assert texts(data, "train") == ["oh no", "on", "nonono"], "six frames hold six characters"
    assert data.notes == (
        "recordings: 1 left out: no sound (e.wav)",
        "recordings: 1 left out: no transcript (f.wav)",
        "recordings: 1 left out: transcript longer than the sound (g.wav)",
    )


BROKEN = {
    "empty": (b"", "is empty"),
    "no sound": (b"<html>not found</html>" * 9, "cannot be read: Format not recognised"),
    "cut off": (sound(800)[:900], "is cut off: 900 bytes of 1,644"),
    "not finite": (b"", "not finite"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_recording_is_told_by_name(write: Callable[..., Path], case: str) -> None:
    content, told = BROKEN[case]
    if case == "not finite":
        file = io.BytesIO()
        soundfile.write(file, np.array([0.0, np.nan]), RATE, format="WAV", subtype="FLOAT")
        content = file.getvalue()
    with pytest.raises(DataError) as caught:
        read(write(FOUR | {"b.wav": content}, TABLE))
    assert caught.value.message.startswith("b.wav ") and told in caught.value.message
    assert caught.value.hint == "Replace these files, or remove them from the table."


def test_all_damaged_and_all_missing_recordings_are_told_at_once(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"a\.wav is empty; d\.wav is empty"):
        read(write(FOUR | {"a.wav": b"", "d.wav": b""}, TABLE))
    rows = "".join(f"{i}.wav,no,train\n" for i in range(9))
    with pytest.raises(DataError, match=r"names 0\.wav, 1\.wav, 2\.wav, 3\.wav, 4\.wav and 4 more, which are not"):
        read(write({}, TABLE + rows))
    with pytest.raises(
        DataError, match=r"names x\.wav, which is not there \(in .*\); a\.wav is empty; d\.wav is empty"
    ):
        read(write({}, TABLE.replace("b.wav", "x.wav")))


MISTAKES = {
    "": "is empty",
    "file,speaker\na.wav,x\n": "the columns file, speaker, but none with the transcripts",
    "file,transcript\na.wav,oh, no\n": "line 2: 3 columns, not 2",
    'file,transcript\na.wav,"oh no\n': "cannot be read: unexpected end of data",
    "file,transcript,split\na.wav,no,later\n": "line 2: later is not a split",
    "file,transcript,split\na.wav,no,later\nb.wav,a,b,train\nc.wav,no,val\n": (
        "2 lines are wrong: line 3: 4 columns, not 3; line 2: later is not a split"
    ),
}


@pytest.mark.parametrize("table", MISTAKES)
def test_mistakes_in_the_table_are_told(write: Callable[..., Path], table: str) -> None:
    with pytest.raises(DataError) as caught:
        read(write(FOUR, table))
    assert MISTAKES[table] in caught.value.message and caught.value.hint


def test_a_folder_without_a_table_or_with_two_is_told(write: Callable[..., Path]) -> None:
    folder = write(FOUR, TABLE, name="one.csv")
    (folder / "two.tsv").write_text(TABLE)
    with pytest.raises(DataError, match=r"has 2 tables \(one\.csv, two\.tsv\)"):
        read(folder)
    for name in ("one.csv", "two.tsv"):
        (folder / name).unlink()
    with pytest.raises(DataError, match="has no table"):
        read(folder)
    with pytest.raises(DataError, match=r"dataset\.path is not given"):
        peek_speech(None)


def test_a_table_that_is_not_utf8_is_told(write: Callable[..., Path]) -> None:
    folder = write(FOUR, "")
    (folder / "transcripts.csv").write_bytes("file,transcript\na.wav,né\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text: byte 23 is 0xe9"):
        read(folder)


# ------------------------------------------------------------------------------------------------------- spoken digits


def test_the_real_spoken_digits_are_split_as_their_authors_say(real_data: Path) -> None:
    data = read_spoken_digits()
    assert (len(data.train), len(data.test), data.val) == (1_200, 300, None)
    assert data.facts == {"num_tokens": 16} and data.notes == (), "no recording is too short for its word"
    assert "".join(data.fitted["alphabet"]) == "efghinorstuvwxz"
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert sorted(texts(data, "test")) == sorted(words * 30) and sorted(set(texts(data, "train"))) == sorted(words)
    assert data.train.fingerprint != data.test.fingerprint and len(data.test.fingerprint) == 64
    lengths = data.train.lengths
    assert lengths is not None and (int(lengths.min()), int(lengths.max())) == (1_149, 18_262)


def test_the_archive_and_its_folder_are_the_same_data(real_data: Path, tmp_path: Path) -> None:
    with tarfile.open(real_data / ARCHIVE) as archive:
        archive.extractall(tmp_path / "root", filter="data")
    packed = read_spoken_digits(str(real_data / ARCHIVE))
    for root in (tmp_path / "root", tmp_path / "root" / "recordings"):
        assert read_spoken_digits(str(root)).fingerprints() == packed.fingerprints()
    damaged = tmp_path / "root" / "recordings" / "7_theo_3.wav"
    damaged.write_bytes(damaged.read_bytes()[:2_000])
    with pytest.raises(DataError, match=r"^7_theo_3\.wav is cut off: 2,000 bytes of"):
        read_spoken_digits(str(tmp_path / "root"))


def test_a_damaged_or_missing_archive_is_told(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLCLI_DATA")
    with pytest.raises(DataError, match="Free Spoken Digits was not found"):
        read_spoken_digits()
    cut = tmp_path / "fsdd_dev_1500.tar.gz"
    cut.write_bytes((real_data / ARCHIVE).read_bytes()[:500_000])
    with pytest.raises(DataError, match=r"fsdd_dev_1500\.tar\.gz cannot be read"):
        read_spoken_digits(str(tmp_path))
