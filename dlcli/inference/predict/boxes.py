"""Images a user names: what a detector finds in them, drawn on the picture where a folder is given."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.errors import DataError, EnvironmentFault, printable
from dlcli.inference.image_files import find_images, free_path, read_file

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from dlcli.inference.trained import Trained

COLUMNS = ("image", "objects", "found", "surest")
READABLE = 60  # shorter side, in pixels, of pictures that have room for names
SURE = 0.4  # lowest score that is shown: a detector lists many more, for the curve of precision and recall
# Kelly's colours of greatest contrast (1965), without those that are lost on pictures.
# fmt: off
COLOURS = (
    "#f3c300", "#be0032", "#0067a5", "#008856", "#f38400", "#875692", "#a1caf1", "#e68fac", "#8db600", "#882d17",
    "#2b3d26", "#e25822", "#c2b280",
)
# fmt: on


def answers(
    trained: Trained, names: Sequence[str], *, top: int, save: str | None = None, threshold: float = SURE
) -> list[dict[str, Any]]:
    """One answer per image: {image, counts: {class: number}, objects: [{class, score, box: [x0, y0, x1, y1]}]}.

    The highest score first; boxes in pixels of the picture, turned as its EXIF says. picture: its drawing in `save`.
    threshold: the lowest score that is shown; weaker: {count, surest: {class, score} or None} of the rest.
    """
    return [_answer(trained, name, save, threshold) for name in find_images(names)]


def _answer(trained: Trained, name: str, save: str | None, threshold: float) -> dict[str, Any]:
    found: dict[str, Any] = {"image": "stdin" if name == "-" else name}
    try:
        data = read_file(name)
        listed = _objects(trained, data)
    except (DataError, OSError) as error:
        message = error.message if isinstance(error, DataError) else f"cannot be read: {error.strerror}"
        return found | {"error": message}
    objects = [one for one in listed if one["score"] >= threshold]
    rest = [{"class": one["class"], "score": one["score"]} for one in listed if one["score"] < threshold]
    counts = Counter(one["class"] for one in objects)
    found |= {"counts": dict(counts.most_common()), "objects": objects}
    found |= {"threshold": threshold, "weaker": {"count": len(rest), "surest": rest[0] if rest else None}}
    if save is not None:
        found["picture"] = _save(data, objects, trained.manifest.classes, Path(save), found["image"])
    return found


def _objects(trained: Trained, data: bytes) -> list[dict[str, Any]]:
    import torch

    from dlcli.datasets.boxes import letterbox
    from dlcli.inference.trained import pixels_of

    pixels, size, scale = letterbox(data, tuple(trained.tree["dataset"]["image_shape"]), source="")
    images_1CHW = pixels_of(trained).from_bytes(torch.from_numpy(pixels)[None]).to(trained.runtime.device)
    with torch.no_grad(), trained.runtime.autocast()():
        boxes, scores, labels = (tensor.float().cpu() for tensor in trained.task.detect(images_1CHW)[0])  # type: ignore[operator]
    boxes = (boxes.double() / torch.from_numpy(scale)).clamp(min=0).minimum(torch.tensor(size * 2).double())
    return [
        {"class": trained.manifest.classes[int(label)], "score": score, "box": [round(side, 1) for side in box]}
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    ]


def row(answer: dict[str, Any]) -> list[str | None]:
    """A line of the table."""
    objects = answer["objects"]
    found = ", ".join(f"{count} {printable(word)}" for word, count in answer["counts"].items())
    surest = _surest(objects[0]) if objects else None
    return [printable(answer["image"]), str(len(objects)), found or _nothing(answer), surest]


def _surest(one: dict[str, Any]) -> str:
    return f"{printable(one['class'])} {100 * one['score']:.0f} %"


def _nothing(answer: dict[str, Any]) -> str:
    """Say what a lower threshold would show."""
    count, strongest = answer["weaker"]["count"], answer["weaker"]["surest"]
    if not count:
        return "nothing"
    return f"nothing from {100 * answer['threshold']:g} %; {count:,} weaker, the best {_surest(strongest)}"


# ------------------------------------------------------------------------------------------------------------- drawing


def _save(data: bytes, objects: Sequence[dict[str, Any]], classes: Sequence[str], folder: Path, name: str) -> str:
    """The picture with its boxes as folder/NAME.png; the path. A name that is taken gets a number."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    draw_boxes(picture, objects, classes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = free_path(folder, Path(name).stem)
        picture.save(path)
    except OSError as error:
        message = f"--save {printable(folder)} cannot be written to: {error.strerror or error}"
        raise EnvironmentFault(message, hint="Name another folder.") from error
    return str(path)


def draw_boxes(picture: Image.Image, objects: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """Into the picture: a frame of the class's colour around each thing, the highest score on top, and its name."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(9, round(min(picture.size) / 36)))
    for one in reversed(objects):
        colour = COLOURS[list(classes).index(one["class"]) % len(COLOURS)]
        draw.rectangle(one["box"], outline=colour, width=line)
        if min(picture.size) >= READABLE:
            _label(draw, f"{printable(one['class'])} {100 * one['score']:.0f}", one["box"], colour, font, picture.size)


def _label(
    draw: ImageDraw.ImageDraw, text: str, box: Sequence[float], colour: str, font: Any, size: tuple[int, int]
) -> None:
    """On a ground of the box's colour, black or white as can be read better; never outside the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    draw.rectangle([x, y, x + width, y + height], fill=colour)
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    draw.text((x + 2 - left, y + 2 - top), text, font=font, fill="black" if is_light else "white")
