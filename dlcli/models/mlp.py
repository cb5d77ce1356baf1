"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


class MLP(nn.Module):
    """Linear layers of the given widths, each followed by batch norm (if on), activation and dropout (if any).

    Takes images (B, C, H, W) or features (B, num_features) float, gives (B, num_classes): logits, or with 1 the number
    of a regression. Without hidden layers it is a linear model.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int] | None = None,
        num_features: int | None = None,
        hidden: Sequence[int] = (512, 256),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        if image_shape is None and num_features is None:
            raise ValueError("MLP needs image_shape or num_features")
        size = prod(image_shape) if image_shape is not None else int(num_features or 0)
        for width_out in hidden:
            layers.append(nn.Linear(size, width_out, bias=not batch_norm))
            layers += [nn.BatchNorm1d(width_out)] if batch_norm else []
            layers.append(ACTIVATIONS[activation]())
            layers += [nn.Dropout(dropout)] if dropout else []
            size = width_out
        layers.append(nn.Linear(size, num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, examples: Tensor) -> Tensor:
        return self.layers(examples)
