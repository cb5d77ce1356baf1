"""Connectionist temporal classification (Graves et al. 2006): text from recordings, without times of characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.tasks.metrics.ctc_decoding import BLANK, Reading, beam_search, edit_distance, greedy
from dlcli.tasks.metrics.statistics import Sums
from dlcli.tasks.task import Task, Values


class CTC(Task):
    """-log p(transcript | recording) per character, summed over all alignments of the transcript with the frames.

    A batch has `inputs`, the model's arguments, targets (B, U) int64 and target_lengths (B,) int64; the model gives
    logits (B, F, V), the blank first, and the frames (B,) of each recording. A transcript with more characters than
    frames cannot be aligned: its loss is 0 (the readers leave such recordings out).
    decoding: "greedy" or "beam", for the scores; beam_size: readings that the search keeps.
    """

    def __init__(self, model: nn.Module, *, decoding: str = "greedy", beam_size: int = 8):
        super().__init__()
        if decoding not in ("greedy", "beam"):
            raise ConfigError(f"task.decoding={decoding} is not known", hint="task.decoding=greedy or beam")
        self.model, self.decoding, self.beam_size = model, decoding, beam_size

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        loss = self.losses(batch, *self.read(*batch.inputs)).mean()
        return loss, {"loss": loss.detach()}

    def read(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, F, V) float32 and frames (B,)."""
        logits_BFV, frames_B = self.model(*inputs)
        return logits_BFV.float().log_softmax(2), frames_B

    def losses(self, batch: Any, log_probs_BFV: Tensor, frames_B: Tensor) -> Tensor:
        """The loss (B,) float32, each divided by its number of characters."""
        loss_B = F.ctc_loss(  # on a GPU it reads the lengths, and waits for the device
            log_probs_BFV.transpose(0, 1),
            batch.targets,
            frames_B,
            batch.target_lengths,
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        return loss_B / batch.target_lengths.clamp(min=1)

    def statistics(self, source: Iterable[Any]) -> Sums:
        """cer: edits over characters of all references; accuracy: recordings whose whole text is right; loss."""
        losses: list[Tensor] = []
        counts: list[tuple[int, int]] = []  # edits and characters of each recording
        for batch in source:
            log_probs_BFV, frames_B = self.read(*batch.inputs)
            losses.append(self.losses(batch, log_probs_BFV, frames_B).double().cpu())
            heard = self.decode(log_probs_BFV, frames_B)
            counts += [(edit_distance(h, said), len(said)) for h, said in zip(heard, references(batch), strict=True)]
        edits_N, characters_N = torch.tensor(counts, dtype=torch.float64).T
        means = {"loss": torch.cat(losses), "accuracy": (edits_N == 0).double()}
        return Sums({"edits": edits_N, "characters": characters_N}, error_rate, means)

    def decode(self, log_probs_BFV: Tensor, frames_B: Tensor) -> list[list[int]]:
        if self.decoding == "greedy":
            return greedy(log_probs_BFV, frames_B)
        return [list(readings[0][0]) for readings in self.search(log_probs_BFV, frames_B, self.beam_size)]

    def search(self, log_probs_BFV: Tensor, frames_B: Tensor, width: int) -> list[list[Reading]]:
        """Up to `width` readings of each recording, the most probable first."""
        log_probs = log_probs_BFV.cpu().double().numpy()
        return [beam_search(log_probs[i, :n], width) for i, n in enumerate(frames_B.tolist())]

    @torch.no_grad()
    def transcribe(self, *inputs: Tensor, top: int = 1, width: int | None = None) -> list[list[Reading]]:
        """The `top` readings of each recording that a beam search finds, and the logarithms of their probabilities.

        width: readings that the search keeps, instead of `beam_size`.
        """
        return [readings[:top] for readings in self.search(*self.read(*inputs), width or max(self.beam_size, top))]

    @torch.no_grad()
    def transcribe_greedily(self, *inputs: Tensor) -> list[list[Reading]]:
        """One reading of each recording, from the likeliest character of every frame, and the log-probability of its
        text, summed over all alignments as in a beam search.
        """
        log_probs_BFV, frames_B = self.read(*inputs)
        found = []
        for i, ids in enumerate(greedy(log_probs_BFV, frames_B)):
            nats = F.ctc_loss(
                log_probs_BFV[i, : frames_B[i], None],
                torch.tensor([ids], dtype=torch.long, device=log_probs_BFV.device),
                frames_B[i : i + 1],
                torch.tensor([len(ids)], device=log_probs_BFV.device),
                blank=BLANK,
                reduction="sum",
            )
            found.append([(tuple(ids), -nats.item())])
        return found


def error_rate(sums: Mapping[str, Tensor]) -> dict[str, float]:
    return {"cer": sums["edits"].item() / max(1, sums["characters"].item())}


def references(batch: Any) -> list[list[int]]:
    """The transcripts without their padding."""
    lengths = batch.target_lengths.tolist()
    return [row[:length] for row, length in zip(batch.targets.tolist(), lengths, strict=True)]
