"""CTC: loss and decoding against every alignment there is, edit distance against its definition, scores of a set."""

from __future__ import annotations

import itertools
from collections import defaultdict
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.tasks.ctc import CTC
from dlcli.tasks.metrics.ctc_decoding import beam_search, collapse, edit_distance, greedy


class Batch(NamedTuple):
    scores: Tensor  # (B, F, V), which the network gives back
    frames: Tensor
    targets: Tensor
    target_lengths: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.scores, self.frames


class Given(nn.Module):
    """A recogniser whose logits are its inputs."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs


def random_scores(frames: int, characters: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(frames, characters, generator=torch.Generator().manual_seed(seed))


def by_alignments(log_probs_FV: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of every text: the sum over all V^F alignments that collapse to it."""
    frames, characters = log_probs_FV.shape
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(characters), repeat=frames):
        text = tuple(c for c, _ in itertools.groupby(path) if c != 0)
        found[text] += float(np.exp(log_probs_FV[range(frames), path].sum()))
    return found


def test_a_greedy_reading_has_the_probability_of_its_text_over_all_alignments() -> None:
    """Of one that is empty too, and of recordings of unlike length."""
    scores = torch.stack([random_scores(5, 3, seed) for seed in range(4)])
    scores[3, :, 0] += 9.0  # blanks alone
    frames = torch.tensor([5, 4, 3, 5])
    found = CTC(Given()).transcribe_greedily(scores, frames)
    for i, ((text, nats),) in enumerate(found):
        expected = by_alignments(scores[i, : frames[i]].double().log_softmax(1).numpy())
        assert np.exp(nats) == pytest.approx(expected[text], rel=1e-5)
    assert found[3][0][0] == () and any(len(text) > 1 for ((text, _),) in found)


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_every_text_and_its_probability(seed: int) -> None:
    log_probs_FV = random_scores(5, 3, seed).double().log_softmax(1).numpy()
    expected = by_alignments(log_probs_FV)
    assert sum(expected.values()) == pytest.approx(1)
    found = beam_search(log_probs_FV, 1_000)
    assert {text: np.exp(p) for text, p in found} == pytest.approx(dict(expected))
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)


def test_a_narrow_beam_keeps_the_best_text() -> None:
    right = 0
    for seed in range(20):
        log_probs_FV = random_scores(6, 3, seed).double().log_softmax(1).numpy()
        expected = by_alignments(log_probs_FV)
        right += beam_search(log_probs_FV, 4)[0][0] == max(expected, key=expected.__getitem__)
    assert right >= 19, "a beam of 4 missed more than one of 20"


def test_the_beam_finds_what_the_best_path_misses() -> None:
    """The example of Graves 2012, figure 7.5: blank is the best in each frame, and yet `a` is the likelier text."""
    scores_FV = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert greedy(scores_FV[None], torch.tensor([2])) == [[]]
    (text, log_prob), (empty, _) = beam_search(scores_FV.double().numpy(), 2)
    assert text == (1,) and empty == () and np.exp(log_prob) == pytest.approx(0.64)


def test_repetitions_are_joined_and_a_blank_parts_twins() -> None:
    assert collapse([0, 1, 1, 0, 0, 2, 2, 2, 1]) == [1, 2, 1]
    assert collapse([1, 1, 0, 1]) == [1, 1]
    assert collapse([]) == []
    scores_BFV = nn.functional.one_hot(torch.tensor([[3, 3, 0, 3], [0, 2, 1, 1]]), 4).float()
    assert greedy(scores_BFV, torch.tensor([4, 2])) == [[3, 3], [2]], "frames behind the end say nothing"


def test_edit_distance_is_levenshteins() -> None:
    @cache
    def plain(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(plain(a[1:], b) + 1, plain(a, b[1:]) + 1, plain(a[1:], b[1:]) + (a[0] != b[0]))

    random = np.random.default_rng(0)
    for _ in range(200):
        a, b = (tuple(random.integers(0, 3, random.integers(0, 8)).tolist()) for _ in range(2))
        assert edit_distance(a, b) == plain(a, b)
    assert edit_distance([*b"kitten"], [*b"sitting"]) == 3


def test_the_loss_is_that_of_all_alignments_per_character() -> None:
    scores_BFV = torch.stack([random_scores(5, 3, 0), random_scores(5, 3, 1)])
    batch = Batch(scores_BFV, torch.tensor([5, 4]), torch.tensor([[1, 2], [2, 0]]), torch.tensor([2, 1]))
    log_probs_BFV = scores_BFV.double().log_softmax(2).numpy()
    first, second = by_alignments(log_probs_BFV[0]), by_alignments(log_probs_BFV[1, :4])
    expected = (-np.log(first[1, 2]) / 2 - np.log(second[(2,)])) / 2
    loss, values = CTC(Given()).loss(batch, "model")
    assert loss.item() == pytest.approx(expected, rel=1e-5) == values["loss"].item()  # type: ignore[union-attr]


def test_what_cannot_be_aligned_has_neither_loss_nor_gradient() -> None:
    scores_BFV = random_scores(2, 3)[None].requires_grad_()
    batch = Batch(scores_BFV, torch.tensor([2]), torch.tensor([[1, 1]]), torch.tensor([2]))  # twins need three frames
    loss, _ = CTC(Given()).loss(batch, "model")
    loss.backward()
    assert loss.item() == 0 and scores_BFV.grad is not None and (scores_BFV.grad == 0).all()


def spoken(*texts: list[int]) -> Tensor:
    """Scores (B, F, 5) of a recogniser that is sure of these texts, one frame a character."""
    longest = max(map(len, texts))
    paths = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    return 20.0 * nn.functional.one_hot(paths, 5)


@pytest.mark.parametrize("decoding", ["greedy", "beam"])
def test_scores_are_exact_over_the_whole_set(decoding: str) -> None:
    """Edits over all characters: no mean of the recordings' rates, and however the set is cut into batches."""
    heard = spoken([1, 2, 3, 4], [1, 3], [], [2, 1])
    targets = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0], [3, 0, 0, 0], [2, 1, 0, 0]])
    whole = Batch(heard, torch.tensor([4, 2, 1, 2]), targets, torch.tensor([4, 2, 1, 2]))
    task = CTC(Given(), decoding=decoding)
    scores = task.evaluate([whole])
    assert scores["cer"] == pytest.approx(2 / 9) and scores["accuracy"] == pytest.approx(2 / 4)
    cut = [Batch(*(part[i:j] for part in whole)) for i, j in ((0, 1), (1, 4))]
    assert task.evaluate(cut) == pytest.approx(scores)


def test_inserting_costs_too_so_that_the_rate_can_pass_one() -> None:
    batch = Batch(spoken([1, 2, 3]), torch.tensor([3]), torch.tensor([[4]]), torch.tensor([1]))
    assert CTC(Given()).evaluate([batch])["cer"] == 3


def test_readings_come_with_their_probabilities() -> None:
    scores_FV = random_scores(4, 3)
    (readings,) = CTC(Given(), beam_size=100).transcribe(scores_FV[None], torch.tensor([4]), top=3)
    best = sorted(by_alignments(scores_FV.double().log_softmax(1).numpy()).items(), key=lambda item: -item[1])[:3]
    assert [text for text, _ in readings] == [text for text, _ in best]
    assert [np.exp(p) for _, p in readings] == pytest.approx([p for _, p in best], rel=1e-5)


def test_an_unknown_decoding_is_refused() -> None:
    broken: Any = "viterbi"
    with pytest.raises(ConfigError, match="viterbi"):
        CTC(Given(), decoding=broken)
