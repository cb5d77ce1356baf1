"""Log-mel features: equal to a plain computation in NumPy, blind to padding, masked in training only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dlcli.errors import ConfigError
from dlcli.models.log_mel import FLOOR, LogMel, mel_filters

LENGTHS = torch.tensor([1_700, 80, 3_999, 1])


def waves(longest: int = 3_999) -> Tensor:
    """(4, longest) float32, zero behind LENGTHS."""
    noise = torch.rand(4, longest, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return noise.masked_fill(torch.arange(longest) >= LENGTHS[:, None], 0.0)


def plain(wave: np.ndarray, *, rate: int, fft: int, window: int, hop: int, mels: int) -> np.ndarray:
    """Spectrum by spectrum, band by band, as a textbook would: (F, M) float64."""
    taper = np.zeros(fft)
    start = (fft - window) // 2
    taper[start : start + window] = [np.sin(np.pi * n / window) ** 2 for n in range(window)]
    padded = np.concatenate([np.zeros(fft // 2), wave, np.zeros(fft)])
    rows = []
    for i in range(len(wave) // hop + 1):
        power = np.abs(np.fft.rfft(padded[i * hop : i * hop + fft] * taper)) ** 2
        rows.append([np.log(sum(power * band) + FLOOR) for band in bands(rate, fft, mels)])
    return np.array(rows)


def bands(rate: int, fft: int, mels: int) -> list[np.ndarray]:
    """HTK's triangles, corner by corner."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = [700 * (10 ** (top * i / (mels + 1) / 2595) - 1) for i in range(mels + 2)]
    hertz = np.arange(fft // 2 + 1) * rate / fft
    return [np.interp(hertz, corners[i : i + 3], [0.0, 1.0, 0.0], left=0.0, right=0.0) for i in range(mels)]


def test_features_equal_the_plain_computation() -> None:
    features = LogMel(sample_rate=8000, mels=30, frame_ms=10, normalise=False).eval()
    found, frames_B = features(waves(), LENGTHS)
    for row, wave, length, num_frames in zip(found, waves(), LENGTHS.tolist(), frames_B.tolist(), strict=True):
        expected = plain(wave[:length].double().numpy(), rate=8000, fft=256, window=200, hop=80, mels=30)
        assert num_frames == len(expected) == length // 80 + 1
        np.testing.assert_allclose(row[:num_frames].double().numpy(), expected, rtol=1e-4, atol=1e-4)
        assert (row[num_frames:] == 0).all()


@pytest.mark.parametrize(("rate", "fft", "mels"), [(8000, 256, 40), (16_000, 512, 80)])
def test_mel_bands_are_htks_triangles(rate: int, fft: int, mels: int) -> None:
    np.testing.assert_allclose(mel_filters(rate, fft, mels).T, bands(rate, fft, mels), atol=1e-12)


def test_each_band_of_a_recording_has_mean_0_and_variance_1() -> None:
    found, frames_B = LogMel(sample_rate=8000, frame_ms=10).eval()(waves(), LENGTHS)
    own = found[2, : frames_B[2]]
    torch.testing.assert_close(own.mean(0), torch.zeros(40), atol=1e-5, rtol=0)
    torch.testing.assert_close(own.var(0, correction=0), torch.ones(40), atol=1e-3, rtol=0)


@pytest.mark.parametrize("normalise", [True, False])
def test_features_do_not_depend_on_the_padding(normalise: bool) -> None:
    features = LogMel(sample_rate=8000, frame_ms=20, normalise=normalise).eval()
    found, frames_B = features(waves(), LENGTHS)
    assert torch.equal(frames_B, LENGTHS // 160 + 1)
    for i, length in enumerate(LENGTHS.tolist()):
        alone, (num_frames,) = features(waves()[i : i + 1, :length], LENGTHS[i : i + 1])
        assert alone.shape == (1, num_frames, 80)
        torch.testing.assert_close(found[i, :num_frames], alone[0], atol=1e-4, rtol=1e-4)
    longer, _ = features(torch.nn.functional.pad(waves(), (0, 5_000)), LENGTHS)
    torch.testing.assert_close(longer[:, : found.shape[1]], found, atol=1e-4, rtol=1e-4)
    assert (longer[:, found.shape[1] :] == 0).all()


def test_a_frame_is_several_spectra_side_by_side() -> None:
    single, frames_B = LogMel(sample_rate=8000, frame_ms=10).eval()(waves(), LENGTHS)
    triple, fewer_B = LogMel(sample_rate=8000, frame_ms=30).eval()(waves(), LENGTHS)
    assert torch.equal(fewer_B, (frames_B + 2) // 3)
    assert torch.equal(triple[2, 1], single[2, 3:6].flatten())


def test_masks_hide_bands_and_times_in_training_only() -> None:
    plainly = LogMel(sample_rate=8000, frame_ms=10)
    masked = LogMel(sample_rate=8000, frame_ms=10, band_masks=2, band_width=8, time_masks=1, time_share=0.2)
    expected, frames_B = plainly(waves(), LENGTHS)
    assert torch.equal(masked.eval()(waves(), LENGTHS)[0], expected)
    masked.train()
    torch.manual_seed(0)
    found = torch.stack([masked(waves(), LENGTHS)[0][2, : frames_B[2]] for _ in range(50)])
    own = expected[2, : frames_B[2]]
    assert ((found == own) | (found == 0)).all()
    bands_N, times_N = (found == 0).all(1).sum(1), (found == 0).all(2).sum(1)
    assert 0 < bands_N.float().mean() < 16 and bands_N.max() <= 16, "at most two masks of eight bands"
    assert times_N.float().mean() > 0 and times_N.max() <= round(0.2 * len(own)), "at most a fifth of the spectra"
    torch.manual_seed(0)
    assert torch.equal(masked(waves(), LENGTHS)[0][2, : frames_B[2]], found[0]), "torch's global generator decides"


def test_features_are_whole_under_half_precision_and_shapes_on_the_meta_device() -> None:
    features = LogMel(sample_rate=8000).eval()
    expected, frames_B = features(waves(), LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(waves(), LENGTHS)[0], expected)
    found, meta_B = features.to("meta")(waves().to("meta"), LENGTHS.to("meta"))
    assert (found.shape, meta_B.shape) == (expected.shape, frames_B.shape)


def test_settings_that_cannot_be_are_told() -> None:
    with pytest.raises(ConfigError, match=r"not a whole number of samples at dataset\.sample_rate=22050"):
        LogMel(sample_rate=22_050)
    with pytest.raises(ConfigError, match="not a multiple"):
        LogMel(sample_rate=8000, frame_ms=25)
    with pytest.raises(ConfigError, match="leave a band empty"):
        LogMel(sample_rate=8000, mels=200)
