"""Generative adversarial network (Goodfellow et al. 2014): two networks, two optimizers, updated in turn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.tasks.task import Task, Values


class GAN(Task):
    """The non-saturating loss (section 3 of the paper), on logits.

    The generator takes noise (B, latent) and gives images (B, C, H, W); the discriminator gives logits (B,), above
    zero for real.
    """

    phases = ("discriminator", "generator")

    def __init__(self, generator: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator

    def sample(self, num_images: int, generator: torch.Generator | None = None) -> Tensor:
        """(num_images, C, H, W) float, normalised like the data. The noise is from `generator` or the global one."""
        device = next(self.generator.parameters()).device
        noise_device = device if generator is None else "cpu"  # a private generator lives on the CPU
        noise_BZ = torch.randn(num_images, self.generator.latent, device=noise_device, generator=generator)  # type: ignore[call-overload]
        return self.generator(noise_BZ.to(device))

    def judge(self, images_BCHW: Tensor) -> Tensor:
        """The discriminator's logits (B,), in float32 also under autocast: softplus in half precision is coarse."""
        return self.discriminator(images_BCHW).float()

    def loss(self, batch: Any, phase: str) -> tuple[Tensor, Values]:
        real = batch.images
        if phase == "discriminator":
            with torch.no_grad():
                fake = self.sample(len(real))
            loss = F.softplus(-self.judge(real)).mean() + F.softplus(self.judge(fake)).mean()
        else:
            loss = F.softplus(-self.judge(self.sample(len(real)))).mean()
        return loss, {f"loss/{phase}": loss.detach()}

    def evaluate(self, source: Iterable[Any], **_: Any) -> dict[str, float]:
        """Fréchet distance between as many generated images as there are real ones, in pixel space.

        The features are the normalised pixels themselves, not Inception's: a number for this data set only.
        """
        real_ND = torch.cat([batch.images.flatten(1) for batch in source]).double()
        noise = torch.Generator().manual_seed(0)  # the same noise each time, so that scores can be compared
        fake_ND = torch.cat([self.sample(len(part), noise).flatten(1) for part in real_ND.split(1000)]).double()
        return {"frechet": frechet_distance(real_ND, fake_ND)}


def frechet_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), >= 0 (Dowson, Landau 1982; Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric.
    """
    mean_distance = (a_ND.mean(0) - b_ND.mean(0)).square().sum()
    cov_a, cov_b = torch.cov(a_ND.T), torch.cov(b_ND.T)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    middle = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    return max(0.0, (mean_distance + cov_a.trace() + cov_b.trace() - 2 * middle).item())
