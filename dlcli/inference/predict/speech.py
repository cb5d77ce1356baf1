"""Recordings a user names: found, decoded as in training, transcribed; one bad file spoils no other."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.errors import CheckpointError, ConfigError, DataError, printable

if TYPE_CHECKING:
    import numpy as np

    from dlcli.inference.trained import Trained

COLUMNS = ("recording", "transcript", "probability", "others")
AT_ONCE = 16


def answers(
    trained: Trained,
    names: Sequence[str],
    *,
    top: int,
    save: str | None = None,
    attention: bool = False,
    whole: bool = False,
) -> list[dict[str, Any]]:
    """{input, transcript, probability, readings: [{text, probability}]} of each recording, or {input, error}.

    names: sound files, folders of them, - for one on stdin. The readings are the best that a beam search finds; a
    probability is the network's, of exactly this text. A recording of another rate or of several channels is resampled
    and mixed as in training.
    """
    alphabet = stored_alphabet(trained)
    names = find_recordings(names)
    found: list[dict[str, Any]] = [{"input": "stdin" if name == "-" else name} for name in names]
    waves = {}
    for i, name in enumerate(names):
        try:
            waves[i] = decoded(name, trained.tree["dataset"]["sample_rate"])
        except DataError as error:
            found[i]["error"] = error.message
    order = sorted(waves, key=lambda i: len(waves[i]))  # so that little is padded
    for start in range(0, len(order), AT_ONCE):
        part = order[start : start + AT_ONCE]
        for i, readings in zip(part, transcribed(trained, [waves[i] for i in part], top), strict=True):
            message = [{"text": "".join(alphabet[c] for c in ids), "probability": math.exp(p)} for ids, p in readings]
            found[i] |= {
                "transcript": message[0]["text"],
                "probability": message[0]["probability"],
                "readings": message,
            }
    if attention:
        for i, wave in waves.items():
            found[i]["attention"] = looked_at(trained, wave, found[i]["input"], save, whole)
    return found


def looked_at(trained: Trained, wave: np.ndarray, name: str, save: str | None, whole: bool) -> dict[str, Any]:
    """See attention.look: from frames to frames; what is shown of these many is what all of them together take."""
    import torch

    from dlcli.datasets.files.sound import SCALE
    from dlcli.inference.explain.attention import look

    inputs = torch.from_numpy(wave.copy())[None].float() / SCALE, torch.tensor([len(wave)])
    network: Any = trained.task.get_submodule("model")
    with torch.no_grad():
        frames = int(network(*(tensor.to(trained.runtime.device) for tensor in inputs))[1][0])
    seconds = trained.tree["dataset"]["frame_ms"] / 1000
    keys = [f"{seconds * frame:.2f} s" for frame in range(frames)]
    found = look(trained, inputs, name=name, keys=keys, reads_from="all", save=save, whole=whole)
    return found | {"places": "moment"}


def row(answer: dict[str, Any]) -> list[str | None]:
    """A line of the table."""
    name = printable(answer["input"])
    others = ", ".join(f"{printable(r['text'])} {100 * r['probability']:.1f} %" for r in answer["readings"][1:])
    return [name, printable(answer["transcript"], limit=2_000), f"{100 * answer['probability']:.1f} %", others]


def find_recordings(names: Sequence[str]) -> list[str]:
    """Files in the order given, a folder's by their names. Raises DataError for a folder without recordings."""
    from dlcli.datasets.files.sound import ENDINGS

    if names.count("-") > 1:
        raise ConfigError("- is given twice; stdin holds one recording", hint="Name files: dlcli predict a.wav b.wav")
    found: list[str] = []
    for name in names:
        path = Path(name).expanduser()
        if name == "-" or not path.is_dir():
            found.append(name)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        if not inside:
            message = f"there is no recording in {printable(name)}"
            raise DataError(message, hint=f"Its files should end in one of {', '.join(ENDINGS)}.")
        found += map(str, inside)
    return found


def decoded(name: str, sample_rate: int) -> np.ndarray:
    """(n,) int16. Raises DataError, a clause, for a file that is not a recording."""
    from dlcli.datasets.files.sound import decode_sound, read_bytes

    data = sys.stdin.buffer.read() if name == "-" else read_bytes(Path(name).expanduser())
    samples = decode_sound(data, sample_rate).samples
    if not len(samples):
        raise DataError("holds no sound")
    return samples


def stored_alphabet(trained: Trained) -> list[str]:
    """The characters by their ids. Raises CheckpointError where they do not fit the network."""
    from dlcli.tasks.ctc import CTC

    alphabet, num_tokens = trained.manifest.fitted.get("alphabet"), trained.tree["dataset"]["num_tokens"]
    if (
        not isinstance(trained.task, CTC)
        or not isinstance(alphabet, list)
        or len(alphabet) != num_tokens
        or not all(isinstance(c, str) and len(c) <= 1 for c in alphabet)
    ):
        message = f"{trained.manifest.run} holds no alphabet of its {num_tokens} characters"
        raise CheckpointError(message, hint="Name a run that was trained on speech: dlcli runs ls")
    return alphabet


def transcribed(trained: Trained, waves: Sequence[np.ndarray], top: int) -> list[list[tuple[tuple[int, ...], float]]]:
    """Return up to `top` readings of each recording and the logarithms of their probabilities.

    By beam search, unless the command itself says task.decoding=greedy, which is the default of the scores alone.
    """
    import numpy as np
    import torch

    from dlcli.datasets.batches.records import ragged
    from dlcli.datasets.files.sound import SCALE
    from dlcli.tasks.ctc import CTC

    task = trained.task
    assert isinstance(task, CTC), type(task)
    padded = ragged(waves, np.int16).to(trained.runtime.device).take(torch.arange(len(waves)))
    inputs = padded.values.float() / SCALE, padded.lengths
    with trained.runtime.autocast()():
        if task.decoding == "greedy" and "task.decoding" in trained.asked:
            return task.transcribe_greedily(*inputs)
        return task.transcribe(*inputs, top=top, width=task.beam_size if "task.beam_size" in trained.asked else None)
