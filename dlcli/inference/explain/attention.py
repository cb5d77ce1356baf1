"""Attention that a user asks for: what a network's answer looks at, as numbers, as a table, as a picture.

    look(trained, (tokens_1L, lengths_1), keys=["a", "film"], name="a film", save=None)

Networks are asked one example at a time, so that no padding is among the keys; see
dlcli.models.layers.attention.Attentive.
Shapes: H heads, Q queries, K keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlcli.datasets.kinds import KINDS, Kind
from dlcli.errors import ConfigError, any_of, printable

if TYPE_CHECKING:
    from torch import Tensor

    from dlcli.inference.trained import Trained

READ = {  # Attentive.reads_from -> which row is shown
    "pool": "the attention pooling",
    "first": "last block, mean over its heads, the row of the class token, which is read out",
    "mean": "last block, mean over its heads and over all rows, whose mean is read out",
    "last": "last block, mean over its heads, the row of the last token, which predicts the next",
    "all": "last block, mean over its heads and over all rows, each of which is read out",
    "each": "last block, mean over its heads, a row for each",
}
STRONGEST, BAR = 10, 24  # lines of places that are not tokens; characters of the longest bar
Answer = dict[str, Any]


def check_attentive(trained: Trained, kind: Kind) -> None:
    """Raise ConfigError, with the models that have it, for a network without attention."""
    network: Any = getattr(trained.task, "model", None)
    names = kind.attending_models
    if not names:
        message = f"--attention: {trained.manifest.run} was trained on {kind.name}, for which no model has attention"
        attended = [other.name for other in KINDS.values() if other.attending_models]
        raise ConfigError(message, hint=f"Models with attention exist for {any_of(attended)}.")
    if getattr(network, "reads_from", None) is None:
        message = f"--attention: the network of {trained.manifest.run}, {type(network).__name__}, has none"
        raise ConfigError(message, hint=f"Of the models for {kind.name} these have: {', '.join(names)}")


def look(
    trained: Trained,
    inputs: tuple[Tensor, ...],
    *,
    name: str,
    keys: Sequence[str],
    queries: Sequence[str] | None = None,
    reads_from: str | None = None,
    image: tuple[Tensor, tuple[int, int]] | None = None,
    save: str | None = None,
    whole: bool = False,
) -> Answer:
    """{of, queries, keys, shown: rows of K weights}, and picture under `save`.

    whole: weights besides, (H, Q, K) float32 of each layer. These are many, of every input: so they are made only where
    they are asked for, and stay tensors until they are printed, which take an eighth of the space of Python's numbers.

    inputs: one example. queries: where they are not the keys. reads_from: where the network's own is too much to show.
    image: (C, H, W) uint8, and the rows and columns of its last keys.
    """
    import torch

    network: Any = trained.task.get_submodule("model")
    device = trained.runtime.device
    with torch.no_grad(), trained.runtime.autocast()():
        layers = [weights_1HQK[0].double().cpu() for weights_1HQK in network.attention(*(t.to(device) for t in inputs))]
    reads_from = reads_from or network.reads_from
    shown = read_rows(layers[-1].mean(0), reads_from)
    names = list(keys if queries is None else queries)
    found: Answer = {
        "of": READ[reads_from],
        "queries": [f"all {len(keys)} together"] if reads_from == "pool" else names,
        "keys": list(keys),
        "shown": rounded(shown),
    }
    if whole:
        found["weights"] = [layer.float() for layer in layers]
    if save is not None:
        found["picture"] = draw(
            layers[-1], shown, names, keys, name=name, reads_from=reads_from, image=image, save=save
        )
    return found


def read_rows(weights_QK: Tensor, reads_from: str) -> Tensor:
    """The rows that the answer is made of: (1, K), or all of them."""
    if reads_from in ("mean", "all"):
        return weights_QK.mean(0, keepdim=True)
    return {"first": weights_QK[:1], "last": weights_QK[-1:]}.get(reads_from, weights_QK)


def rounded(weights: Tensor) -> Any:
    return weights.double().round(decimals=4).tolist()


def as_lines(answer: Answer) -> tuple[str, list[str], list[list[str | None]]]:
    """Lay out an answer's attention: two lines, the names of the columns, and the rows."""
    looked = answer["attention"]
    title = f"attention of {printable(answer.get('image', answer.get('input')), limit=60)}\n{looked['of']}"
    keys, shown = [plain(key) for key in looked["keys"]], looked["shown"]
    if len(shown) > 1:
        rows = [[plain(query), strongest(keys, row)] for query, row in zip(looked["queries"], shown, strict=True)]
        return title, ["written", "looks at"], [list(row) for row in rows]
    order = list(range(len(keys)))
    if looked.get("places"):  # of many places the strongest, in words the order of the sentence
        order = sorted(order, key=lambda k: -shown[0][k])[:STRONGEST]
    longest = max(shown[0]) or 1.0
    bars = ["■" * round(BAR * shown[0][k] / longest) for k in order]
    cells: list[list[str | None]] = [
        [keys[k], f"{100 * shown[0][k]:.1f} %", bar] for k, bar in zip(order, bars, strict=True)
    ]
    return title, [looked.get("places", "token"), "weight", ""], cells


def plain(token: str) -> str:
    """Without the blank that byte pairs begin a word with; a blank alone is shown as one."""
    return printable(token.strip(" ") or repr(token))


def strongest(keys: Sequence[str], weights: Sequence[float]) -> str:
    order = sorted(range(len(keys)), key=lambda k: -weights[k])[:3]
    return ", ".join(f"{keys[k]} {100 * weights[k]:.0f} %" for k in order)


def draw(
    weights_HQK: Tensor,
    shown: Tensor,
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    name: str,
    reads_from: str,
    image: tuple[Tensor, tuple[int, int]] | None,
    save: str,
) -> str:
    """On the image; else each head's row over the tokens, or where all rows count, queries by keys. The path."""
    import torch

    from dlcli.inference.image_files import free_path, make_folder
    from dlcli.reporting import pictures

    stem = re.sub(r"\W+", "-", re.sub(r"\.\w{2,5}$", "", name.rpartition("/")[2]))[:40].strip("-") or "input"
    path = str(free_path(make_folder(save), f"{stem}-attention"))
    if image is not None:
        pixels_CHW, (rows, columns) = image
        pictures.draw_attended_image(pixels_CHW, shown[0][-rows * columns :].reshape(rows, columns).numpy(), path)
    elif len(shown) > 1 or reads_from in ("last", "all"):
        pictures.draw_attention(weights_HQK.mean(0).numpy(), [*map(plain, queries)], [*map(plain, keys)], path)
    else:
        of_heads = torch.cat([read_rows(head_QK, reads_from) for head_QK in weights_HQK])
        names = [f"head {h + 1}" for h in range(len(of_heads))]
        rows_RK, names = (shown, [""]) if len(names) == 1 else (torch.cat([shown, of_heads]), ["mean", *names])
        pictures.draw_attention(rows_RK.numpy(), names, [*map(plain, keys)], path)
    return path
