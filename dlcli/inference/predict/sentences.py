"""Sentences a user types, or has in a file, classified as a run was trained to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from dlcli.errors import CheckpointError, DataError, printable
from dlcli.inference.predict.text_inputs import Answer, find_sentences

if TYPE_CHECKING:
    from torch import Tensor

    from dlcli.datasets.tokens.pretrained_tokenizer import PretrainedTokenizer
    from dlcli.datasets.tokens.tokenizing import Tokenizer
    from dlcli.inference.trained import Trained

COLUMNS = ("sentence", "class", "probability", "others")
AT_ONCE = 256
SENTIMENTS = {"negative", "neutral", "positive"}
AnyTokenizer: TypeAlias = "Tokenizer | PretrainedTokenizer"
Fitting = TypeVar("Fitting", "Tokenizer", "PretrainedTokenizer")


def answers(
    trained: Trained,
    names: Sequence[str],
    *,
    top: int,
    save: str | None = None,
    attention: bool = False,
    whole: bool = False,
) -> list[Answer]:
    """{input, class, probability, classes: [{class, probability}]} of each sentence, or {input, error}.

    Where the classes are sentiments, {sentiment, confidence, probabilities: {class: probability}} besides.

    names: sentences, files of them, - for the lines of stdin; see text_inputs.
    """
    from dlcli.inference.predict.images import most_probable

    tokenizer = tokenizer_of(trained)
    column, labels = trained.tree["dataset"].get("text_column"), trained.manifest.classes
    found = [answer for group in find_sentences(names, column=column, classes=labels) for answer in group]
    asked = [answer for answer in found if "error" not in answer]
    ids = encoded([answer["input"] for answer in asked], trained, tokenizer)
    # Sorted by length, so that little is padded.
    order = sorted(range(len(asked)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), AT_ONCE):
        part = order[start : start + AT_ONCE]
        for i, row_K in zip(part, probabilities(trained, [ids[i] for i in part]), strict=True):
            classes = most_probable(row_K, trained.manifest.classes, top)
            asked[i].update(classes[0], classes=classes)
            if set(trained.manifest.classes) <= SENTIMENTS:
                asked[i].update(as_sentiment(classes))
    if attention:
        for answer, tokens in zip(asked, ids, strict=True):
            answer["attention"] = looked_at(trained, tokenizer, tokens, answer["input"], save, whole)
    return found


def looked_at(
    trained: Trained, tokenizer: AnyTokenizer, tokens: Sequence[int], name: str, save: str | None, whole: bool
) -> dict[str, Any]:
    """See attention.look."""
    import torch

    from dlcli.inference.explain.attention import look

    inputs = torch.tensor([tokens]), torch.tensor([len(tokens)])
    keys = [tokenizer.name(token) for token in tokens]
    return look(trained, inputs, name=name, keys=keys, save=save, whole=whole)


def row(answer: Answer) -> list[str | None]:
    """A line of the table."""
    from dlcli.inference.predict.images import class_cells

    return [printable(answer["input"]), *class_cells(answer["classes"])]


def as_sentiment(classes: list[Answer]) -> Answer:
    return {
        "sentiment": classes[0]["class"],
        "confidence": classes[0]["probability"],
        "probabilities": {c["class"]: c["probability"] for c in classes},
    }


def stored_tokenizer(trained: Trained) -> Tokenizer:
    """Return the run's tokenizer. Raises CheckpointError if it does not fit the network."""
    from dlcli.datasets.tokens.tokenizing import Tokenizer

    try:
        tokenizer = Tokenizer.from_json(trained.manifest.fitted["tokenizer"])
    except (KeyError, DataError) as error:
        message = error.message if isinstance(error, DataError) else "the checkpoint holds no tokenizer"
        raise CheckpointError(f"{trained.manifest.run}: {message}", hint="Train the run again.") from error
    return fitting(tokenizer, trained)


def fitting(tokenizer: Fitting, trained: Trained) -> Fitting:
    if len(tokenizer) > trained.tree["dataset"]["num_tokens"]:
        message = f"{trained.manifest.run}: its tokenizer has {len(tokenizer):,} tokens, its network fewer"
        raise CheckpointError(message, hint="Train the run again.")
    return tokenizer


def tokenizer_of(trained: Trained) -> AnyTokenizer:
    """The pretrained one that the run began with, else the one it learnt. Raises CheckpointError as that does."""
    from dlcli.datasets.tokens.pretrained_tokenizer import PRETRAINED, PretrainedTokenizer

    if PRETRAINED not in trained.manifest.fitted:
        return stored_tokenizer(trained)
    try:
        return fitting(PretrainedTokenizer(trained.manifest.fitted[PRETRAINED]), trained)
    except (TypeError, DataError) as error:
        message = error.message if isinstance(error, DataError) else "its tokenizer is not text"
        raise CheckpointError(f"{trained.manifest.run}: {message}", hint="Train the run again.") from error


def encoded(texts: Sequence[str], trained: Trained, tokenizer: AnyTokenizer) -> list[list[int]]:
    from dlcli.datasets.sentences import encode

    return [tokenizer.cut(ids, trained.tree["dataset"]["max_length"]) for ids in encode(texts, tokenizer)]


def probabilities(trained: Trained, ids: Sequence[Sequence[int]]) -> Tensor:
    """(B, K) float32 on the CPU."""
    import numpy as np
    import torch

    from dlcli.datasets.batches.records import ragged
    from dlcli.datasets.tokens.tokenizing import PAD
    from dlcli.tasks.classification import Classification

    if not isinstance(trained.task, Classification):
        message = f"{trained.manifest.run} is not a classifier; sentences need one"
        raise CheckpointError(message, hint="Name a run of a classifier: dlcli runs ls")
    device = trained.runtime.device
    tokens = ragged(ids, np.int64, fill=PAD).to(device).take(torch.arange(len(ids)))
    with trained.runtime.autocast()():
        return trained.task.predict(tokens.values, tokens.lengths).cpu()
