"""Loads initial weights: from a run, a file, transformers, or torchvision; layers that do not fit stay fresh.

A tensor is loaded if name and shape are the same. So a network for other classes keeps its freshly initialised head,
and everything before it is loaded. A note lists what was not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlcli.datasets.storage.download import fetch
from dlcli.datasets.storage.roots import cache_folder, exists
from dlcli.errors import ConfigError, DataError, EnvironmentFault, printable
from dlcli.runs.checkpoint import read
from dlcli.tasks.task import Task
from dlcli.training import hugging_face

IMAGENET = "imagenet"
LARGEST_BYTES = 2**30  # of a download; a ResNet-152 has a quarter of it
DIGITS = re.compile(r"-([0-9a-f]{8,})\.\w+$")  # at the end of torchvision's names: the first of the file's sha256
FRESH_NAMED = 4  # in the note
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which other programs store the weights


def load_pretrained(task: Task, tree: Mapping[str, Any]) -> str:
    """Load weights into a freshly built task, in place, on the CPU; return a sentence about what was loaded.

    `trainer.pretrained` is a checkpoint's folder, a file (.safetensors, .pt, .pth, .bin), a folder of transformers, or
    imagenet.
    Raises ConfigError if nothing fits, DataError for a file that cannot be read, EnvironmentFault if a download fails.
    """
    source = tree["trainer"]["pretrained"]
    weights = _imagenet(tree["model"]) if source == IMAGENET else _stored(Path(source))
    is_foreign = source != IMAGENET and hugging_face.is_folder(Path(source))
    taken, fresh = 0, []
    for phase in task.phases:
        own = getattr(task, phase).state_dict()
        given = _renamed(getattr(task, phase), weights) if is_foreign else _of_phase(weights, phase)
        fitting = {name: t for name, t in given.items() if name in own and t.shape == own[name].shape}
        getattr(task, phase).load_state_dict(fitting, strict=False)
        taken += len(fitting)
        fresh += [name for name in own if name not in fitting]
    if not taken:
        first = ", ".join(list(weights)[:3])
        message = f"trainer.pretrained={printable(source)}: none of its {len(weights)} tensors fits ({first} ...)"
        raise ConfigError(message, hint="Use the same model with the same sizes; see them with: dlcli runs show RUN")
    return f"{taken} tensors taken from {printable(source)}; {_told(fresh)}"


def _told(fresh: list[str]) -> str:
    if not fresh:
        return "nothing starts fresh"
    more = f" and {len(fresh) - FRESH_NAMED} more" if len(fresh) > FRESH_NAMED else ""
    return f"{len(fresh)} start{'s' if len(fresh) == 1 else ''} fresh: {', '.join(fresh[:FRESH_NAMED])}{more}"


def _of_phase(weights: Mapping[str, Tensor], phase: str) -> dict[str, Tensor]:
    """Return the weights without the phase's name in front, if they are a task's."""
    own = {name.removeprefix(f"{phase}."): t for name, t in weights.items() if name.startswith(f"{phase}.")}
    return own or dict(weights)


def _renamed(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from transformers' names to the network's."""
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = getattr(network, "from_hugging_face", None)
    if rename is None:
        message = (
            f"trainer.pretrained is a folder of transformers; {type(network).__name__} takes no weights from there"
        )
        raise ConfigError(message, hint="model=distilbert or model=bert")
    return rename(weights)


def _imagenet(model: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read torchvision's weights from torch's cache or dlcli's; download them into dlcli's cache."""
    from torchvision.models import get_model_weights

    known: Any = get_model_weights(model["facts"][IMAGENET].replace(".", "_"))
    url = str(known.DEFAULT.url)
    own = cache_folder() / "weights" / url.rpartition("/")[2]
    torchs = Path(torch.hub.get_dir()) / "checkpoints" / own.name
    return _stored(next((path for path in (own, torchs) if exists(path)), None) or _fetch(url, own))


def _fetch(url: str, path: Path) -> Path:
    """Download the file at `url` and check the checksum in its name; EnvironmentFault if that fails."""
    named = DIGITS.search(path.name)
    try:
        return fetch(url, path, checksum=f"sha256:{named[1] if named else ''}", size_limit=LARGEST_BYTES)
    except (OSError, ValueError) as error:  # no network, no space, no permission; another checksum
        reason = getattr(error, "reason", None) or error
        reason = getattr(reason, "strerror", None) or reason
        message = f"trainer.pretrained=imagenet: the weights cannot be fetched from {url}: {printable(reason)}"
        raise EnvironmentFault(
            message, hint=f"Put that file into {path.parent}, or give its path: trainer.pretrained=FILE"
        ) from error


def _stored(path: Path) -> dict[str, Tensor]:
    """Read name -> tensor. A file runs no code: torch's own format is read with weights_only."""
    if path.is_dir():
        return hugging_face.read_weights(path) if hugging_face.is_folder(path) else read(path).weights
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a foreign file: pickle's, zip's, safetensors' and torch's own kinds
        first = (str(error) or type(error).__name__).splitlines()[0]
        message = f"trainer.pretrained={printable(path)} cannot be read: {printable(first)}"
        raise DataError(message, hint="Use a .safetensors file, or a .pt file that holds only tensors.") from error
    for name in WRAPPERS:
        found = found[name] if isinstance(found, dict) and isinstance(found.get(name), dict) else found
    tensors = {name: t for name, t in found.items() if isinstance(t, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise DataError(
            f"trainer.pretrained={printable(path)} holds no tensors by name", hint="Use a file that holds a state_dict."
        )
    return tensors
