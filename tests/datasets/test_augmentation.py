"""Augmentation: exact where nothing is to change, by key alone, and of the strength that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from dlcli.datasets.augmentation import STREAMS, Augment
from dlcli.datasets.batches.keyed_random import sample_keys, splitmix, streams, uniform
from dlcli.errors import ConfigError

EACH = [{"rotation": 30}, {"flip": 0.5}, {"crop": [0.5, 1.0]}, {"shift": 2}, {"jitter": 0.4}, {"erase": 0.5}]
ALL = {"rotation": 15, "flip": 0.5, "crop": [0.5, 1.0], "shift": 2, "jitter": 0.4, "erase": 0.5}
CONF = Path(__file__).parents[2] / "conf" / "augmentation"


def keys(count: int, *, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return sample_keys(seed, epoch, torch.arange(count))


def images(count: int = 64, channels: int = 3, height: int = 12, width: int = 10) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def test_splitmix_is_the_published_one() -> None:
    """The first outputs for the seed 1234567, as in the reference implementation's tests (Rosetta Code)."""
    golden = 0x9E3779B97F4A7C15
    found = [splitmix((1234567 + number * golden) % 2**64) for number in range(3)]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_tensor_and_integer_arithmetic_agree() -> None:
    (key,) = sample_keys(-7, 3, torch.tensor([41])).tolist()
    base = splitmix((splitmix(-7 % 2**64) + 3) % 2**64)
    assert key % 2**64 == splitmix((41 + base) % 2**64)


def test_draws_are_uniform_and_unrelated() -> None:
    draws = uniform(keys(20_000), streams(*range(16)))
    assert draws.min() >= 0 and draws.max() < 1
    assert (draws.mean(0) - 0.5).abs().max() < 0.01 and (draws.var(0) - 1 / 12).abs().max() < 0.003
    correlation = torch.corrcoef(draws.T) - torch.eye(16)
    assert correlation.abs().max() < 0.04
    neighbours = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]
    assert neighbours.abs() < 0.04


def test_seed_epoch_and_index_all_matter() -> None:
    found = {tuple(sample_keys(seed, epoch, torch.arange(50)).tolist()) for seed in range(5) for epoch in range(5)}
    assert len({key for row in found for key in row}) == 5 * 5 * 50


def test_stream_numbers_stay_as_they_are() -> None:
    """A changed number would change every resumed run."""
    assert list(STREAMS.values()) == list(range(17)) and list(STREAMS)[:3] == ["rotation", "flip", "crop_area"]


def test_nothing_switched_on_returns_the_same_tensor() -> None:
    batch = images()
    for augment in (Augment(), Augment(rotation=0, flip=0, crop=[1, 1], shift=0, jitter=0, erase=0)):
        assert augment.is_identity and augment(batch, keys(64)) is batch


@pytest.mark.parametrize("settings", [*EACH, ALL], ids=lambda settings: "+".join(settings))
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_depends_on_its_key_alone(settings: dict, channels: int) -> None:
    augment, batch, batch_keys = Augment(**settings), images(channels=channels), keys(64)
    whole = augment(batch, batch_keys)
    assert whole.equal(augment(batch, batch_keys)), "bit-identical when repeated"
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert augment(batch[order], batch_keys[order]).equal(whole[order])
    for chosen in (slice(0, 1), slice(5, 12), slice(63, 64)):
        assert augment(batch[chosen], batch_keys[chosen]).equal(whole[chosen])


@pytest.mark.parametrize("settings", [*EACH, ALL], ids=lambda settings: "+".join(settings))
def test_each_setting_changes_images_within_zero_and_one(settings: dict) -> None:
    batch = images()
    augmented = Augment(**settings)(batch, keys(64))
    assert augmented.shape == batch.shape and augmented.dtype == torch.float32
    assert augmented.min() >= 0 and augmented.max() <= 1
    assert (augmented != batch).flatten(1).any(1).float().mean() > 0.3
    assert batch.equal(images()), "the given images are left as they were"


