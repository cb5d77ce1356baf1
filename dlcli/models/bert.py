"""BERT (Devlin et al. 2018) and DistilBERT (Sanh et al. 2019) as classifiers that read Hugging Face's weights.

Shapes: B sentences, L tokens of the longest, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dlcli.errors import ConfigError, DataError
from dlcli.models.layers.attention import EncoderBlock, FeedForward, key_mask

SEGMENTS = 2  # BERT has a first and a second sentence; here there is one
EPS = 1e-12  # of the layer norms
POOLERS: dict[str, type[nn.Module]] = {"bert": nn.Tanh, "distilbert": nn.ReLU}
OUTSIDE = {  # Hugging Face's name of a layer -> ours; in a block, the name after the pattern `*.layer.N.`
    "embeddings.word_embeddings": "tokens",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
    "pooler.dense": "pooler",
    "pre_classifier": "pooler",
    "classifier": "head",
}
INSIDE = {
    "attention.self.query": "attention.q",
    "attention.self.key": "attention.k",
    "attention.self.value": "attention.v",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "norm2",
    "attention.q_lin": "attention.q",
    "attention.k_lin": "attention.k",
    "attention.v_lin": "attention.v",
    "attention.out_lin": "attention.out",
    "sa_layer_norm": "norm1",
    "ffn.lin1": "feed_forward.up",
    "ffn.lin2": "feed_forward.down",
    "output_layer_norm": "norm2",
}
LEAVES = {"gamma": "weight", "beta": "bias"}  # the names in the layer norms of the first BERTs


class Bert(nn.Module):
    """Tokens and learnt positions go through `layers` post-norm blocks; the first token's last state is read out.

    Takes tokens (B, L) int64 with lengths (B,) int64, L <= positions; gives logits (B, num_classes).
    variant: "bert" or "distilbert", which has no segments and ReLU instead of tanh before the last layer. feed_forward:
    units of those layers; head_dropout: before the last layer. Unlike DistilBERT's own code, there is dropout on the
    output of attention, as in BERT. max_length: of the data, for an error message before anything starts.
    """

    reads_from = "first"

    def __init__(
        self,
        *,
        num_classes: int,
        num_tokens: int,
        max_length: int = 512,
        variant: str = "bert",
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        ffn_size: int = 3072,
        max_positions: int = 512,
        dropout: float = 0.0,
        head_dropout: float = 0.0,
    ):
        super().__init__()
        if max_length > max_positions:
            message = f"dataset.max_length={max_length} is more than model.max_positions={max_positions}"
            raise ConfigError(message, hint=f"dataset.max_length={max_positions}")
        self.tokens, self.positions = nn.Embedding(num_tokens, hidden_size), nn.Embedding(max_positions, hidden_size)
        self.segments = nn.Embedding(SEGMENTS, hidden_size) if variant == "bert" else None
        self.norm, self.dropout = nn.LayerNorm(hidden_size), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(hidden_size, num_heads, FeedForward(hidden_size, ffn_size, activation="gelu"), dropout)
            for _ in range(num_layers)
        )
        self.pooler, self.activation = nn.Linear(hidden_size, hidden_size), POOLERS[variant]()
        self.head_dropout, self.head = nn.Dropout(head_dropout), nn.Linear(hidden_size, num_classes)
        self.initialise()

    def initialise(self) -> None:
        """Matrices: normal with deviation 0.02; biases: 0."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = EPS
            elif isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)

    def forward(self, tokens_BL: Tensor, lengths_B: Tensor) -> Tensor:
        x_BLD, mask = self.embed(tokens_BL), key_mask(lengths_B, tokens_BL.shape[1])
        for block in self.blocks:
            x_BLD = block(x_BLD, mask=mask)
        return self.head(self.head_dropout(self.activation(self.pooler(x_BLD[:, 0]))))

    def embed(self, tokens_BL: Tensor) -> Tensor:
        x_BLD = self.tokens(tokens_BL) + self.positions.weight[: tokens_BL.shape[1]]
        if self.segments is not None:
            x_BLD = x_BLD + self.segments.weight[0]
        return self.dropout(self.norm(x_BLD))

    def attention(self, tokens_BL: Tensor, lengths_B: Tensor) -> list[Tensor]:
        """For each block, the weight of each token for each other one: (B, H, L, L); rows sum to one."""
        x_BLD, mask, found = self.embed(tokens_BL), key_mask(lengths_B, tokens_BL.shape[1]), []
        for block in self.blocks:
            found.append(block.attention.weights(x_BLD, mask=mask))  # type: ignore[union-attr, operator]
            x_BLD = block(x_BLD, mask=mask)
        return found

    def tensor_parallel_plan(self) -> dict[str, str]:
        """The split of its layers over devices: by columns (whole heads each), and then by rows."""
        split = {f"attention.{name}": "colwise" for name in "qkv"} | {"attention.out": "rowwise"}
        split |= {"feed_forward.up": "colwise", "feed_forward.down": "rowwise"}
        return {f"blocks.{i}.{layer}": how for i in range(len(self.blocks)) for layer, how in split.items()}

    def from_hugging_face(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps tensors from transformers' names to ours; those of other heads are left out.

        Raises DataError if a tensor is missing or has another shape, except for those after the blocks.
        """
        named = {own: tensor for name, tensor in weights.items() if (own := own_name(name)) is not None}
        needed = {n: t.shape for n, t in self.state_dict().items() if not n.startswith(("pooler.", "head."))}
        lacking = [name for name, shape in needed.items() if name not in named or named[name].shape != shape]
        if lacking:
            message = f"{len(lacking)} of the pretrained weights are missing or have other shapes"
            raise DataError(
                f"{message}: {', '.join(lacking[:3])} ...",
                hint="Download model.safetensors and config.json again, both from the same model.",
            )
        return named


def own_name(name: str) -> str | None:
    """`bert.encoder.layer.3.output.dense.bias` -> `blocks.3.feed_forward.down.bias`; None for others."""
    layer, _, leaf = name.removeprefix("bert.").removeprefix("distilbert.").rpartition(".")
    leaf = LEAVES.get(leaf, leaf)
    if layer in OUTSIDE:
        return f"{OUTSIDE[layer]}.{leaf}"
    stack, _, rest = layer.partition(".layer.")
    number, _, part = rest.partition(".")
    if stack in ("encoder", "transformer") and part in INSIDE:
        return f"blocks.{number}.{INSIDE[part]}.{leaf}"
    return None
