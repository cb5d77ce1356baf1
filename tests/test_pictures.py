"""The pictures in a run folder are whole PNG files, and show what they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlcli.reporting.pictures import draw_confusion, draw_curves, draw_grid, draw_mistakes


def epochs(num: int, **metrics: float) -> list[dict[str, Any]]:
    """The events of a run whose metrics start at the given values and are divided by the epoch."""
    events: list[dict[str, Any]] = [{"event": "run_prepared", "steps_per_epoch": 20}]
    for e in range(1, num + 1):
        values = {name.replace("__", "/"): value / e for name, value in metrics.items()}
        events.append({"event": "epoch", "epoch": e, "step": 20 * e, "metrics": values, "best": e == 2})
    return events


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) uint8; fails on anything but a PNG with something on it."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.std() > 1, "the picture is blank"
    return image


def images(num: int, channels: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, channels, side, side), dtype=np.uint8)


def test_loss_and_accuracy_stand_side_by_side(tmp_path: Path) -> None:
    draw_curves(epochs(5, train__loss=2.0, val__loss=2.5), tmp_path / "one.png")
    draw_curves(epochs(5, train__loss=2.0, val__loss=2.5, train__accuracy=0.5), tmp_path / "two.png")
    one, two = pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png")
    assert two.shape[1] == 2 * one.shape[1] and two.shape[0] == one.shape[0]


def test_other_values_give_another_picture_and_the_same_values_the_same(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, loss in zip(paths, (2.0, 2.0, 3.0), strict=True):
        draw_curves([*epochs(5, train__loss=loss), {"event": "epoch", "epoch": 6, "step": 120, "metrics": {}}], path)
    first, second, third = map(pixels, paths)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_the_best_epoch_is_marked(tmp_path: Path) -> None:
    events = epochs(5, train__loss=2.0)
    draw_curves(events, tmp_path / "marked.png")
    draw_curves([event | {"best": False} for event in events], tmp_path / "unmarked.png")
    assert not np.array_equal(pixels(tmp_path / "marked.png"), pixels(tmp_path / "unmarked.png"))


def test_one_epoch_no_epoch_and_a_missing_value_are_drawn_too(tmp_path: Path) -> None:
    draw_curves(epochs(1, train__loss=2.0, val__accuracy=0.5), tmp_path / "one.png")
    draw_curves([], tmp_path / "none.png")
    draw_curves(epochs(3, train__loss=float("nan"), val__loss=1.0), tmp_path / "nan.png")
    for name in ("one.png", "none.png", "nan.png"):
        pixels(tmp_path / name)


def test_a_gan_has_a_panel_per_kind_of_metric(tmp_path: Path) -> None:
    events = epochs(4, train__loss__generator=1.0, train__loss__discriminator=0.7, val__frechet=40.0)
    draw_curves(events, tmp_path / "gan.png")
    draw_curves(epochs(4, val__frechet=40.0), tmp_path / "frechet.png")
    assert pixels(tmp_path / "gan.png").shape[1] == 2 * pixels(tmp_path / "frechet.png").shape[1]


def test_several_evaluations_in_an_epoch_are_several_points(tmp_path: Path) -> None:
    twice = epochs(2, val__loss=1.0)
    twice += [{"event": "epoch", "epoch": 1, "step": 30, "metrics": {"val/loss": 5.0}, "best": False}]
    draw_curves(twice, tmp_path / "twice.png")
    draw_curves(twice[:-1], tmp_path / "once.png")
    assert not np.array_equal(pixels(tmp_path / "twice.png"), pixels(tmp_path / "once.png"))


def test_the_mistakes_made_with_most_confidence_come_first_and_are_at_most_25(tmp_path: Path) -> None:
    many, names = images(30, 1, 8), [str(i) for i in range(30)]
    confidences = list(np.linspace(0.2, 0.99, 30))
    draw_mistakes(many, names, names[::-1], confidences, tmp_path / "all.png")
    draw_mistakes(many[5:], names[5:], names[::-1][5:], confidences[5:], tmp_path / "worst.png")
    assert np.array_equal(pixels(tmp_path / "all.png"), pixels(tmp_path / "worst.png"))


def test_no_mistakes_is_a_picture_that_says_so(tmp_path: Path) -> None:
    draw_mistakes(images(0, 3, 8), [], [], [], tmp_path / "none.png")
    pixels(tmp_path / "none.png")


def test_class_names_are_text_and_not_formulas(tmp_path: Path) -> None:
    names = ["$x^2", "a_b$", "\x1b[31mred", "a long name of a class", "日本"]
    draw_mistakes(images(5, 3, 8), names, names[::-1], [0.5] * 5, tmp_path / "mistakes.png")
    draw_confusion(np.eye(5, dtype=int), names, tmp_path / "confusion.png")
    assert pixels(tmp_path / "mistakes.png").shape[0] > 100 and pixels(tmp_path / "confusion.png").shape[0] > 100


@pytest.mark.parametrize("num", [2, 10, 21, 100])
def test_confusion_of_few_and_of_many_classes(num: int, tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(num)]
    draw_confusion(np.eye(num, dtype=int) * 9, names, tmp_path / "right.png")
    draw_confusion(np.eye(num, dtype=int)[::-1] * 9, names, tmp_path / "wrong.png")
    right, wrong = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    assert min(right.shape[:2]) > 300 and max(right.shape[:2]) < 2000
    assert not np.array_equal(right, wrong)


def test_confusion_of_a_class_without_examples_and_of_the_wrong_shape(tmp_path: Path) -> None:
    draw_confusion([[0, 0], [1, 2]], ["never seen", "seen"], tmp_path / "confusion.png")
    pixels(tmp_path / "confusion.png")
    with pytest.raises(ValueError, match=r"\(3, 3\) for 3 classes, got \(2, 2\)"):
        draw_confusion([[0, 0], [1, 2]], ["a", "b", "c"], tmp_path / "other.png")


def test_the_grid_holds_every_image_pixel_for_pixel(tmp_path: Path) -> None:
    five = images(5, 3, 64)
    draw_grid(five, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    assert np.array_equal(sheet[2:66, 2:66], five[0].transpose(1, 2, 0))
    assert np.array_equal(sheet[68:132, 68:132], five[4].transpose(1, 2, 0))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tensors_and_arrays_of_any_number_of_channels_give_the_same_grid(channels: int, tmp_path: Path) -> None:
    some = images(4, channels, 8)
    draw_grid(some, tmp_path / "array.png")
    draw_grid(torch.from_numpy(some), tmp_path / "tensor.png")
    assert np.array_equal(pixels(tmp_path / "array.png"), pixels(tmp_path / "tensor.png"))


def test_images_of_another_type_are_refused_with_their_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\) float32"):
        draw_grid(torch.zeros(2, 1, 8, 8), tmp_path / "grid.png")
    with pytest.raises(ValueError, match="got 0"):
        draw_grid(images(0, 1, 8), tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_fails_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grid.png"
    draw_grid(images(4, 1, 8), path)
    before = path.read_bytes()

    def full_disk(place: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw_grid(images(4, 1, 8, seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
