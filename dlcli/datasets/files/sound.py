"""Sound files as waveforms: decoded by soundfile, mixed to mono, resampled. Needs neither torch nor a data set."""

from __future__ import annotations

import io
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlcli.errors import DataError, EnvironmentFault, printable

SCALE = 32_768  # of int16, for numbers in [-1, 1]
LARGEST_SAMPLES = 2**28  # in all channels: 1.5 hours of stereo at 25 kHz
ENDINGS = (".wav", ".flac", ".ogg", ".mp3")


class Sound(NamedTuple):
    """samples: (n,) int16. sample_rate, channels: as they were in the file."""

    samples: np.ndarray
    sample_rate: int
    channels: int


def decode_sound(data: bytes, sample_rate: int) -> Sound:
    """A sound file as mono int16 at `sample_rate`. Raises DataError, with a clause, if it is not a sound file."""
    soundfile = import_soundfile()
    if not data:
        raise DataError("is empty")
    check_riff(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames * file.channels > LARGEST_SAMPLES:
                raise DataError(f"is longer than {LARGEST_SAMPLES:,} samples")
            rate, channels = int(file.samplerate), int(file.channels)
            if (file.subtype, rate, channels) == ("PCM_16", sample_rate, 1):
                return Sound(file.read(dtype="int16"), rate, channels)
            samples_TC = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"cannot be read: {printable(error.error_string.rstrip('.'))}") from error
    if not np.isfinite(samples_TC).all():
        raise DataError("holds numbers that are not finite")
    return Sound(to_int16(resampled(samples_TC.mean(1), rate, sample_rate)), rate, channels)


def check_riff(data: bytes) -> None:
    """Raise DataError for a WAV that is shorter than its header says: otherwise its end would silently be missing.

    Programs that write to a pipe leave the size at 0 or at its largest.
    """
    said = int.from_bytes(data[4:8], "little") + 8
    if data[:4] == b"RIFF" and len(data) < said < 2**31:
        raise DataError(f"is cut off: {len(data):,} bytes of {said:,}")


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """(n,) float32 at `wanted` Hz, by a polyphase filter."""
    if rate == wanted or not len(samples):
        return samples
    from scipy.signal import resample_poly

    divisor = gcd(rate, wanted)
    return resample_poly(samples, wanted // divisor, rate // divisor)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """int16 from numbers in [-1, 1]; louder ones are clipped."""
    return np.clip(np.round(samples * SCALE), -SCALE, SCALE - 1).astype(np.int16)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises DataError, with a clause."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error


def import_soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its libsndfile cannot be loaded
        raise EnvironmentFault(
            f"recordings are read with soundfile, which is missing ({error})", hint="pip install soundfile"
        ) from error
    return soundfile
