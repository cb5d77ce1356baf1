"""Random numbers that are a function of a key: no generator and no state; the same on every device and in any batch.

splitmix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators") in int64 arithmetic, which
wraps around as uint64 does. An example's key is made of (seed, epoch, index); each transform has its own streams.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def sample_keys(seed: int, epoch: int, index_B: Tensor) -> Tensor:
    """(B,) int64 keys of the examples `index_B` (int64) in this epoch of a run with this seed."""
    base = splitmix((splitmix(seed & MASK) + epoch) & MASK)
    return splitmix_tensor(index_B + signed(base))


def keys_of_view(keys_B: Tensor, view: int) -> Tensor:
    """(B,) int64 keys of another view of the same examples. view: from 1 on."""
    return splitmix_tensor(keys_B + signed(splitmix(view)))


def mirror_turns(seed: int, epoch: int, index_B: Tensor) -> Tensor:
    """(B,) bool: which examples are mirrored now: each in every other epoch; seed and index decide the first."""
    first_B = shifted(sample_keys(seed, 0, index_B), 63)
    return (first_B + epoch) % 2 == 1


def uniform(keys_B: Tensor, streams_K: Tensor) -> Tensor:
    """(B, K) float64 in [0, 1), in steps of 2**-53: stream k of each key. `streams_K` comes from `streams`."""
    words = splitmix_tensor(keys_B[:, None] + streams_K)
    return shifted(words, 11).to(torch.float64).mul_(2.0**-53)


def streams(*numbers: int) -> Tensor:
    """(K,) int64 offsets that `uniform` adds to a key: far apart, so that no two streams of nearby keys meet."""
    return torch.tensor([signed(splitmix((number + 1) * GOLDEN & MASK)) for number in numbers], dtype=torch.int64)


def splitmix(word: int) -> int:
    """The same function on a Python integer in [0, 2**64)."""
    word = (word + GOLDEN) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def splitmix_tensor(words: Tensor) -> Tensor:
    words = words + signed(GOLDEN)
    words = (words ^ shifted(words, 30)) * signed(0xBF58476D1CE4E5B9)
    words = (words ^ shifted(words, 27)) * signed(0x94D049BB133111EB)
    return words ^ shifted(words, 31)


def shifted(words: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: int64's own would copy the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
