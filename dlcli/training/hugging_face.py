"""Reads a folder written by transformers' save_pretrained: config.json, model.safetensors, tokenizer.json.

No torch at the top, and no pickle anywhere: a pytorch_model.bin is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.errors import ConfigError, DataError, EnvironmentFault, printable

if TYPE_CHECKING:
    from torch import Tensor

ADDRESS = "hf://"  # in front of a name on huggingface.co
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = (CONFIG, WEIGHTS, "tokenizer.json")
SHARED = {"max_position_embeddings": "max_positions", "vocab_size": "num_tokens"}
SIZES = {  # model_type -> their name of a size -> ours
    "bert": SHARED
    | {
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "ffn_size",
    },
    "distilbert": SHARED
    | {"dim": "hidden_size", "n_layers": "num_layers", "n_heads": "num_heads", "hidden_dim": "ffn_size"},
}
ACTIVATIONS = {"bert": "hidden_act", "distilbert": "activation"}


def is_folder(path: Path) -> bool:
    return (path / CONFIG).is_file() and not (path / "checkpoint.json").exists()


def found(named: str) -> Path:
    """Return the folder or file of a path or of hf://NAME, which is downloaded if it is not in the cache."""
    return fetch(named.removeprefix(ADDRESS)) if named.startswith(ADDRESS) else Path(named).expanduser().absolute()


def fetch(name: str) -> Path:
    """Download the three files of a network on huggingface.co. Raises EnvironmentFault if that fails."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # of the library, its transport, the disk; or it is not installed
        message = (
            f"{ADDRESS}{printable(name)} cannot be fetched: {printable((str(error) or repr(error)).splitlines()[0])}"
        )
        hint = "On a machine with network:  pip install 'dlcli[text]'; hf download NAME --local-dir FOLDER   "
        raise EnvironmentFault(message, hint=f"{hint}Then, with the folder here:  trainer.pretrained=FOLDER") from error


def check_fit(folder: Path, tree: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the right settings, if the model or its tokens do not match the folder's."""
    config, model = read_config(folder), tree["model"]
    kind, what = config.get("model_type"), f"trainer.pretrained={printable(folder)}"
    if kind not in SIZES:
        raise ConfigError(f"{what} is a {printable(kind)}", hint=f"dlcli has {', '.join(SIZES)}.")
    if model.get("variant") != kind:
        raise ConfigError(f"{what} is a {kind}; the model is another", hint=f"model={kind}")
    if (activation := config.get(ACTIVATIONS[kind], "gelu")) != "gelu":
        raise ConfigError(f"{what} has the activation {printable(activation)}; dlcli's {kind} has gelu")
    if tree["dataset"].get("tokenizer_file") is None:
        message = f"{what} knows the tokens of its own tokenizer; dataset.tokenizer_file names none"
        raise ConfigError(message, hint=f"dataset.tokenizer_file={printable(folder)} dataset.num_tokens=null")
    sizes = {ours: config.get(theirs) for theirs, ours in SIZES[kind].items()}
    wrong = {ours: size for ours, size in sizes.items() if size != model.get(ours)}
    if wrong:
        message = ", ".join(f"{name} {printable(size)} (not {model.get(name)})" for name, size in wrong.items())
        right = " ".join(f"{_setting(name)}={printable(size)}" for name, size in wrong.items())
        raise ConfigError(f"{what} has {message.replace('_', ' ')}", hint=right)


def _setting(name: str) -> str:
    return f"dataset.{name}" if name == "num_tokens" else f"model.{name}"


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{printable(folder / CONFIG)} cannot be read: {printable(error)}") from error
    if not isinstance(config, dict):
        raise DataError(f"{printable(folder / CONFIG)} should be a JSON object")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights: name in transformers -> tensor."""
    from safetensors.torch import load_file

    convert = "With transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one."
    file = folder / WEIGHTS
    if not file.is_file():
        raise DataError(f"{printable(folder)} holds no {WEIGHTS}; other formats are not read", hint=convert)
    try:
        return load_file(file)
    except Exception as error:  # safetensors' own kinds, and the disk's
        raise DataError(f"{printable(file)} cannot be read: {printable(error)}", hint=convert) from error
