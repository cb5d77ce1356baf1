"""Log-mel features of recordings, computed on the device: short spectra, mel bands, logarithm, masks in training.

Shapes: B recordings, T samples of the longest, F frames, M mel bands, K bins of a spectrum (fft / 2 + 1).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import ConfigError

FLOOR = 1e-6  # added to the power before the logarithm: quieter sounds are silence


class LogMel(nn.Module):
    """Waves (B, T) float32 in [-1, 1], zero after each end, and lengths (B,) -> features (B, F, M), frames (B,).

    Spectra of `window_ms` every `hop_ms`, the first centred on the first sample; `frame_ms / hop_ms` of them side by
    side are one frame. A recording of n samples has n // (samples of frame_ms) + 1 frames of M = mels * frame_ms /
    hop_ms numbers; frames after its end are zero. normalise: each band of each recording has mean 0 and variance 1
    over its own frames.

    In training, bands and times are hidden, as in SpecAugment (Park et al. 2019, section 2, without the warp): each
    mask hides up to `band_width` bands, or up to `time_share` of a recording's spectra.
    """

    window_T: Tensor
    filters_KM: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        mels: int = 40,
        window_ms: int = 25,
        hop_ms: int = 10,
        frame_ms: int = 20,
        normalise: bool = True,
        band_masks: int = 0,
        band_width: int = 8,
        time_masks: int = 0,
        time_share: float = 0.1,
    ):
        super().__init__()
        self.hop, self.stack = whole_samples("hop_ms", hop_ms, sample_rate), frame_ms // hop_ms
        if frame_ms % hop_ms:
            message = f"dataset.frame_ms={frame_ms} is not a multiple of model.features.hop_ms={hop_ms}"
            raise ConfigError(message, hint=f"dataset.frame_ms={hop_ms * max(1, self.stack)}")
        window = whole_samples("window_ms", window_ms, sample_rate)
        self.fft = 2 ** (window - 1).bit_length()
        self.normalise, self.mels, self.size = normalise, mels, mels * self.stack
        self.band_masks, self.band_width, self.time_masks, self.time_share = (
            band_masks, band_width, time_masks, time_share,
        )  # fmt: skip
        self.register_buffer("window_T", torch.hann_window(window), persistent=False)
        filters = torch.from_numpy(mel_filters(sample_rate, self.fft, mels)).float()
        self.register_buffer("filters_KM", filters, persistent=False)

    def forward(self, waves_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        spectra_B = lengths_B // self.hop + 1
        with whole_precision(waves_BT.device):
            features_BFM = (self.power(waves_BT.float()) @ self.filters_KM + FLOOR).log()
        is_real_BF1 = (torch.arange(features_BFM.shape[1], device=lengths_B.device) < spectra_B[:, None])[:, :, None]
        if self.normalise:
            features_BFM = normalised(features_BFM, is_real_BF1)
        if self.training:
            features_BFM = self.hide(features_BFM, spectra_B)
        return self.stacked(features_BFM.masked_fill(~is_real_BF1, 0.0)), (spectra_B - 1) // self.stack + 1

    def power(self, waves_BT: Tensor) -> Tensor:
        """Squared magnitudes (B, F, K). The waves continue with zeros, so padding changes nothing before it."""
        spectra_BKF = torch.stft(
            waves_BT,
            self.fft,
            hop_length=self.hop,
            win_length=len(self.window_T),
            window=self.window_T,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return torch.view_as_real(spectra_BKF).square().sum(3).transpose(1, 2)

    def hide(self, features_BFM: Tensor, spectra_B: Tensor) -> Tensor:
        """Masks filled with zero, which is the mean of a normalised band. Draws from torch's global generator."""
        B, _, num_mels = features_BFM.shape
        longest = (spectra_B * self.time_share)[:, None]
        for count, size_B1, width_B1, dim in (
            (self.band_masks, torch.full_like(longest, num_mels), torch.full_like(longest, self.band_width), 2),
            (self.time_masks, spectra_B[:, None].float(), longest, 1),
        ):
            if not count:
                continue
            widths_BN = torch.rand(B, count, device=features_BFM.device) * width_B1
            starts_BN = torch.rand(B, count, device=features_BFM.device) * (size_B1 - widths_BN).clamp(min=0)
            place_N = torch.arange(features_BFM.shape[dim], device=features_BFM.device)[None, None]
            starts_BN1, ends_BN1 = starts_BN.round()[:, :, None], (starts_BN + widths_BN).round()[:, :, None]
            is_hidden = ((place_N >= starts_BN1) & (place_N < ends_BN1)).any(1)
            features_BFM = features_BFM.masked_fill(is_hidden.unsqueeze(3 - dim), 0.0)
        return features_BFM

    def stacked(self, features_BFM: Tensor) -> Tensor:
        """`stack` spectra side by side as one frame; the last one is filled up with zeros."""
        missing = -features_BFM.shape[1] % self.stack
        return F.pad(features_BFM, (0, 0, 0, missing)).unflatten(1, (-1, self.stack)).flatten(2)


def whole_precision(device: torch.device) -> AbstractContextManager[Any]:
    """float32 also under autocast: powers span more than half precision resolves. The meta device has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def normalised(features_BFM: Tensor, is_real_BF1: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the real frames of each band of each recording."""
    count_B11 = is_real_BF1.sum(1, keepdim=True)
    mean_B1M = features_BFM.masked_fill(~is_real_BF1, 0.0).sum(1, keepdim=True) / count_B11
    centred_BFM = (features_BFM - mean_B1M).masked_fill(~is_real_BF1, 0.0)
    variance_B1M = centred_BFM.square().sum(1, keepdim=True) / count_B11
    return centred_BFM * (variance_B1M + 1e-5).rsqrt()


def mel_filters(sample_rate: int, fft: int, mels: int) -> np.ndarray:
    """Triangles of height 1, evenly wide on the mel scale 2595 log10(1 + Hz / 700) of HTK: (K, M) float64."""
    bins_K = np.arange(fft // 2 + 1) * (sample_rate / fft)
    edges_mel = np.linspace(0.0, 2595 * np.log10(1 + sample_rate / 2 / 700), mels + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    rising_KM = (bins_K[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling_KM = (edges[2:] - bins_K[:, None]) / (edges[2:] - edges[1:-1])
    filters_KM = np.maximum(0.0, np.minimum(rising_KM, falling_KM))
    if not filters_KM.any(0).all():
        message = f"model.features.mels={mels}: spectra of {fft} samples at {sample_rate} Hz leave a band empty"
        raise ConfigError(message, hint="Give fewer mels, or a longer model.features.window_ms.")
    return filters_KM


def whole_samples(name: str, ms: int, sample_rate: int) -> int:
    """Samples in so many milliseconds. Raises ConfigError if they are not a whole number."""
    samples, rest = divmod(ms * sample_rate, 1000)
    if rest or not samples:
        message = f"model.features.{name}={ms} is not a whole number of samples at dataset.sample_rate={sample_rate}"
        raise ConfigError(message, hint="Give dataset.sample_rate=16000; recordings are resampled to it.")
    return samples
