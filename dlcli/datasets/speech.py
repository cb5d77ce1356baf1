"""Recordings with transcripts: the user's own folder with a table (speech_table.py), and the Free Spoken Digits.

Letters: N recordings, B of them in a batch, T samples of the longest, U characters of the longest transcript. A
transcript is a sequence of ids of characters; 0 is the blank of CTC, which never occurs in one.
"""

from __future__ import annotations

import itertools
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.records import Padded, Ragged, Records, fingerprint_of, ragged
from dlcli.datasets.files.image_tree import archive_key
from dlcli.datasets.files.sound import SCALE, Sound, decode_sound, read_bytes
from dlcli.datasets.files.speech_table import NAMED, UNKNOWN, alphabet_of, locate, read_table, say_some, told_of_absent
from dlcli.datasets.storage.cache import Decoded, cached, content_key, times_key
from dlcli.datasets.storage.roots import data_roots, find_under, missing
from dlcli.errors import DataError, first_of, printable

VERSION = 1  # of these readers: raise it when their output changes, and the cache is written again
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPOKEN_DIGITS = (  # under a data root, or the root itself
    "FSDD/fsdd_dev_1500.tar.gz",
    "fsdd_dev_1500.tar.gz",
    "FSDD/recordings",
    "free-spoken-digit-dataset/recordings",
    "free-spoken-digit-dataset-master/recordings",
    "recordings",
)
DIGIT_NAME = re.compile(r"([0-9])_(\w+)_(\d+)\.wav")
TEST_INDICES = 5  # the official test split: indices 0 to 4 of every digit and speaker


