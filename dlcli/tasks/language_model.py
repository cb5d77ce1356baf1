"""Language model: the next token of a text from those before it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.tasks.task import Task, Values


class LanguageModel(Task):
    """Cross-entropy, a mean over tokens.

    A batch has tokens (B, L) int64; targets (B, L) int64, below 0 where there is none; characters (B,) int64, which the
    targets cover; and num_targets. The model gives logits (B, L, V).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        loss = self.summed(batch) / batch.num_targets
        return loss, {"loss": loss.detach()}

    def summed(self, batch: Any) -> Tensor:
        """Cross-entropy of all targets together, in nats: () float32."""
        logits_BLV = self.model(*batch.inputs)
        return F.cross_entropy(logits_BLV.float().flatten(0, 1), batch.targets.flatten(), reduction="sum")

    def evaluate(self, source: Iterable[Any], **_: Any) -> dict[str, float]:
        """Scores of the whole stream, summed in float64: loss, in nats per token, and bits per character.

        Bits per character do not depend on how the text was cut into tokens: they can be compared across tokenizers.
        They get no interval: the windows of one text are not independent examples, so that an interval drawn from them
        would be too narrow.
        """
        nats, num_targets, characters = [], 0, []
        for batch in source:
            nats.append(self.summed(batch).double())
            characters.append(batch.characters.sum())
            num_targets += batch.num_targets
        total = torch.stack(nats).sum().item()
        bits = total / math.log(2)
        return {"bits_per_character": bits / torch.stack(characters).sum().item(), "loss": total / num_targets}