def test_rotation_covers_its_range_and_no_more() -> None:
    """A dot to the right of the centre moves along a circle: its angle is the image's."""
    height, width, radius = 41, 61, 15
    dot = torch.zeros(1000, 1, height, width)
    dot[:, :, height // 2, width // 2 + radius] = 1
    turned = Augment(rotation=30)(dot, keys(1000))
    y, x = torch.meshgrid(torch.arange(height) - height // 2, torch.arange(width) - width // 2, indexing="ij")
    mass = turned.sum((1, 2, 3))
    mean_x, mean_y = ((turned[:, 0] * axis).sum((1, 2)) / mass for axis in (x, y))
    degrees = torch.rad2deg(torch.atan2(mean_y, mean_x))
    assert degrees.abs().max() <= 31 and degrees.max() > 28 and degrees.min() < -28
    assert degrees.mean().abs() < 1.5 and degrees.std() == pytest.approx(30 / 3**0.5, rel=0.06)
    assert (mean_x.hypot(mean_y) - radius).abs().max() < 0.5, "also in an image that is not square"


def test_flip_has_its_probability_and_mirrors_exactly() -> None:
    batch = images(2000)
    flipped = Augment(flip=0.25)(batch, keys(2000))
    changed = (flipped != batch).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.25, abs=0.03)
    assert flipped[changed].equal(batch[changed].flip(-1))
    assert Augment(flip=1)(batch, keys(2000)).equal(batch.flip(-1))


def test_shift_is_by_whole_pixels_in_every_direction() -> None:
    dot = torch.zeros(2000, 1, 11, 9)
    dot[:, :, 5, 4] = 1
    shifted = Augment(shift=2)(dot, keys(2000))
    assert shifted.flatten(1).max(1).values.min() > 0.999, "no pixel is smeared"
    places = shifted.flatten(1).argmax(1)
    counts = torch.stack([places // 9 - 5, places % 9 - 4]).unique(dim=1, return_counts=True)
    assert counts[0].shape[1] == 25 and counts[0].abs().max() == 2
    assert counts[1].min() > 40 and counts[1].max() < 130


def test_crop_shows_the_area_that_was_asked_for() -> None:
    """Of an image whose values are its coordinates, a crop shows an interval: its length is the crop's."""
    ramp = torch.linspace(0, 1, 101)
    batch = torch.stack([ramp.expand(101, 101), ramp[:, None].expand(101, 101)]).expand(500, 2, 101, 101)
    cropped = Augment(crop=[0.5, 0.8])(batch.contiguous(), keys(500))
    inner = cropped[:, :, 10:-10, 10:-10]  # its border lies outside for no crop
    width, height = (inner[:, axis].amax((1, 2)) - inner[:, axis].amin((1, 2)) for axis in (0, 1))
    area = width * height * (100 / 80) ** 2
    assert area.min() > 0.45 and area.max() < 0.85 and area.mean() == pytest.approx(0.65, abs=0.03)
    assert (width / height).min() < 0.85 and (width / height).max() > 1.15


def test_jitter_changes_brightness_and_contrast() -> None:
    grey = torch.full((500, 1, 4, 4), 0.5)
    brightness = Augment(jitter=0.2)(grey, keys(500)).mean((1, 2, 3)) / 0.5
    assert brightness.min() >= 0.799 and brightness.max() <= 1.201
    assert brightness.min() < 0.82 and brightness.max() > 1.18 and brightness.mean() == pytest.approx(1, abs=0.02)
    two = torch.tensor([0.4, 0.6]).repeat(500, 1, 8, 4)
    jittered = Augment(jitter=0.2)(two, keys(500))
    contrast = (jittered.amax((1, 2, 3)) - jittered.amin((1, 2, 3))) / 0.2 / (jittered.mean((1, 2, 3)) / 0.5)
    assert contrast.min() >= 0.799 and contrast.max() <= 1.201 and contrast.std() > 0.08


def test_saturation_leaves_grey_images_grey() -> None:
    grey = images(100, channels=1).expand(-1, 3, -1, -1).contiguous()
    jittered = Augment(jitter=0.4)(grey, keys(100))
    torch.testing.assert_close(jittered[:, 0], jittered[:, 1], rtol=0, atol=1e-6)
    coloured = images(100)
    assert not torch.allclose(Augment(jitter=0.4)(coloured, keys(100)), Augment(jitter=0.4)(grey, keys(100)))


def test_erase_blackens_one_rectangle_with_its_probability() -> None:
    white = torch.ones(1000, 3, 20, 16)
    erased = Augment(erase=0.4)(white, keys(1000))[:, 0] == 0
    share = erased.float().mean((1, 2))
    assert (share > 0).float().mean() == pytest.approx(0.4, abs=0.05) and share.max() < 0.3
    rectangle = erased.any(2, keepdim=True) & erased.any(1, keepdim=True)
    assert rectangle.equal(erased)


@pytest.mark.parametrize(
    "settings",
    [{"rotation": -1}, {"rotation": 200}, {"flip": 1.5}, {"crop": [0.9]}, {"crop": [0.9, 0.5]}, {"jitter": 2}],
)
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Augment(**settings)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds_and_opens_with_its_command(path: Path) -> None:
    text = path.read_text()
    config = yaml.safe_load(text)
    assert text.startswith("# dlcli train ") and config.pop("_target_") == "dlcli.datasets.augmentation.Augment"
    config.pop("flip_vertical", None)  # of pictures without an upside
    assert list(config) == ["rotation", "flip", "crop", "shift", "jitter", "erase", "padding_mode"]
    assert Augment(**config).is_identity == (path.stem == "none")
