"""Translation: one sentence from another, token by token.

Shapes: B sentences, W beams of each, N = B * W, Q tokens written, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import EnvironmentFault
from dlcli.tasks.metrics.statistics import Sums
from dlcli.tasks.task import Task, Values

PAD, UNK, BOS, EOS = range(4)  # the same in every vocabulary


class Translation(Task):
    """Cross-entropy, a mean over target tokens, with label smoothing (Szegedy et al. 2016, section 7).

    A batch has `inputs`, the model's arguments; source (B, K) and source_lengths (B,) int64; labels (B, Q) int64, below
    0 where there is none; num_targets; texts, which decodes tokens and knows the references. The model gives logits
    (B, Q, V), and begins and extends translations; see Seq2SeqTransformer.
    beam_size: translations that the search keeps at each step; 1: always the likeliest token.
    """

    def __init__(self, model: nn.Module, *, label_smoothing: float = 0.1, beam_size: int = 1):
        super().__init__()
        self.model = model
        self.label_smoothing, self.beam_size = label_smoothing, beam_size

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        loss = self.summed(batch, self.label_smoothing) / batch.num_targets
        return loss, {"loss": loss.detach()}

    def summed(self, batch: Any, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of all labels together: () float32."""
        logits_BQV = self.model(*batch.inputs)
        logits, labels = logits_BQV.float().flatten(0, 1), batch.labels.flatten()
        return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)

    def statistics(self, source: Iterable[Any]) -> Sums:
        """bleu, 0 to 100, of the whole set, as sacrebleu counts it on plain text; loss: nats per token, unsmoothed."""
        nats, num_targets = [], 0
        written: list[str] = []
        references: list[str] = []
        for batch in source:
            nats.append(self.summed(batch).double())
            num_targets += batch.num_targets
            tokens_BWQ = self.translate(batch.source, batch.source_lengths, beam_size=self.beam_size)[0]
            written += [batch.texts.decode(tokens) for tokens in tokens_BWQ[:, 0].tolist()]
            references += [batch.texts.references[row] for row in batch.index.tolist()]
        loss = torch.stack(nats).sum().item() / num_targets
        return Sums({"counts": bleu_counts(written, references)}, bleu, others={"loss": loss})

    @torch.no_grad()
    def translate(self, source_BK: Tensor, lengths_B: Tensor, *, beam_size: int = 1) -> tuple[Tensor, Tensor]:
        """Tokens (B, W, Q) int64, 0 after each end, without <bos> and <eos>; scores (B, W), the best first."""
        return beam_search(self.model, source_BK, lengths_B, beam_size=beam_size)


def beam_search(network: Any, source_BK: Tensor, lengths_B: Tensor, *, beam_size: int) -> tuple[Tensor, Tensor]:
    """The `beam_size` translations of each source that were the likeliest at every step; see Translation.translate.

    The scores are log-probabilities divided by the length penalty ((5 + Q) / 6) ** 0.6 of Wu et al. (2016, eq. 14). A
    translation has at most twice the source's tokens plus ten: this does not depend on the rest of the batch.
    """
    device, num_sources = source_BK.device, len(source_BK)
    rows_N = torch.arange(num_sources, device=device).repeat_interleave(beam_size)
    state = network.begin(source_BK, lengths_B).at(rows_N)
    limit_B1 = (2 * lengths_B + 10)[:, None]
    written_NQ = torch.full((num_sources * beam_size, 1), BOS, device=device)
    total_BW = torch.full((num_sources, beam_size), -math.inf, device=device)
    total_BW[:, 0] = 0.0  # all beams begin alike: only the first counts
    is_done_BW = torch.zeros(num_sources, beam_size, dtype=torch.bool, device=device)
    while not bool(is_done_BW.all()):  # waits for the device, which is fine outside training
        logits_NV, state = network.extend(written_NQ[:, -1], state)
        gains_BWV = step_gains(logits_NV.float()).unflatten(0, (num_sources, beam_size))
        gains_BWV = gains_BWV.masked_fill(is_done_BW[:, :, None], -math.inf)
        gains_BWV[:, :, PAD] = gains_BWV[:, :, PAD].where(~is_done_BW, 0.0)  # a finished translation stays as it is
        total_BW, place_BW = (total_BW[:, :, None] + gains_BWV).flatten(1).topk(beam_size)
        from_BW, token_BW = place_BW // logits_NV.shape[1], place_BW % logits_NV.shape[1]
        rows_N = (torch.arange(num_sources, device=device)[:, None] * beam_size + from_BW).flatten()
        state = state.at(rows_N) if beam_size > 1 else state
        written_NQ = torch.cat([written_NQ[rows_N], token_BW.flatten()[:, None]], 1)
        is_done_BW = is_done_BW.gather(1, from_BW) | (token_BW == EOS) | (written_NQ.shape[1] - 1 >= limit_B1)
    return ranked(written_NQ[:, 1:].unflatten(0, (num_sources, beam_size)), total_BW)


def step_gains(logits_NV: Tensor) -> Tensor:
    """Log-probabilities (N, V), -inf for tokens that no translation may hold."""
    logits_NV = logits_NV.clone()
    logits_NV[:, [PAD, UNK, BOS]] = -math.inf
    return logits_NV.log_softmax(1)


def ranked(tokens_BWQ: Tensor, total_BW: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted by log-probability over the length penalty, which counts <eos>; the tokens are returned without it."""
    lengths_BW = (tokens_BWQ != PAD).sum(2)
    score_BW, order_BW = (total_BW / ((5 + lengths_BW) / 6) ** 0.6).sort(dim=1, descending=True, stable=True)
    tokens_BWQ = tokens_BWQ.gather(1, order_BW[:, :, None].expand_as(tokens_BWQ))
    return tokens_BWQ.masked_fill(tokens_BWQ == EOS, PAD), score_BW


def bleu_counts(written: Sequence[str], references: Sequence[str]) -> Tensor:
    """The counts for BLEU, with sacrebleu's own tokenization (Post 2018). (N, 10) float64, for each sentence: right
    n-grams and written n-grams of one to four words, written words, words of the reference.
    """
    corpus_score = _sacrebleu()().corpus_score
    found = [corpus_score([ours], [[theirs]]) for ours, theirs in zip(written, references, strict=True)]
    rows = [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found]
    return torch.tensor(rows, dtype=torch.float64)


def bleu(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """BLEU of the whole corpus, 0 to 100 (Papineni et al. 2002). sums["counts"]: (10,), `bleu_counts` added up."""
    counts = [int(count) for count in sums["counts"].tolist()]
    return {"bleu": float(_sacrebleu().compute_bleu(counts[:4], counts[4:8], *counts[8:], smooth_method="exp").score)}


def _sacrebleu() -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise EnvironmentFault(
            "translations are scored with the package sacrebleu, which is missing", hint="pip install sacrebleu"
        ) from error
    return BLEU
