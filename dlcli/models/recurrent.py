"""Recurrent classifiers of images read row by row, and of sentences: RNN, LSTM, GRU; last step or attention pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.models.layers.sequences import Steps, last_step, step_mask

CELLS: dict[str, Callable[..., nn.RNNBase]] = {
    "rnn": nn.RNN,  # Elman 1990, tanh
    "lstm": nn.LSTM,  # Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000
    "gru": nn.GRU,  # Cho et al. 2014
}


class Recurrent(nn.Module):
    """`layers` recurrent layers of `width` units, a pooled vector of their states, dropout, fc.

    Takes images (B, C, H, W) float, read row by row, or tokens (B, L) int64 with lengths (B,) int64 (see `Steps`);
    gives logits (B, num_classes). pooling "last": the state after the last step; "attention": the mean of all states
    weighted by a softmax over time (Zhou et al. 2016, section 3.3, without its tanh). dropout: between layers;
    head_dropout: before fc; embedding: numbers per token. The layers read from left to right, so padding after a
    sentence cannot change the states before it: nothing is packed, and nothing waits for the device.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int] | None = None,
        num_tokens: int | None = None,
        cell: str = "lstm",
        embedding: int = 128,
        hidden_size: int = 128,
        num_layers: int = 2,
        pooling: str = "last",
        dropout: float = 0.0,
        head_dropout: float = 0.0,
    ):
        super().__init__()
        self.steps = Steps(image_shape=image_shape, num_tokens=num_tokens, width=embedding)
        between = dropout if num_layers > 1 else 0.0  # torch warns about dropout with a single layer
        self.cells = CELLS[cell](self.steps.size, hidden_size, num_layers, batch_first=True, dropout=between)
        self.score = nn.Linear(hidden_size, 1) if pooling == "attention" else None
        self.reads_from = "pool" if pooling == "attention" else None
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, inputs: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        states_BLD, lengths_B = self.read(inputs, lengths_B)
        if self.score is None:
            return self.head(self.dropout(last_step(states_BLD, lengths_B)))
        pooled_B1D = self.weigh(self.score, states_BLD, lengths_B)[:, None] @ states_BLD
        return self.head(self.dropout(pooled_B1D[:, 0]))

    def read(self, inputs: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The last layer's states (B, L, D), and the lengths."""
        return self.cells(self.steps(inputs))[0], self.steps.lengths(inputs, lengths_B)

    def weigh(self, score: nn.Linear, states_BLD: Tensor, lengths_B: Tensor | None) -> Tensor:
        scores_BL = score(states_BLD)[:, :, 0]
        if lengths_B is not None:
            scores_BL = scores_BL.masked_fill(~step_mask(lengths_B, scores_BL.shape[1]), -torch.inf)
        return scores_BL.softmax(1)

    def attention(self, inputs: Tensor, lengths_B: Tensor | None = None) -> list[Tensor]:
        """One (B, 1, 1, L): the weight of each step in the pooled state; rows sum to one, padding has weight 0."""
        if self.score is None:
            message = "the network answers from its last step (model.pooling=last): it has no attention"
            raise ConfigError(message, hint="dlcli train ... model.pooling=attention")
        return [self.weigh(self.score, *self.read(inputs, lengths_B))[:, None, None]]
