"""Images a user names: found, decoded as in training, classified; one bad file spoils no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlcli.errors import printable
from dlcli.inference.image_files import decoded, find_images

if TYPE_CHECKING:
    from torch import Tensor

    from dlcli.inference.trained import Trained

AT_ONCE = 256


COLUMNS = ("image", "class", "probability", "others")


def answers(
    trained: Trained,
    names: Sequence[str],
    *,
    top: int,
    save: str | None = None,
    attention: bool = False,
    whole: bool = False,
) -> list[dict[str, Any]]:
    """One answer per image: {image, classes: [{class, probability}]}, most probable first, or {image, error}."""
    import torch

    from dlcli.inference.trained import predict

    names = find_images(names)
    found: list[dict[str, Any]] = [{"image": "stdin" if name == "-" else name} for name in names]
    shape = tuple(trained.tree["dataset"]["image_shape"])
    for start in range(0, len(names), AT_ONCE):
        part = list(decoded(names, range(start, min(start + AT_ONCE, len(names))), shape, found))
        if not part:
            continue
        probabilities_BK = predict(trained, torch.stack([image for _, image in part]))
        for (i, _), row_K in zip(part, probabilities_BK, strict=True):
            found[i]["classes"] = most_probable(row_K, trained.manifest.classes, top)
        if attention:
            for i, image in part:
                found[i]["attention"] = looked_at(trained, image, found[i]["image"], save, whole)
    return found


def looked_at(trained: Trained, image_CHW: Tensor, name: str, save: str | None, whole: bool) -> dict[str, Any]:
    """See attention.look. The keys are the class token and patches, or the rows of the image."""
    from dlcli.inference.explain.attention import look
    from dlcli.inference.trained import pixels_of

    network: Any = trained.task.get_submodule("model")
    height, width = image_CHW.shape[1:]
    if network.reads_from == "first":
        side = network.patch
        rows, columns, places = height // side, width // side, "patch"
        keys = ["class token", *(f"{r + 1}, {c + 1}" for r in range(rows) for c in range(columns))]
    else:
        rows, columns, places, keys = height, 1, "row", [str(r + 1) for r in range(height)]
    inputs = (pixels_of(trained).from_bytes(image_CHW[None]),)
    found = look(trained, inputs, name=name, keys=keys, image=(image_CHW, (rows, columns)), save=save, whole=whole)
    return found | {"places": places}


def most_probable(probabilities_K: Tensor, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
    """[{class, probability}], the most probable first."""
    values, rows = probabilities_K.topk(min(top, len(probabilities_K)))
    return [{"class": classes[c], "probability": v} for c, v in zip(rows.tolist(), values.tolist(), strict=True)]


def row(answer: dict[str, Any]) -> list[str | None]:
    """A line of the table."""
    return [printable(answer["image"]), *class_cells(answer["classes"])]


def class_cells(classes: Sequence[dict[str, Any]]) -> list[str]:
    """The most probable class, its probability, and the others in words."""
    first, *rest = classes
    others = ", ".join(f"{printable(c['class'])} {100 * c['probability']:.1f} %" for c in rest)
    return [printable(first["class"]), f"{100 * first['probability']:.1f} %", others]
