"""Text that goes on where a prompt ends, token by token: which token, from what context, until when.

    for piece in write(network, tokenizer, "ROMEO:", num_tokens=200, sampling=Sampling(temperature=0.8), seed=0):
        print(piece, end="")

Shapes: V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from dlcli.datasets.batches.examples import private_generator
from dlcli.datasets.tokens.tokenizing import FIRST, UNK, Tokenizer
from dlcli.errors import ConfigError, printable

LONGEST_CHARACTER = 4  # bytes in UTF-8, each of which may be a token


@dataclass(frozen=True)
class Sampling:
    """temperature: below 1 the likely become likelier; 0 takes the likeliest token, always.

    top_k: only the k likeliest. top_p: only the likeliest that together reach this probability (Holtzman et al. 2020).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def is_random(self) -> bool:
        """Whether another seed may give another text."""
        return self.temperature > 0 and self.top_k != 1 and self.top_p != 0


def write(
    network: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_tokens: int,
    sampling: Sampling,
    seed: int,
    stop: Sequence[str] = (),
    autocast: Callable[[], Any] = nullcontext,
) -> Iterator[str]:
    """The continuation in pieces, as it is made: num_tokens tokens, or what comes before one of the texts in `stop`.

    The same seed gives the same text, on the same device and version of torch.
    """
    generator = private_generator("generation", seed)

    def pick(logits_V: Tensor) -> int:
        return choose(logits_V, sampling, generator)

    tokens = continuation(network, encode_prompt(prompt, tokenizer), pick, autocast=autocast)
    return until(stop, spelt(tokenizer, islice(tokens, num_tokens)))


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """An empty prompt is a new line. Raises ConfigError for characters or words that the training text has not."""
    (tokens,) = tokenizer.encode_batch([prompt or "\n"])
    if UNK in tokens and prompt:
        pieces = sorted({piece for piece in prompt if tokenizer.encode_batch([piece])[0] == [UNK]})
        if tokenizer.kind == "words":
            pieces = [word for word in prompt.split() if UNK in tokenizer.encode_batch([word])[0]]
        what = "words" if tokenizer.kind == "words" else "characters"
        message = f"the prompt has {what} that the training text has not: {printable(' '.join(pieces))}"
        raise ConfigError(message, hint=f"Write it with these: {printable(''.join(sorted(tokenizer.pieces[:80])))}")
    return [token for token in tokens if token != UNK] or [FIRST]


@torch.no_grad()
def continuation(
    network: nn.Module,
    prompt: Sequence[int],
    choose: Callable[[Tensor], int],
    *,
    autocast: Callable[[], Any] = nullcontext,
) -> Iterator[int]:
    """Tokens without end. choose: takes logits (V,).

    The network looks back on its last `block` tokens at most: where they are full, it goes on from the later half.
    """
    device, block = next(network.parameters()).device, int(network.context_length)  # type: ignore[arg-type]
    context, cache = list(prompt)[-block:], None
    new = context
    while True:
        with autocast():
            logits_1V, cache = extend(network, torch.tensor([new], device=device), cache)
        token = choose(logits_1V[0])
        yield token
        context = [*context, token]
        new = [token]
        if len(context) > block:
            new = context = context[-max(1, block // 2) :]
            cache = None


def extend(network: nn.Module, tokens_BQ: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits (B, V) of the token after tokens_BQ, which follow what the cache holds; and the cache with them in it.

    A network without an `extend` of its own (see GPT) reads all tokens again each time.
    """
    own: Callable[..., tuple[Tensor, Any]] | None = getattr(network, "extend", None)
    if own is not None:
        return own(tokens_BQ, cache)
    read_BL = tokens_BQ if cache is None else torch.cat([cache, tokens_BQ], 1)
    return network(read_BL)[:, -1], read_BL


def choose(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token by its probability among those that `sampling` admits; never <pad>, <unk>, <bos> or <eos>."""
    logits_V = logits_V.double().cpu().clone()
    logits_V[:FIRST] = -math.inf
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    logits_V = admitted(logits_V / sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    return int(torch.multinomial(logits_V.softmax(0), 1, generator=generator))


def admitted(logits_V: Tensor, *, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The logits with -inf for what is left out: first all but the k largest, then all after those that reach p."""
    ordered_V, places_V = logits_V.sort(descending=True, stable=True)
    if top_k is not None:
        ordered_V[top_k:] = -math.inf
    if top_p is not None:
        reached_V = ordered_V.softmax(0).cumsum(0)
        ordered_V[1:][reached_V[:-1] >= top_p] = -math.inf  # the likeliest stays, whatever p is
    return torch.empty_like(logits_V).scatter_(0, places_V, ordered_V)


def spelt(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """The text of tokens, piece by piece. A character whose bytes are several tokens comes when it is whole."""
    pending: list[int] = []
    gap = " " if tokenizer.kind == "words" else ""
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(pending)
        if (
            tokenizer.kind != "bpe"
            or not text.endswith("\N{REPLACEMENT CHARACTER}")
            or len(pending) >= LONGEST_CHARACTER
        ):
            yield gap + text
            pending = []
    if pending:
        yield gap + tokenizer.decode(pending)


def until(stops: Sequence[str], pieces: Iterator[str]) -> Iterator[str]:
    """The pieces up to the first of the texts in `stops`; what may be the beginning of one is held back."""
    held = ""
    longest = max(map(len, stops), default=0)
    for piece in pieces:
        held += piece
        found = [place for stop in stops if (place := held.find(stop)) >= 0]
        if found:
            yield held[: min(found)]
            return
        ready = max(0, len(held) - max(0, longest - 1))
        if ready:
            yield held[:ready]
            held = held[ready:]
    yield held
