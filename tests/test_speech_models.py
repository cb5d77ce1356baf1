"""Recognisers: frames and shapes, blind to padding, and equal to what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dlcli.config import compose_command
from dlcli.config.folders import packaged_conf
from dlcli.errors import ConfigError
from dlcli.models.conformer import Conformer, ConformerBlock, Convolution
from dlcli.models.log_mel import LogMel
from dlcli.models.speech_lstm import BothWays, SpeechLSTM, turned
from dlcli.training import build
from dlcli.training.allow_list import Builder

LENGTHS = torch.tensor([1_700, 81, 3_999, 1])
MODELS: dict[str, Callable[..., Any]] = {
    "lstm": partial(SpeechLSTM, hidden_size=16),
    "conformer": partial(Conformer, hidden_size=16, num_heads=2, ffn_size=32, num_layers=2),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


def waves(longest: int = 3_999) -> Tensor:
    noise = torch.rand(4, longest, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return noise.masked_fill(torch.arange(longest) >= LENGTHS[:, None], 0.0)


def recognizer(make: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    return make(features=LogMel(sample_rate=8000, mels=20), num_tokens=7).eval()


@every_model
def test_the_answer_does_not_depend_on_the_padding(make: Callable[..., Any]) -> None:
    network = recognizer(make)
    logits_BFV, frames_B = network(waves(), LENGTHS)
    assert torch.equal(frames_B, LENGTHS // 160 + 1) and logits_BFV.shape == (4, frames_B.max(), 7)
    longer_BFV, _ = network(F.pad(waves(), (0, 4_000)), LENGTHS)
    for i, length in enumerate(LENGTHS.tolist()):
        alone_BFV, (num_frames,) = network(waves()[i : i + 1, :length], LENGTHS[i : i + 1])
        for found in (logits_BFV, longer_BFV):
            torch.testing.assert_close(found[i, :num_frames], alone_BFV[0], atol=1e-4, rtol=1e-4)


@every_model
def test_padding_gives_no_gradient_in_training(make: Callable[..., Any]) -> None:
    """A loss of the first recording sees nothing of the others, nor of what stands behind its own end."""
    network = recognizer(partial(make, dropout=0.0)).train()
    grads = []
    for batch, lengths in ((waves()[:1, :1_700], LENGTHS[:1]), (F.pad(waves(), (0, 900)), LENGTHS)):
        network.zero_grad()
        logits_BFV, frames_B = network(batch, lengths)
        logits_BFV[0, : frames_B[0]].log_softmax(1)[:, 3].sum().backward()
        grads.append([p.grad.clone() for p in network.parameters()])
    for alone, among in zip(*grads, strict=True):
        torch.testing.assert_close(alone, among, atol=1e-3, rtol=1e-3)


@every_model
def test_a_frame_knows_what_is_said_before_and_after_it(make: Callable[..., Any]) -> None:
    network = recognizer(make)
    expected = network(waves(), LENGTHS)[0][2]
    for changed_part in (slice(0, 800), slice(3_200, 3_999)):
        changed = waves()
        changed[2, changed_part] = 0.0
        assert not torch.allclose(network(changed, LENGTHS)[0][2, 12], expected[12], atol=1e-4)


def test_both_ways_is_a_packed_bidirectional_lstm() -> None:
    torch.manual_seed(0)
    ours, theirs = BothWays(5, 8).double(), nn.LSTM(5, 8, batch_first=True, bidirectional=True).double()
    for name, weight in ours.ahead.named_parameters():
        getattr(theirs, name).data.copy_(weight.data)
        getattr(theirs, f"{name}_reverse").data.copy_(getattr(ours.back, name).data)
    lengths, x_BFD = torch.tensor([6, 1, 4]), torch.randn(3, 6, 5).double()
    packed = pack_padded_sequence(x_BFD, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    is_real = (torch.arange(6) < lengths[:, None])[:, :, None]
    torch.testing.assert_close(ours(x_BFD, turned(lengths, 6)) * is_real, expected)


def test_the_reference_layers_are_the_experiments() -> None:
    networks = {}
    for name in ("spoken_digits", "spoken_digits_conformer"):
        tree = compose_command([name]).tree
        networks[name] = build.build_networks(Builder.for_search([packaged_conf()]), tree["model"])["model"]
    lstm, conformer = networks["spoken_digits"], networks["spoken_digits_conformer"]
    assert lstm.dropout.p == 0.2 and len(lstm.lstms) == 2 and lstm.head.out_features == 16
    assert len(conformer.blocks) == 3 and conformer.features.size == 80


def test_a_conformer_block_adds_two_half_feed_forwards() -> None:
    """With attention and convolution silenced, section 2.4 leaves x + 1/2 FFN, twice, normalised."""
    torch.manual_seed(0)
    block, x_BFD = ConformerBlock(8, 2, 16, 3, 0.0), torch.randn(2, 5, 8)
    for out in (block.attention.out, block.convolution.out):
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
    half = x_BFD + 0.5 * block.first(block.norm1(x_BFD))
    expected = block.norm5(half + 0.5 * block.last(block.norm4(half)))
    torch.testing.assert_close(block(x_BFD, torch.ones(2, 1, 1, 5, dtype=torch.bool)), expected)


def test_a_convolution_without_a_middle_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel=8 has no middle"):
        Convolution(8, 8)
