"""Weights to begin with: of a run, a file, transformers, or torchvision's of ImageNet; what does not fit stays fresh.

A tensor is taken where name and shape are the same. So a network for other classes keeps its freshly initialised head,
and everything before it is taken over. What was not taken is told.
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
LARGEST_BYTES = 2**30  # of what is fetched; a ResNet-152 has a quarter of it
DIGITS = re.compile(r"-([0-9a-f]{8,})\.\w+$")  # at the end of torchvision's names: the first of the file's sha256
FRESH_NAMED = 4  # in the note
WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which files of other programs keep the weights


def load_pretrained(task: Task, tree: Mapping[str, Any]) -> str:
    """Put weights into a freshly built task, in place; a sentence about what was taken. On the CPU.

    `trainer.pretrained` is a checkpoint's folder, a file (.safetensors, .pt, .pth, .bin), a folder of transformers, or
    imagenet.
    Raises ConfigError where nothing fits, DataError for a file that cannot be read, EnvironmentFault where there is no
    network to fetch from.
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
        told = f"trainer.pretrained={printable(source)}: none of its {len(weights)} tensors fits ({first} ...)"
        raise ConfigError(told, hint="The same model with the same sizes is needed: dlcli runs show RUN")
    return f"{taken} tensors taken from {printable(source)}; {_told(fresh)}"


def _told(fresh: list[str]) -> str:
    if not fresh:
        return "nothing begins anew"
    more = f" and {len(fresh) - FRESH_NAMED} more" if len(fresh) > FRESH_NAMED else ""
    return f"{len(fresh)} begin{'s' if len(fresh) == 1 else ''} anew: {', '.join(fresh[:FRESH_NAMED])}{more}"


def _of_phase(weights: Mapping[str, Tensor], phase: str) -> dict[str, Tensor]:
    """Without the phase's name in front, where the weights are a task's."""
    own = {name.removeprefix(f"{phase}."): t for name, t in weights.items() if name.startswith(f"{phase}.")}
    return own or dict(weights)


def _renamed(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the network's names, where transformers named them."""
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = getattr(network, "from_hugging_face", None)
    if rename is None:
        told = f"trainer.pretrained is a folder of transformers; {type(network).__name__} takes no weights from there"
        raise ConfigError(told, hint="model=distilbert or model=bert")
    return rename(weights)


def _imagenet(model: Mapping[str, Any]) -> dict[str, Tensor]:
    """torchvision's, read where torch keeps such files or where dlcli has them; fetched into dlcli's cache."""
    from torchvision.models import get_model_weights

    known: Any = get_model_weights(model["facts"][IMAGENET].replace(".", "_"))
    url = str(known.DEFAULT.url)
    own = cache_folder() / "weights" / url.rpartition("/")[2]
    torchs = Path(torch.hub.get_dir()) / "checkpoints" / own.name
    return _stored(next((path for path in (own, torchs) if exists(path)), None) or _fetch(url, own))


def _fetch(url: str, path: Path) -> Path:
    """The file at `url`, whole and of the checksum in its name, or EnvironmentFault."""
    named = DIGITS.search(path.name)
    try:
        return fetch(url, path, checksum=f"sha256:{named[1] if named else ''}", size_limit=LARGEST_BYTES)
    except (OSError, ValueError) as error:  # no network, no space, no permission; another checksum
        reason = getattr(error, "reason", None) or error
        reason = getattr(reason, "strerror", None) or reason
        told = f"trainer.pretrained=imagenet: the weights cannot be fetched from {url}: {printable(reason)}"
        raise EnvironmentFault(
            told, hint=f"Put that file into {path.parent}, or name it where it lies: trainer.pretrained=FILE"
        ) from error


def _stored(path: Path) -> dict[str, Tensor]:
    """name -> tensor. A file runs nothing: torch's own format is read with weights_only."""
    if path.is_dir():
        return hugging_face.read_weights(path) if hugging_face.is_folder(path) else read(path).weights
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a foreign file: pickle's, zip's, safetensors' and torch's own kinds
        first = (str(error) or type(error).__name__).splitlines()[0]
        told = f"trainer.pretrained={printable(path)} cannot be read: {printable(first)}"
        raise DataError(told, hint="A .safetensors file, or a .pt with nothing but tensors in it.") from error
    for name in WRAPPERS:
        found = found[name] if isinstance(found, dict) and isinstance(found.get(name), dict) else found
    tensors = {name: t for name, t in found.items() if isinstance(t, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise DataError(
            f"trainer.pretrained={printable(path)} holds no tensors by name", hint="A file of a state_dict."
        )
    return tensors
