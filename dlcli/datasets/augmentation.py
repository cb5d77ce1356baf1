"""Augmentation of a whole batch at once, on its device, with one geometric pass over the pixels.

Where only flips and shifts by whole pixels are switched on, pixels are copied; otherwise they are interpolated.

Each image's transform depends on its key alone (see keyed_random), not on the batch it is in. A setting that is null
or 0 costs nothing. Letters: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dlcli.datasets.batches.keyed_random import streams, uniform
from dlcli.errors import ConfigError

# A draw keeps its number when others are switched on or off: stream numbers must never be reused.
STREAMS = {
    "rotation": 0, "flip": 1, "crop_area": 2, "crop_aspect": 3, "crop_x": 4, "crop_y": 5, "shift_x": 6, "shift_y": 7,
    "brightness": 8, "contrast": 9, "saturation": 10,
    "erase": 11, "erase_area": 12, "erase_aspect": 13, "erase_x": 14, "erase_y": 15, "flip_vertical": 16,
}  # fmt: skip
DRAWS = {  # setting -> the draws it needs
    "rotation": ("rotation",),
    "flip": ("flip",),
    "flip_vertical": ("flip_vertical",),
    "crop": ("crop_area", "crop_aspect", "crop_x", "crop_y"),
    "shift": ("shift_x", "shift_y"),
    "jitter": ("brightness", "contrast", "saturation"),
    "erase": ("erase", "erase_area", "erase_aspect", "erase_x", "erase_y"),
}
PADDING = {"zeros": "zeros", "reflect": "reflection"}  # padding_mode -> its name in grid_sample
MOST = {"rotation": 180, "flip": 1, "flip_vertical": 1, "shift": math.inf, "jitter": 1, "erase": 1}
CROP_ASPECT = math.log(4 / 3)  # width / height of a crop between 3/4 and 4/3, as in "Going deeper with convolutions"
ERASE_AREA = (0.02, 0.2)  # of the image
ERASE_ASPECT = math.log(3.3)  # "Random erasing data augmentation" (arXiv 1708.04896)
IGNORED = 255  # in a mask: of no known class
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
VISIBLE = 0.3  # a box with less than this share left in the image no longer counts as an object


class Augment:
    """augment(images_BCHW, keys_B) -> images_BCHW: float32 in [0, 1] before and after; a new tensor, or the given one.

    rotation: at most so many degrees either way.
    flip: probability of a left-right flip; or "alternate": every image is mirrored in every other epoch, half of them
    in the even ones (Jordan 2024, arXiv 2404.00498). The caller says whose turn it is: augment(images, keys, turns_B).
    flip_vertical: probability of an upside-down flip, for pictures without an up and a down: microscopy, aerial views.
    crop: [smallest, largest] share of the area that is cut out and scaled back to full size.
    shift: at most so many whole pixels in each direction.
    padding_mode: what fills an edge after a rotation or shift: "zeros", or "reflect", the pixels from the edge inwards.
    jitter: brightness, contrast and (for 3 channels) saturation are each scaled by up to 1 - jitter .. 1 + jitter.
    erase: probability that a rectangle of 2 to 20 % of the area is blackened.
    """

    def __init__(
        self,
        *,
        rotation: float | None = None,
        flip: float | str | None = None,
        flip_vertical: float | None = None,
        crop: Sequence[float] | None = None,
        shift: int | None = None,
        jitter: float | None = None,
        erase: float | None = None,
        padding_mode: str = "zeros",
    ) -> None:
        self.alternates = flip == "alternate"
        flip = 0.5 if self.alternates else flip
        given = {"rotation": rotation, "flip": flip, "flip_vertical": flip_vertical}
        given |= {"shift": shift, "jitter": jitter, "erase": erase}
        for name, value in given.items():
            if value is not None and (isinstance(value, str) or not 0 <= value <= MOST[name]):
                raise ConfigError(
                    f"augmentation.{name}={value} is out of range.", hint=f"0 to {MOST[name]}, or null to leave it out."
                )
        if padding_mode not in PADDING:
            raise ConfigError(f"augmentation.padding_mode={padding_mode} is not known.", hint="zeros or reflect")
        if crop is not None and not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
            raise ConfigError(
                f"augmentation.crop={list(crop)} is not a range of areas.", hint="[0.8, 1.0], or null to leave it out."
            )
        self.rotation, self.flip, self.shift = rotation or 0.0, float(flip or 0.0), shift or 0
        self.padding_mode = padding_mode
        self.jitter, self.erase, self.flip_vertical = jitter or 0.0, erase or 0.0, flip_vertical or 0.0
        self.crop = (float(crop[0]), float(crop[1])) if crop is not None and tuple(crop) != (1, 1) else None
        self.draws = tuple(draw for setting, draws in DRAWS.items() if getattr(self, setting) for draw in draws)
        self._streams = streams(*(STREAMS[draw] for draw in self.draws))

    @property
    def is_identity(self) -> bool:
        """Whether every transform is switched off, so that the caller may skip this step."""
        return not self.draws

    def __call__(self, images_BCHW: Tensor, keys_B: Tensor, turns_B: Tensor | None = None) -> Tensor:
        if self.is_identity:
            return images_BCHW
        draws = self._draw(keys_B, turns_B)
        return self._erase(self._jitter(self._move(images_BCHW, draws), draws), draws)

    def with_masks(self, images_BCHW: Tensor, masks_BHW: Tensor, keys_B: Tensor) -> tuple[Tensor, Tensor]:
        """The images that a call gives, and their masks (B, H, W) of whole numbers, moved with them by nearest pixels.

        Pixels that came in as zeros at an edge or were erased become IGNORED: nothing there shows the class.
        """
        if self.is_identity:
            return images_BCHW, masks_BHW
        draws = self._draw(keys_B)
        images_BCHW = self._erase(self._jitter(self._move(images_BCHW, draws), draws), draws)
        # Minus IGNORED, so that the zeros of a black edge mean IGNORED; float32 holds every id.
        moved_B1HW = self._move((masks_BHW.float() - IGNORED).unsqueeze(1), draws, mode="nearest")
        masks = (self._erase(moved_B1HW, draws) + IGNORED).squeeze(1).to(masks_BHW.dtype)
        return images_BCHW, masks

    def with_boxes(
        self, images_BCHW: Tensor, boxes_BM4: Tensor, labels_BM: Tensor, keys_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The images that a call gives, and their boxes moved with them: xyxy in pixels; labels: int64, -1 for no box.

        Boxes are cut off at the edges; a box of which little is left is dropped: label -1, all zeros. A rotated box
        becomes the upright box around it.
        """
        if self.is_identity:
            return images_BCHW, boxes_BM4, labels_BM
        draws = self._draw(keys_B)
        height, width = images_BCHW.shape[2:]
        moved_BM4 = move_boxes(boxes_BM4, self._affine(draws, height, width), height, width)
        cut_BM4 = torch.stack([moved_BM4[..., i].clamp(0, (width, height)[i % 2]) for i in range(4)], -1)
        left_BM = area(cut_BM4) / area(moved_BM4).clamp(min=1e-9)
        is_box_BM = (labels_BM >= 0) & (left_BM >= VISIBLE)
        boxes_BM4 = torch.where(is_box_BM[:, :, None], cut_BM4, 0.0).float()
        images_BCHW = self._erase(self._jitter(self._move(images_BCHW, draws), draws), draws)
        return images_BCHW, boxes_BM4, labels_BM.masked_fill(~is_box_BM, -1)

    def _draw(self, keys_B: Tensor, turns_B: Tensor | None = None) -> dict[str, Tensor]:
        if self._streams.device != keys_B.device:
            self._streams = self._streams.to(keys_B.device)
        draws = dict(zip(self.draws, uniform(keys_B, self._streams).unbind(1), strict=True))
        if self.alternates and turns_B is not None:
            draws["flip"] = torch.where(turns_B, 0.0, 1.0)
        return draws

    def _move(self, images_BCHW: Tensor, draws: dict[str, Tensor], *, mode: str = "bilinear") -> Tensor:
        """The transforms that move pixels: rotation, flip, crop and shift."""
        if self.rotation or self.crop or self.shift % 1:
            return self._warp(images_BCHW, draws, mode)
        return self._copy(images_BCHW, draws)

    def _copy(self, images_BCHW: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Flip and shift without interpolation: takes a quarter of the time of `_warp` and rounds no pixel."""
        if self.flip:
            images_BCHW = torch.where((draws["flip"] < self.flip).view(-1, 1, 1, 1), images_BCHW.flip(-1), images_BCHW)
        if self.flip_vertical:
            turned_B = (draws["flip_vertical"] < self.flip_vertical).view(-1, 1, 1, 1)
            images_BCHW = torch.where(turned_B, images_BCHW.flip(-2), images_BCHW)
        if not self.shift:
            return images_BCHW
        _, _, height, width = images_BCHW.shape
        most = int(self.shift)
        padded = pad(images_BCHW, most, self.padding_mode)
        windows_BCYXHW = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of every place there is
        y_B, x_B = (most - whole(draws[axis], most).long() for axis in ("shift_y", "shift_x"))
        return windows_BCYXHW[torch.arange(len(padded), device=padded.device), :, y_B, x_B]

    def _warp(self, images_BCHW: Tensor, draws: dict[str, Tensor], mode: str = "bilinear") -> Tensor:
        """Rotation, flip, crop and shift in one sampling; `padding_mode` says what fills the area outside the image.

        For each output pixel the source position is A (x, y) + t, in coordinates from -1 to 1. It is computed in
        elementwise products and sums: a matrix product (affine_grid's) may round differently in another batch size.
        """
        _, _, height, width = images_BCHW.shape
        a, b, c, d, e, f = self._affine(draws, height, width)
        across_2B1, down_2B1, offset_2B1 = (torch.stack(pair).float()[:, :, None] for pair in ((a, d), (b, e), (c, f)))
        x_W, y_H = (centres(size, images_BCHW.device) for size in (width, height))
        # x and y in planes of their own: as pairs in memory, this sum and the sampling take twice as long.
        source_2BHW = (across_2B1 * x_W + offset_2B1)[:, :, None, :] + (down_2B1 * y_H)[:, :, :, None]
        grid_BHW2 = source_2BHW.permute(1, 2, 3, 0)
        return F.grid_sample(
            images_BCHW, grid_BHW2, mode=mode, padding_mode=PADDING[self.padding_mode], align_corners=False
        )

    def _affine(self, draws: dict[str, Tensor], height: int, width: int) -> tuple[Tensor, ...]:
        """(a, b, c, d, e, f), each (B,) float64: source x = a x + b y + c, source y = d x + e y + f.

        float64, because the last digit of a vectorised sine may depend on the place in the batch; rounded to float32 it
        does not.
        """
        any_draw = next(iter(draws.values()))
        zero, one = torch.zeros_like(any_draw), torch.ones_like(any_draw)
        scale_x, scale_y, x, y = one, one, zero, zero
        if self.crop:
            least, most = self.crop
            area = least + (most - least) * draws["crop_area"]
            aspect = torch.exp((2 * draws["crop_aspect"] - 1) * CROP_ASPECT)
            scale_x, scale_y = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
            x, y = (1 - scale_x) * (2 * draws["crop_x"] - 1), (1 - scale_y) * (2 * draws["crop_y"] - 1)
        if self.shift:
            x = x - whole(draws["shift_x"], self.shift) * (2 / width)
            y = y - whole(draws["shift_y"], self.shift) * (2 / height)
        if self.flip:
            sign = torch.where(draws["flip"] < self.flip, -one, one)
            scale_x, x = scale_x * sign, x * sign
        if self.flip_vertical:
            sign = torch.where(draws["flip_vertical"] < self.flip_vertical, -one, one)
            scale_y, y = scale_y * sign, y * sign
        if not self.rotation:
            return scale_x, zero, x, zero, scale_y, y
        angle = (2 * draws["rotation"] - 1) * math.radians(self.rotation)
        cos, sin = torch.cos(angle), torch.sin(angle)
        tall, wide = height / width, width / height  # the angle is one of pixels, the coordinates are not
        return (
            cos * scale_x, -sin * tall * scale_y, cos * x - sin * tall * y,
            sin * wide * scale_x, cos * scale_y, sin * wide * x + cos * y,
        )  # fmt: skip

    def _jitter(self, images_BCHW: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Saturation, then brightness and contrast as one product and sum; clamped once, at the end."""
        if not self.jitter:
            return images_BCHW
        brightness, contrast, saturation = (
            (1 + self.jitter * (2 * draws[name] - 1)).float().view(-1, 1, 1, 1)
            for name in ("brightness", "contrast", "saturation")
        )
        if images_BCHW.shape[1] == 3:
            grey = images_BCHW[:, 0] * GREY[0] + images_BCHW[:, 1] * GREY[1] + images_BCHW[:, 2] * GREY[2]
            images_BCHW = images_BCHW * saturation + grey[:, None] * (1 - saturation)
        # float64: the order of a sum depends on the batch's size, and so would the last digit of a float32.
        mean = images_BCHW.mean((1, 2, 3), keepdim=True, dtype=torch.float64).float()
        return (images_BCHW * (brightness * contrast)).add_(mean * brightness * (1 - contrast)).clamp_(0, 1)

    def _erase(self, images_BCHW: Tensor, draws: dict[str, Tensor]) -> Tensor:
        if not self.erase:
            return images_BCHW
        _, _, height, width = images_BCHW.shape
        area = ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * draws["erase_area"]
        aspect = torch.exp((2 * draws["erase_aspect"] - 1) * ERASE_ASPECT)
        columns = inside((area * aspect).sqrt().clamp(max=1), draws["erase_x"], width)
        rows = inside((area / aspect).sqrt().clamp(max=1), draws["erase_y"], height)
        hit = (draws["erase"] < self.erase)[:, None]
        return images_BCHW.masked_fill(((rows & hit)[:, :, None] & columns[:, None, :])[:, None], 0.0)


def move_boxes(boxes_BM4: Tensor, affine: Sequence[Tensor], height: int, width: int) -> Tensor:
    """(B, M, 4) float64: the boxes' places after their images are sampled at `affine` (see `Augment._affine`)."""
    a, b, c, d, e, f = (value_B[:, None, None] for value_B in affine)
    corners = boxes_BM4.double()
    x_BM4 = corners[..., [0, 2, 0, 2]] * (2 / width) - 1 - c  # from -1 to 1, as the sampling has it
    y_BM4 = corners[..., [1, 1, 3, 3]] * (2 / height) - 1 - f
    determinant = a * e - b * d
    x_BM4, y_BM4 = (e * x_BM4 - b * y_BM4) / determinant, (a * y_BM4 - d * x_BM4) / determinant
    x_BM4, y_BM4 = (x_BM4 + 1) * (width / 2), (y_BM4 + 1) * (height / 2)
    return torch.stack([x_BM4.amin(-1), y_BM4.amin(-1), x_BM4.amax(-1), y_BM4.amax(-1)], -1)


def area(boxes_BM4: Tensor) -> Tensor:
    """(B, M): the areas of boxes xyxy, 0 where a side is negative."""
    return (boxes_BM4[..., 2:] - boxes_BM4[..., :2]).clamp(min=0).prod(-1)


def pad(images_BCHW: Tensor, size: int, padding_mode: str) -> Tensor:
    """(B, C, H + 2 size, W + 2 size): with black around, or mirrored at the outer side of the outermost pixels."""
    if padding_mode == "zeros":
        return F.pad(images_BCHW, (size,) * 4)
    for dim in (2, 3):
        length = images_BCHW.shape[dim]
        place = torch.arange(-size, length + size, device=images_BCHW.device) % (2 * length)
        images_BCHW = images_BCHW.index_select(dim, torch.minimum(place, 2 * length - 1 - place))
    return images_BCHW


def centres(size: int, device: torch.device) -> Tensor:
    """(size,) float32: the pixels' centres, where the image reaches from -1 to 1."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1


def whole(draw_B: Tensor, most: int) -> Tensor:
    """A whole number from -most to most, each equally likely."""
    return torch.floor(draw_B * (2 * most + 1)) - most


def inside(share_B: Tensor, draw_B: Tensor, size: int) -> Tensor:
    """(B, size) bool: the pixels whose centres lie in an interval of `share` of the axis, at a random place."""
    start = draw_B * (1 - share_B)
    position = (torch.arange(size, device=draw_B.device) + 0.5) / size
    return (position >= start[:, None]) & (position < (start + share_B)[:, None])
