"""Images a user names: the class of each pixel as shares, as a mask, and laid over the picture at its own size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcli.errors import CheckpointError, DataError, printable
from dlcli.inference.image_files import find_images, free_stem, make_folder, open_picture, read_file

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    from dlcli.inference.trained import Trained

COLUMNS = ("image", "shares", "saved")
COLOURS = (  # of the classes after the first, which is left as it is: matplotlib's tab10
    (255, 127, 14), (31, 119, 180), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (188, 189, 34), (23, 190, 207), (127, 127, 127),
)  # fmt: skip
OPACITY = 0.45
SMOOTHED = 200_000_000  # numbers of a picture's probabilities; above that the mask is enlarged by nearest pixels


def answers(trained: Trained, names: Sequence[str], *, top: int, save: str | None = None) -> list[dict[str, Any]]:
    """{input, shares: [{class, share}], mask, overlay}: the classes that occur, the largest share first, up to `top`.

    mask, overlay: paths of PNGs under `save`. The mask holds the values that the training masks held.
    """
    names = find_images(names)
    folder = None if save is None else make_folder(save)
    found: list[dict[str, Any]] = [{"input": "stdin" if name == "-" else name} for name in names]
    taken: set[str] = set()
    for name, answer in zip(names, found, strict=True):
        try:
            picture = open_picture(read_file(name))
        except (DataError, OSError) as error:
            answer["error"] = error.message if isinstance(error, DataError) else f"cannot be read: {error.strerror}"
            continue
        classes_HW = classes_of_pixels(trained, picture)
        answer["shares"] = shares(classes_HW, class_names(trained))[:top]
        if folder is not None:
            stem = free_stem(Path(answer["input"]).stem, taken)
            answer |= save_pictures(trained, picture, classes_HW, folder / stem)
    return found


def row(answer: dict[str, Any]) -> list[str | None]:
    """A line of the table."""
    name = printable(answer["input"])
    message = ", ".join(f"{printable(s['class'])} {100 * s['share']:.1f} %" for s in answer["shares"])
    return [name, message, printable(answer["overlay"]) if "overlay" in answer else None]


def class_names(trained: Trained) -> tuple[str, ...]:
    """Their numbers where the data name none."""
    return tuple(trained.manifest.classes or map(str, range(trained.tree["dataset"]["num_classes"])))


def classes_of_pixels(trained: Trained, picture: Image) -> np.ndarray:
    """(H, W) int64 class ids at the picture's own size: probabilities are enlarged, then compared."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from PIL import Image

    from dlcli.inference.trained import pixels_of
    from dlcli.tasks.segmentation import Segmentation

    if not isinstance(trained.task, Segmentation):
        message = f"{trained.manifest.run} gives no masks"
        raise CheckpointError(message, hint="Name another run: dlcli runs ls")
    channels, height, width = trained.tree["dataset"]["image_shape"]
    resized = picture.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized).reshape(height, width, channels).transpose(2, 0, 1).copy()
    with torch.no_grad(), trained.runtime.autocast()():
        images = pixels_of(trained).from_bytes(torch.from_numpy(pixels)[None]).to(trained.runtime.device)
        probabilities: Tensor = trained.task.predict(images).cpu()
    size = (picture.height, picture.width)
    if probabilities.shape[1] * size[0] * size[1] <= SMOOTHED:
        return F.interpolate(probabilities, size, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    small = probabilities.argmax(1, keepdim=True).float()
    return F.interpolate(small, size, mode="nearest-exact")[0, 0].long().numpy()


def shares(classes_HW: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """[{class, share}] of the classes that occur, the largest first."""
    import numpy as np

    counts_K = np.bincount(classes_HW.ravel(), minlength=len(classes))
    order = sorted(range(len(classes)), key=lambda k: -counts_K[k])
    return [{"class": classes[k], "share": float(counts_K[k] / classes_HW.size)} for k in order if counts_K[k]]


def save_pictures(trained: Trained, picture: Image, classes_HW: np.ndarray, stem: Path) -> dict[str, str]:
    """The mask and the overlay beside one another, by what they are."""
    import numpy as np
    from PIL import Image

    colours = colours_of(class_names(trained))
    mask = to_mask(classes_HW, colours, trained.manifest.fitted)
    layer = np.array(colours, dtype=np.float32)[classes_HW]
    opacity = np.where(classes_HW == 0, 0.0, OPACITY)[..., None].astype(np.float32)
    blended = np.asarray(picture, dtype=np.float32) * (1 - opacity) + layer * opacity
    places = {"mask": f"{stem}-mask.png", "overlay": f"{stem}-overlay.png"}
    mask.save(places["mask"])
    Image.fromarray(blended.round().astype(np.uint8)).save(places["overlay"])
    return places


def to_mask(classes_HW: np.ndarray, colours: Sequence[tuple[int, int, int]], fitted: dict[str, Any]) -> Image:
    """Draw a mask like the training masks: RGB, or their values, shown in colours if 8 bits hold them."""
    import numpy as np
    from PIL import Image

    values = np.array(fitted.get("values") or range(len(colours)), dtype=np.int32)
    if fitted.get("is_rgb"):
        return Image.fromarray(np.array(colours, dtype=np.uint8)[classes_HW])
    if values.max() > 255:
        return Image.fromarray(values[classes_HW].astype(np.uint16))
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[values] = colours
    mask = Image.fromarray(values[classes_HW].astype(np.uint8)).convert("P")
    mask.putpalette(palette.tobytes())
    return mask


def colours_of(classes: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return each class's colour: its own if its name is one, otherwise black for the first and ten in turn."""
    import re

    if all(re.fullmatch("#[0-9a-f]{6}", name) for name in classes):
        return [(int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)) for name in classes]
    return [(0, 0, 0), *(COLOURS[k % len(COLOURS)] for k in range(len(classes) - 1))]