class SpeechBatch(NamedTuple):
    waves: Tensor  # (B, T) float32 in [-1, 1], zero after each end
    lengths: Tensor  # (B,) int64, samples
    targets: Tensor  # (B, U) int64, zero after each end
    target_lengths: Tensor  # (B,) int64, characters
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; (B,) int64, the recording's row

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments that a model is called with."""
        return (self.waves, self.lengths)


def as_batch(taken: Mapping[str, Padded], index_B: Tensor, augment: object, keys_B: object) -> SpeechBatch:
    waves, targets = taken["waves"], taken["targets"]
    return SpeechBatch(waves.values.float() / SCALE, waves.lengths, targets.values.long(), targets.lengths, index_B)


def records(waves: Ragged, targets: Ragged, fingerprint: str) -> Records:
    return Records({"waves": waves, "targets": targets}, as_batch, fingerprint, lengths=waves.lengths)


def made_up(settings: Mapping[str, Any], num_examples: int) -> Records:
    """Noise of a third of a second to one second, with up to six characters each."""
    rate, num_tokens = settings["sample_rate"], settings.get("num_tokens") or 30

    def column(lengths_N: Tensor, values: Callable[[int], Tensor]) -> Ragged:
        starts = torch.cat([lengths_N.new_zeros(1), lengths_N.cumsum(0)])
        return Ragged(values(int(starts[-1])), starts)

    waves = column(
        torch.randint(rate // 3, rate, (num_examples,), device="cpu"),
        lambda size: torch.randint(-SCALE, SCALE, (size,), dtype=torch.int16),
    )
    targets = column(
        torch.randint(1, 7, (num_examples,), device="cpu"),
        lambda size: torch.randint(1, num_tokens, (size,), dtype=torch.int32),
    )
    return records(waves, targets, "made up")


# ------------------------------------------------------------------------------------------------------------- readers


def read_speech(
    path: str | None, root: str | None = None, *, sample_rate: int, frame_ms: int, lowercase: bool = True
) -> Data:
    """The user's own recordings, with the table at or in `path`. See speech_table.py.

    sample_rate: Hz; all recordings are resampled to it. frame_ms: of a recogniser's output; a recording is left out if
    its transcript has more characters than it has frames.
    """
    place = locate(path, root)
    table = read_table(place, lowercase=lowercase)
    said = {split: [(line.name, line.text) for line in lines] for split, lines in table.items()}
    files = times_key(line.file for lines in table.values() for line in lines)
    key = content_key((), "speech", VERSION, sample_rate, frame_ms, said, files)

    def decode() -> Decoded:
        splits = {
            split: [Utterance(line.name, line.text, partial(read_bytes, line.file)) for line in lines if line.is_there]
            for split, lines in table.items()
        }
        absent = told_of_absent(place, table)
        return decoded(splits, alphabet_of(table), sample_rate=sample_rate, frame_ms=frame_ms, absent=absent)

    return to_data(cached("speech", key, decode))


def read_spoken_digits(root: str | None = None, *, sample_rate: int = 8000, frame_ms: int = 20) -> Data:
    """Free Spoken Digits (Jackson et al. 2018): six speakers say zero to nine at 8 kHz; its archive or folder.

    Tests on the official test split, indices 0 to 4 of every digit and speaker; trains on all others.
    """
    roots = data_roots(root)
    is_root = root is not None and (roots[0].is_file() or roots[0].name == "recordings")
    place = roots[0] if is_root else find_under(roots, SPOKEN_DIGITS)
    if place is None:
        raise missing(
            "Free Spoken Digits",
            f"{SPOKEN_DIGITS[0]} or {SPOKEN_DIGITS[3]}/*.wav",
            roots,
            name="spoken_digits",
            reason="dlcli has no address to fetch it from",
        )
    content = archive_key(place) if place.is_file() else times_key(sorted(place.glob("*.wav")))
    key = content_key((), "spoken_digits", VERSION, sample_rate, frame_ms, content)
    return to_data(cached("spoken_digits", key, lambda: decode_digits(place, sample_rate, frame_ms)))


def decode_digits(place: Path, sample_rate: int, frame_ms: int) -> Decoded:
    splits: dict[str, list[Utterance]] = {"train": [], "test": []}
    for name, read in list_recordings(place):
        if match := DIGIT_NAME.fullmatch(name):
            split = "test" if int(match[3]) < TEST_INDICES else "train"
            splits[split].append(Utterance(name, WORDS[int(match[1])], read))
    if not all(splits.values()):
        message = f"{place} holds {len(splits['train'])} training and {len(splits['test'])} test recordings"
        raise DataError(message, hint="Give recordings/{digit}_{speaker}_{index}.wav with indices 0 to 49.")
    alphabet = ["", *sorted(set("".join(WORDS)))]
    return decoded(splits, alphabet, sample_rate=sample_rate, frame_ms=frame_ms)


def list_recordings(place: Path) -> list[tuple[str, Callable[[], bytes]]]:
    """(name, a function that reads it) of every .wav in a folder or archive, by name. The archive of 10 MB is held."""
    if place.is_dir():
        return [(path.name, partial(read_bytes, path)) for path in sorted(place.glob("*.wav"))]
    found: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(place) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isfile() and name.endswith(".wav") and not name.startswith("."):
                    content = archive.extractfile(member)
                    assert content is not None, name
                    found[name] = partial(bytes, content.read())
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        message = f"{place} cannot be read: {printable(error)}."
        raise DataError(message, hint="Replace it with an intact copy of the archive.") from error
    return sorted(found.items())


# ------------------------------------------------------------------------------------------------------------ assembly


@dataclass(frozen=True)
class Utterance:
    """A recording that has not been read yet: its name, its transcript, and a function that gives its file's bytes."""

    name: str
    text: str
    read: Callable[[], bytes]


@dataclass
class Findings:
    """Findings while reading: reason -> names of the recordings."""

    damaged: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    resampled: dict[int, int] = field(default_factory=dict)  # Hz -> recordings
    mixed: int = 0

    def note(self, sound: Sound, sample_rate: int) -> None:
        if sound.sample_rate != sample_rate:
            self.resampled[sound.sample_rate] = self.resampled.get(sound.sample_rate, 0) + 1
        self.mixed += sound.channels > 1

    def notes(self, sample_rate: int) -> Iterable[str]:
        for reason, names in self.left_out.items():
            yield f"{len(names)} left out: {reason} ({say_some(names)})"
        for rate, count in sorted(self.resampled.items()):
            yield f"{count} resampled from {rate:,} to {sample_rate:,} Hz"
        if self.mixed:
            yield f"{self.mixed} of several channels mixed to one"


