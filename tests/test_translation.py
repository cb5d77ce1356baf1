"""Translation: decoding with a cache and beams against plain recomputation, exact scores, learning, resume."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.datasets.batches.records import Ragged, Records, ragged
from dlcli.datasets.batches.source import EvalSource, TrainSource
from dlcli.datasets.sentence_pairs import NO_TARGET, Texts, as_pairs, made_up
from dlcli.models.seq2seq import Seq2SeqTransformer
from dlcli.tasks.translation import BOS, EOS, PAD, UNK, Translation, beam_search, bleu, bleu_counts
from dlcli.training import loop

LENGTHS = torch.tensor([6, 2, 4])


every_norm = pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])


def small(num_tokens: int = 14, **more: Any) -> Seq2SeqTransformer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "ffn_size": 32} | more
    return Seq2SeqTransformer(num_tokens=num_tokens, **settings).double().eval()


def sources(longest: int = 6) -> Tensor:
    tokens = torch.randint(4, 14, (3, longest), generator=torch.Generator().manual_seed(0))
    return tokens.masked_fill(torch.arange(longest) >= LENGTHS[:, None], PAD)


def pairs(num: int = 10, **more: int) -> Records:
    torch.manual_seed(0)
    return made_up({"num_tokens": 14, "max_length": 6} | more, num)


# ------------------------------------------------------------------------------------------------------------- network


@every_norm
def test_a_later_token_changes_no_earlier_logit_but_the_source_does(pre_norm: bool) -> None:
    network, source, target = small(pre_norm=pre_norm), sources(), torch.randint(4, 14, (3, 7))
    changed = target.clone()
    changed[:, 4:] = 4 + (changed[:, 4:] - 3) % 10
    before, after = network(source, LENGTHS, target), network(source, LENGTHS, changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    other = source.clone()
    other[:, 0] = 4 + (other[:, 0] - 3) % 10
    assert not torch.isclose(network(other, LENGTHS, target), before).all(-1).any()


@every_norm
def test_padding_of_the_source_and_behind_the_target_changes_nothing(pre_norm: bool) -> None:
    network, source, target = small(pre_norm=pre_norm), sources(), torch.randint(4, 14, (3, 7))
    expected = network(source, LENGTHS, target)
    found = network(F.pad(source, (0, 5)), LENGTHS, F.pad(target, (0, 3)))
    torch.testing.assert_close(found[:, :7], expected)


@every_norm
def test_reading_on_from_the_state_is_reading_everything(pre_norm: bool) -> None:
    network, source, target = small(pre_norm=pre_norm), sources(), torch.randint(4, 14, (3, 7))
    expected = network(source, LENGTHS, target)
    state = network.begin(source, LENGTHS)
    for at in range(7):
        logits_BV, state = network.extend(target[:, at], state)
        torch.testing.assert_close(logits_BV, expected[:, at])


@every_norm
def test_attention_to_the_source_can_be_asked_for(pre_norm: bool) -> None:
    found = small(pre_norm=pre_norm).attention(sources(), LENGTHS, torch.randint(4, 14, (3, 7)))
    assert [weights.shape for weights in found] == [(3, 2, 7, 6)] * 2
    for weights in found:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 7, dtype=torch.float64))
        assert weights[1, :, :, 2:].count_nonzero() == 0, "to padding nothing"


@every_norm
def test_every_parameter_is_trained(pre_norm: bool) -> None:
    task = Translation(small(pre_norm=pre_norm))
    loss, _ = task.loss(pairs().batch(torch.arange(10)), "model")
    loss.backward()
    assert [name for name, p in task.named_parameters() if p.grad is None] == []


# ------------------------------------------------------------------------------------------------------------ decoding


def opinionated(seed: int = 1) -> Seq2SeqTransformer:
    """A random network that says different things, and ends."""
    network = small()
    torch.manual_seed(seed)
    nn.init.normal_(network.tokens.weight, std=0.7)
    return network


def log_probability(network: nn.Module, source: Tensor, tokens: list[int]) -> float:
    """Of a translation, <eos> included where it is there: by plain recomputation."""
    logits = network(source[None], torch.tensor([len(source)]), torch.tensor([[BOS, *tokens[:-1]]]))[0].clone()
    logits[:, [PAD, UNK, BOS]] = -math.inf
    return logits.log_softmax(1)[range(len(tokens)), tokens].sum().item()


def greedy(network: nn.Module, source: Tensor) -> list[int]:
    """Everything read again for every token."""
    written = [BOS]
    while written[-1] != EOS and len(written) - 1 < 2 * len(source) + 10:
        logits_V = network(source[None], torch.tensor([len(source)]), torch.tensor([written]))[0, -1].clone()
        logits_V[[PAD, UNK, BOS]] = -math.inf
        written.append(int(logits_V.argmax()))
    return [token for token in written[1:] if token != EOS]


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy_and_a_batch_changes_no_sentence(seed: int) -> None:
    network, source = opinionated(seed), sources()
    tokens_BWQ, _ = beam_search(network, source, LENGTHS, beam_size=1)
    found = [[token for token in row if token != PAD] for row in tokens_BWQ[:, 0].tolist()]
    assert found == [greedy(network, row[:length]) for row, length in zip(source, LENGTHS.tolist(), strict=True)]


def test_a_translation_ends_where_it_may_not_go_on() -> None:
    network = opinionated()
    with torch.no_grad():
        network.tokens.weight[EOS] = 0  # its logit is 0: there is always a likelier one
    tokens_BWQ, _ = beam_search(network, sources(), LENGTHS, beam_size=1)
    assert (tokens_BWQ != PAD).sum(2).flatten().tolist() == (2 * LENGTHS + 10).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_what_recomputation_says(seed: int) -> None:
    network, source = opinionated(seed), sources()
    tokens_BWQ, score_BW = beam_search(network, source, LENGTHS, beam_size=3)
    assert bool((score_BW[:, :-1] >= score_BW[:, 1:]).all()), "the best is first"
    for row, length in enumerate(LENGTHS.tolist()):
        for beam in range(3):
            tokens = [token for token in tokens_BWQ[row, beam].tolist() if token != PAD]
            if len(tokens) < 2 * length + 10:
                tokens.append(EOS)
            expected = log_probability(network, source[row, :length], tokens) / ((5 + len(tokens)) / 6) ** 0.6
            assert score_BW[row, beam].item() == pytest.approx(expected, rel=1e-4)


PROBABILITIES = {BOS: {4: 0.6, 5: 0.4}, 4: {EOS: 0.4, 5: 0.3, 4: 0.3}, 5: {EOS: 0.9, 4: 0.1}}


class Table(nn.Module):
    """A language of its own, tokens 4, 5 and <eos>: what comes next depends on the last token alone."""

    def begin(self, source: Tensor, lengths: Tensor) -> Any:
        return self

    def at(self, rows: Tensor) -> Any:
        return self

    def extend(self, tokens_N: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits = torch.full((len(tokens_N), 6), -1e4)
        for row, token in enumerate(tokens_N.tolist()):
            for after, probability in PROBABILITIES.get(token, {EOS: 1.0}).items():
                logits[row, after] = math.log(probability)
        return logits, state


def test_two_beams_find_what_greed_does_not() -> None:
    """4 is likelier at first (0.6), but "5 <eos>" (0.36) is likelier than "4 <eos>" (0.24)."""
    source, lengths = torch.tensor([[4, 4]]), torch.tensor([2])
    assert beam_search(Table(), source, lengths, beam_size=1)[0].tolist() == [[[4, 0]]]
    tokens, scores = beam_search(Table(), source, lengths, beam_size=2)
    assert tokens[0, 0, 0] == 5 and tokens[0, 0, 1:].count_nonzero() == 0
    assert scores[0, 0].item() == pytest.approx(math.log(0.36) / ((5 + 2) / 6) ** 0.6, rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_the_loss_is_the_mean_over_all_tokens_by_hand(batch_size: int) -> None:
    records, network = pairs(), small()
    source = EvalSource(records, torch.arange(10), batch_size=batch_size, device="cpu")
    nats = count = 0
    for row in range(10):
        batch = records.batch(torch.tensor([row]))
        log_QV = network(*batch.inputs)[0].log_softmax(1)
        nats -= sum(log_QV[at, label].item() for at, label in enumerate(batch.labels[0].tolist()))
        count += batch.labels.shape[1]
    assert loop.evaluate(Translation(network), source)["loss"] == pytest.approx(nats / count, rel=1e-6)


def test_label_smoothing_is_in_the_loss_that_is_trained_alone() -> None:
    batch, network = pairs().batch(torch.arange(10)), small()
    smooth, _ = Translation(network, label_smoothing=0.1).loss(batch, "model")
    log_BQV = network(*batch.inputs).log_softmax(2)
    counts = batch.labels != NO_TARGET
    right = log_BQV.gather(2, batch.labels.clamp(min=0)[:, :, None])[:, :, 0]
    expected = -(0.9 * right + 0.1 * log_BQV.mean(2))[counts].mean()
    assert smooth.item() == pytest.approx(expected.item(), rel=1e-6)


def test_batches_of_different_size_add_up_to_one() -> None:
    gradients = []
    for batch_size, accumulate in ((10, 1), (3, 4)):
        task = Translation(small(dropout=0.0))
        source = TrainSource(
            pairs(), torch.arange(10), batch_size=batch_size, accumulate=accumulate, seed=0, device="cpu"
        )
        next(loop.train(task, source.from_step(0), {"model": torch.optim.SGD(task.parameters(), lr=0.0)}))
        gradients.append([p.grad for p in task.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_bleu_is_sacrebleu_s_own() -> None:
    references = ["Ein Mann fährt Rad.", "Zwei Hunde rennen über das grüne Gras ."]
    assert scored(references, references) == pytest.approx(100)
    assert scored(["etwas ganz anderes", "nichts davon"], references) < 5
    # By hand: 11 of 12 words, 8 of 10 pairs, 6 of 8 triples, 4 of 6 fours; both 12 words long.
    written = ["Ein Mann fährt Rad.", "Zwei Hunde rennen über das grüne Feld"]
    assert scored(written, references) == pytest.approx(corpus_by_hand(written, references), rel=1e-6)
    from sacrebleu import corpus_bleu

    for texts in (written, references, ["", "Hund"], ["zwei Hunde rennen", "Ein Mann"]):
        assert scored(texts, references) == corpus_bleu(texts, [references]).score, "to the last digit"


def scored(written: list[str], references: list[str]) -> float:
    return bleu({"counts": bleu_counts(written, references).sum(0)})["bleu"]


def corpus_by_hand(written: list[str], references: list[str]) -> float:
    """Papineni et al. 2002; a full stop is a word of its own."""
    cut = [[text.replace(".", " .").split() for text in texts] for texts in (written, references)]
    logs = 0.0
    for n in range(1, 5):
        right = total = 0
        for ours, theirs in zip(*cut, strict=True):
            grams = [tuple(ours[i : i + n]) for i in range(len(ours) - n + 1)]
            left = [tuple(theirs[i : i + n]) for i in range(len(theirs) - n + 1)]
            total += len(grams)
            for gram in grams:
                if gram in left:
                    right += 1
                    left.remove(gram)
        logs += math.log(right / total) / 4
    sizes = [sum(map(len, texts)) for texts in cut]
    return 100 * math.exp(logs + min(0.0, 1 - sizes[1] / sizes[0]))


# ------------------------------------------------------------------------------------------------------------ learning


def turned_round(num: int) -> tuple[Records, list[list[int]]]:
    """Random sentences of 1 to 5 tokens, to be written in the other direction; and what is right."""
    source = pairs(num, max_length=5).columns["source"]
    assert isinstance(source, Ragged)
    right = [row[row > EOS].flip(0).tolist() for row in source.take(torch.arange(num)).values]
    spelt = Texts(lambda ids: " ".join(map(str, ids)), [" ".join(map(str, ids)) for ids in right])
    target = ragged([[BOS, *ids, EOS] for ids in right], np.int32)
    return as_pairs(source, target, spelt, ""), right


def test_it_learns_to_turn_sentences_round() -> None:
    """Better than copying, which is right for what reads the same both ways."""
    records, wanted = turned_round(600)
    task = Translation(small(hidden_size=32, num_layers=1, ffn_size=64).float())
    train = TrainSource(records, torch.arange(500), batch_size=50, accumulate=1, seed=0, device="cpu")
    held_out = EvalSource(records, torch.arange(500, 600), batch_size=100, device="cpu")
    training = loop.train(task, train.from_step(0), {"model": torch.optim.AdamW(task.parameters(), 4e-3)})
    for _ in range(250):
        next(training)
    task.eval()
    (batch,) = held_out
    told = task.translate(batch.source, batch.source_lengths)[0][:, 0].tolist()
    rows = batch.index.tolist()
    found = sum([t for t in told[i] if t != PAD] == wanted[row] for i, row in enumerate(rows)) / 100
    copied = sum(wanted[row] == wanted[row][::-1] for row in rows) / 100
    assert found > copied + 0.3, (found, copied)
