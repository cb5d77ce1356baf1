"""Mixture of experts: a router picks a few feed-forward networks for each token.

Top-k routing of Shazeer et al. 2017 (section 2.1, without noise, so that runs repeat), the load-balancing loss of the
Switch Transformer (Fedus, Zoph and Shazeer 2022, equations 4 to 6). No token is dropped: an example's answer does not
depend on the others of its batch. Shapes: T tokens, E experts, K experts a token, R = T * K rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcli.errors import ConfigError
from dlcli.models.layers.attention import Attention, FeedForward
from dlcli.models.transformer import Transformer


class Mixture(nn.Module):
    """(B, N, D) -> (B, N, D): the outputs of each token's `top_k` experts, weighted by the router's probabilities.

    With two or more experts per token, the weights are scaled to sum to one (GShard, Lepikhin et al. 2021); with one,
    the weight is the probability itself, or the router would have no gradient (Switch, equation 2).

    auxiliary_loss: set in training, to be added to the loss: `balance` * E * sum of (share of the tokens) times
    (mean probability) over the experts, which is `balance` when all are equally busy. load_BE: for the last forward,
    the share of each example's picks that fell on each expert. Padding counts in neither.
    """

    auxiliary_loss: Tensor | None = None
    load_BE: Tensor

    def __init__(
        self, width: int, hidden: int, *, experts: int, top_k: int, aux_loss_weight: float = 0.01, dropout: float = 0.0
    ):
        super().__init__()
        self.top_k, self.aux_loss_weight = top_k, aux_loss_weight
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(width, hidden, dropout) for _ in range(experts))

    def forward(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        x_TD = x_BND.flatten(0, 1)
        probabilities_TE = (
            self.router(x_TD).float().softmax(1)
        )  # float32: routers diverge with fewer bits (section 2.4)
        gates_TK, picks_TK = probabilities_TE.topk(self.top_k)
        if self.top_k > 1:
            gates_TK = gates_TK / gates_TK.sum(1, keepdim=True)
        self.note(probabilities_TE.unflatten(0, x_BND.shape[:2]), picks_TK.unflatten(0, x_BND.shape[:2]), mask_BN)
        outputs_TKD = self.run_experts(x_TD, picks_TK)
        mixed_TD = (outputs_TKD * gates_TK[:, :, None].to(outputs_TKD.dtype)).sum(1)
        return mixed_TD.view(x_BND.shape)

    def run_experts(self, x_TD: Tensor, picks_TK: Tensor) -> Tensor:
        """The outputs of each token's experts, (T, K, D): rows are sorted by expert, and put back.

        Each row is moved once and none is added to another, so the order of additions, and every bit, repeats.
        """
        order_R = picks_TK.flatten().argsort(stable=True)
        rows_RD = x_TD[:, None].expand(-1, self.top_k, -1).flatten(0, 1)[order_R]
        parts = rows_RD.split(self.rows_of_each(picks_TK))
        outputs_RD = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return outputs_RD[order_R.argsort()].unflatten(0, picks_TK.shape)

    def rows_of_each(self, picks_TK: Tensor) -> list[int]:
        """The number of rows of each expert. Waits for the device: an expert computes on its rows only."""
        count = len(self.experts)
        if picks_TK.is_meta:  # shapes only: an even load
            return [(picks_TK.numel() + i) // count for i in range(count)]
        return torch.bincount(picks_TK.flatten(), minlength=count).tolist()

    def note(self, probabilities_BNE: Tensor, picks_BNK: Tensor, mask_BN: Tensor | None) -> None:
        """Set `load_BE`, and in training `auxiliary_loss`."""
        experts = probabilities_BNE.shape[2]
        share_BNE = F.one_hot(picks_BNK, experts).sum(2) / self.top_k
        real_BN1 = torch.ones_like(share_BNE[:, :, :1]) if mask_BN is None else mask_BN[:, :, None].to(share_BNE.dtype)
        self.load_BE = (share_BNE * real_BN1).sum(1) / real_BN1.sum(1)
        if self.training:
            load_E, mean_E = ((x * real_BN1).sum((0, 1)) / real_BN1.sum() for x in (share_BNE, probabilities_BNE))
            self.auxiliary_loss = self.aux_loss_weight * experts * (load_E * mean_E).sum()


class MixtureBlock(nn.Module):
    """An encoder block whose feed-forward layers are a mixture of experts; post-norm, like `EncoderBlock`."""

    def __init__(self, width: int, heads: int, mixture: Mixture, dropout: float = 0.0):
        super().__init__()
        self.attention, self.mixture = Attention(width, heads, dropout), mixture
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """mask: (B, 1, 1, N) bool, true on tokens that are not padding."""
        x_BND = self.norm1(x_BND + self.drop(self.attention(x_BND, mask=mask)))
        return self.norm2(x_BND + self.drop(self.mixture(x_BND, None if mask is None else mask[:, 0, 0])))


class MixtureTransformer(Transformer):
    """A Transformer encoder of mixtures: `experts` feed-forward networks in each block, `top_k` of them for a token.

    balance: weight of the load-balancing loss. Inputs and the rest as in Transformer.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: Sequence[int] | None = None,
        num_tokens: int | None = None,
        hidden_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        ffn_size: int = 256,
        experts: int = 4,
        top_k: int = 2,
        aux_loss_weight: float = 0.01,
        dropout: float = 0.0,
    ):
        if top_k > experts:
            raise ConfigError(
                f"model.top_k={top_k}: there are only {experts} experts", hint=f"model.top_k may be 1 to {experts}."
            )

        def block() -> nn.Module:
            mixture = Mixture(
                hidden_size, ffn_size, experts=experts, top_k=top_k, aux_loss_weight=aux_loss_weight, dropout=dropout
            )
            return MixtureBlock(hidden_size, num_heads, mixture, dropout)

        super().__init__(
            num_classes=num_classes,
            image_shape=image_shape,
            num_tokens=num_tokens,
            hidden_size=hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            make_block=block,
        )

    @torch.no_grad()
    def expert_load(self) -> Tensor:
        """(B, layers, E): for the last forward, the share of each example's picks on each expert of each block."""
        mixtures = [module for module in self.modules() if isinstance(module, Mixture)]
        return torch.stack([mixture.load_BE for mixture in mixtures], 1)

    def tensor_parallel_plan(self) -> dict[str, str]:
        raise ConfigError(
            "runtime.parallel=tp: the layers of a mixture of experts cannot be split",
            hint="runtime.parallel=ddp or fsdp, or model=transformer",
        )