def decoded(
    splits: Mapping[str, Sequence[Utterance]],
    alphabet: Sequence[str],
    *,
    sample_rate: int,
    frame_ms: int,
    absent: str = "",
) -> Decoded:
    """Reads every recording. Raises one DataError for all that cannot be read or are absent."""
    found = Findings()
    arrays = {
        split: decode_split(utterances, alphabet, found, sample_rate=sample_rate, frame_ms=frame_ms)
        for split, utterances in splits.items()
    }
    if found.damaged or absent:
        damaged = first_of(found.damaged, most=NAMED)
        message = "; ".join(filter(None, (absent, damaged)))
        raise DataError(f"{message}.", hint="Replace these files, or remove them from the table.")
    notes = [f"recordings: {note}" for note in found.notes(sample_rate)]
    if UNKNOWN in alphabet:
        notes.append("some characters are in no training transcript: each of them counts as an error")
    return Decoded(
        splits=arrays,
        fingerprints={split: fingerprint_of(*parts.values(), "".join(alphabet)) for split, parts in arrays.items()},
        facts={"alphabet": list(alphabet), "sample_rate": sample_rate, "notes": notes},
    )


def decode_split(
    utterances: Sequence[Utterance], alphabet: Sequence[str], found: Findings, *, sample_rate: int, frame_ms: int
) -> dict[str, np.ndarray]:
    """The four arrays that `to_data` takes, in the order of a split's fingerprint."""
    ids = {character: i for i, character in enumerate(alphabet)}
    waves, targets = [], []
    for utterance in utterances:
        try:
            sound = decode_sound(utterance.read(), sample_rate)
        except DataError as error:  # the others are read too, so that one error reports all of them
            found.damaged.append(f"{printable(utterance.name)} {error.message}")
            continue
        reason = unusable(utterance.text, len(sound.samples), frame_samples=sample_rate * frame_ms // 1000)
        if reason:
            found.left_out.setdefault(reason, []).append(utterance.name)
            continue
        found.note(sound, sample_rate)
        waves.append(sound.samples)
        targets.append([ids[c] if c in ids else ids[UNKNOWN] for c in utterance.text])
    waves_N, targets_N = ragged(waves, np.int16), ragged(targets, np.int32)
    return {
        "waves": waves_N.values.numpy(),
        "wave-starts": waves_N.starts.numpy(),
        "targets": targets_N.values.numpy(),
        "target-starts": targets_N.starts.numpy(),
    }


def unusable(text: str, num_samples: int, *, frame_samples: int) -> str | None:
    """Why a recording cannot be learned, or None. CTC needs a frame per character, and one between two equal ones."""
    if not num_samples:
        return "no sound"
    if not text:
        return "no transcript"
    needed = len(text) + sum(a == b for a, b in itertools.pairwise(text))
    return "transcript longer than the sound" if needed > num_samples // frame_samples + 1 else None


def to_data(found: Decoded) -> Data:
    splits = {}
    for split, arrays in found.splits.items():
        waves, wave_starts, targets, target_starts = map(torch.from_numpy, arrays.values())
        columns = Ragged(waves, wave_starts), Ragged(targets, target_starts)
        splits[split] = records(*columns, found.fingerprints[split])
    return Data(
        classes=(),
        train=splits["train"],
        test=splits["test"],
        val=splits.get("val"),
        facts={"num_tokens": len(found.facts["alphabet"])},
        fitted={name: found.facts[name] for name in ("alphabet", "sample_rate")},
        notes=tuple(found.facts["notes"]),
    )
