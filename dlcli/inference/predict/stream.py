"""Texts that a language model goes on with: the continuation, and what it thinks of the very next token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dlcli.datasets.kinds import kind_of
from dlcli.errors import CheckpointError, ConfigError, DataError, printable
from dlcli.inference.predict.sentences import stored_tokenizer
from dlcli.inference.predict.text_inputs import check_stdin_once, read_whole

if TYPE_CHECKING:
    from dlcli.datasets.tokens.tokenizing import Tokenizer
    from dlcli.inference.generation import Sampling
    from dlcli.inference.trained import Trained

COLUMNS = ("beginning", "continuation", "next")
NUM_TOKENS, TEMPERATURE, SEED = 100, 0.8, 0  # of an answer; `dlcli generate` has options for them


def answers(
    trained: Trained,
    names: Sequence[str],
    *,
    top: int,
    save: str | None = None,
    attention: bool = False,
    whole: bool = False,
) -> list[dict[str, Any]]:
    """One answer per text: {input, continuation, next: [{token, probability}]}, or {input, error}.

    names: texts, files that hold one each, - for stdin.
    """
    from dlcli.inference.generation import Sampling

    check_stdin_once(names, "beginning.txt")
    found: list[dict[str, Any]] = []
    for name in names:
        answer: dict[str, Any] = {"input": name}
        try:
            answer["input"] = prompt = read_whole(name)
            pieces = write(trained, prompt, num_tokens=NUM_TOKENS, sampling=Sampling(TEMPERATURE), seed=SEED)
            answer["continuation"] = "".join(pieces)
            answer["next"] = next_tokens(trained, prompt, top)
            if attention:
                answer["attention"] = looked_at(trained, prompt, save, whole)
        except (ConfigError, DataError) as error:
            answer["error"] = error.message
        found.append(answer)
    return found


def row(answer: dict[str, Any]) -> list[str | None]:
    """A line of the table."""
    likely = ", ".join(f"{printable(n['token'])!r} {100 * n['probability']:.1f} %" for n in answer["next"])
    return [printable(answer["input"]), printable(answer["continuation"], limit=400), likely]


def tokenizer_of(trained: Trained) -> Tokenizer:
    """Raises CheckpointError where the checkpoint is not of a language model."""
    kind = kind_of(trained.tree["dataset"])
    if not kind.continues_text:
        message = f"{trained.manifest.run} was trained on {kind.name}: it does not go on with a text"
        raise CheckpointError(message, hint="Name a run of a language model, or train one: dlcli train shakespeare")
    return stored_tokenizer(trained)


def write(
    trained: Trained, prompt: str, *, num_tokens: int, sampling: Sampling, seed: int, stop: Sequence[str] = ()
) -> Iterator[str]:
    """The continuation in pieces; see generation."""
    from dlcli.inference import generation

    return generation.write(
        trained.task.get_submodule("model"),
        tokenizer_of(trained),
        prompt,
        num_tokens=num_tokens,
        sampling=sampling,
        seed=seed,
        stop=stop,
        autocast=trained.runtime.autocast(),
    )


def looked_at(trained: Trained, prompt: str, save: str | None, whole: bool) -> dict[str, Any]:
    """See attention.look: of the token after the prompt, and of each before."""
    import torch

    from dlcli.inference.explain.attention import look
    from dlcli.inference.generation import encode_prompt

    tokenizer, network = tokenizer_of(trained), trained.task.get_submodule("model")
    tokens = encode_prompt(prompt, tokenizer)[-int(network.context_length) :]  # type: ignore[arg-type]
    keys = [tokenizer.name(token) for token in tokens]
    return look(trained, (torch.tensor([tokens]),), name=prompt, keys=keys, save=save, whole=whole)


def next_tokens(trained: Trained, prompt: str, top: int) -> list[dict[str, Any]]:
    """Return [{token, probability}] of the token after the prompt, the most probable first."""
    import torch

    from dlcli.inference.generation import encode_prompt, extend

    tokenizer, network = tokenizer_of(trained), trained.task.get_submodule("model")
    tokens = encode_prompt(prompt, tokenizer)[-int(network.context_length) :]  # type: ignore[arg-type]
    with torch.no_grad(), trained.runtime.autocast()():
        logits_1V, _ = extend(network, torch.tensor([tokens], device=trained.runtime.device), None)
    values, places = logits_1V[0].float().softmax(0).topk(min(top, len(tokenizer)))
    return [
        {"token": tokenizer.decode([place]), "probability": value}
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
    ]
