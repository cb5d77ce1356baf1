"""Supervised contrastive learning (Khosla et al. 2020, arXiv 2004.11362): images of one class are drawn together.

Letters: B images, K classes; an embedding has K numbers too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.tasks.classification import Classification
from dlcli.tasks.task import Answers, Source, Values


class SupervisedContrastive(Classification):
    """The loss L_out (eq. 2 of the paper) of the network's K outputs, normalised to unit length: the embedding.

    K numbers are enough: the loss is lowest for a regular simplex with a class at each corner (Graf et al. 2021,
    arXiv 2102.08817, theorem 2), and one of K corners fits into K - 1 dimensions.

    views: how often each image is in its batch, differently augmented; once without augmentation. Classes are answered
    by prototypes, the moving mean of each class's embeddings (decay: the share that one batch leaves of it), with the
    logits cosine / temperature. No gradient goes through them. If weights are averaged (regularization.ema), the
    prototypes are still those of the raw weights: they are a moving mean themselves.
    """

    prototypes_KK: Tensor

    def __init__(
        self, model: nn.Module, *, num_classes: int, temperature: float = 0.1, views: int = 2, decay: float = 0.9
    ):
        super().__init__(model)
        self.temperature, self.views, self.decay = temperature, views, decay
        self.register_buffer("prototypes_KK", torch.zeros(num_classes, num_classes))
        self._sum_in_place: Callable[[Tensor], None] = lambda tensor: None

    def share(self, sum_in_place: Callable[[Tensor], None]) -> None:
        self._sum_in_place = sum_in_place

    def stream(self, source: Source, step: int) -> Iterator[list[Any]]:
        return source.from_step(step, views=self.views)

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        """With several ranks, each rank compares its own images only."""
        embeddings_BK = embed(self.model(*batch.inputs))
        loss = contrast(embeddings_BK, batch.labels, self.temperature)
        logits_BK = self.compare(embeddings_BK.detach())
        if self.training:
            self._follow(embeddings_BK.detach(), batch.labels)
        return loss, {"loss": loss.detach(), "accuracy": Answers(logits_BK, batch.labels)}

    @torch.no_grad()
    def _follow(self, embeddings_BK: Tensor, labels_B: Tensor) -> None:
        """Move each prototype towards the mean of its class in the batch, over all ranks. Nothing waits here."""
        classes_K1 = torch.arange(len(self.prototypes_KK), device=labels_B.device)[:, None]
        is_member_KB = (labels_B == classes_K1).double()
        sums = torch.cat([is_member_KB @ embeddings_BK, is_member_KB.sum(1, keepdim=True)], dim=1)
        self._sum_in_place(sums)
        sums_KK, counts_K1 = sums[:, :-1], sums[:, -1:]
        share_K1 = (1 - self.decay) * (counts_K1 > 0)  # a class that is not in the batch keeps its prototype
        self.prototypes_KK.lerp_((sums_KK / counts_K1.clamp(min=1)).float(), share_K1.float())

    def answer(self, *inputs: Tensor) -> Tensor:
        return self.compare(embed(self.model(*inputs)))

    def compare(self, embeddings_BK: Tensor) -> Tensor:
        """Logits (B, K) float32: cosine with each prototype / temperature; zeros before the first step."""
        return (embeddings_BK @ embed(self.prototypes_KK).T / self.temperature).float()

    def measure(self, logits_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
        """The cross-entropy has its own name, because it is not the loss that is trained."""
        values = super().measure(logits_BK, labels_B)
        return {"accuracy": values["accuracy"], "cross_entropy": values["loss"]}


def embed(outputs_BK: Tensor) -> Tensor:
    """(B, K) float64 of unit length. Autocast leaves float64 alone; half precision is too coarse for cosine / 0.1."""
    return F.normalize(outputs_BK.double(), dim=1)


def contrast(embeddings_BK: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """L_out / B, (): minus the mean over an image's positives, the others of its class, of log softmax(cosine /
    temperature) over all others.

    An image without a positive adds 0, but counts in the mean. A mean without it would weigh micro-batches and ranks by
    a number that only the device knows; with two views every image has a positive.
    """
    itself_BB = torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    similarity_BB = embeddings_BK @ embeddings_BK.T / temperature
    similarity_BB = similarity_BB.masked_fill(itself_BB, torch.finfo(similarity_BB.dtype).min)  # -inf: NaN for B = 1
    is_positive_BB = (labels_B[:, None] == labels_B) & ~itself_BB
    logs_B = similarity_BB.log_softmax(1).masked_fill(~is_positive_BB, 0).sum(1)
    return -(logs_B / is_positive_BB.sum(1).clamp(min=1)).mean().float()
