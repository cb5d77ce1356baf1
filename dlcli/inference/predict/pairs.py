"""Translations of sentences a user types, by beam search: the best, and the next best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlcli.errors import printable
from dlcli.inference.predict.sentences import stored_tokenizer
from dlcli.inference.predict.text_inputs import find_sentences

if TYPE_CHECKING:
    from dlcli.datasets.tokens.tokenizing import Tokenizer
    from dlcli.inference.trained import Trained

COLUMNS = ("sentence", "translation", "others")
BEAM, AT_ONCE = 4, 64


def answers(
    trained: Trained,
    names: Sequence[str],
    *,
    top: int,
    save: str | None = None,
    attention: bool = False,
    whole: bool = False,
) -> list[dict[str, Any]]:
    """One answer per sentence: {input, translation, others: [texts]}, or {input, error}.

    names: sentences, files of them, - for the lines of stdin; see text_inputs. Of a table the first column.
    """
    tokenizer = stored_tokenizer(trained)
    found = [answer for group in find_sentences(names, column=1) for answer in group]
    asked = [answer for answer in found if "error" not in answer]
    for start in range(0, len(asked), AT_ONCE):
        part = asked[start : start + AT_ONCE]
        for answer, written in zip(part, translated(trained, tokenizer, [a["input"] for a in part], top), strict=True):
            answer["translation"], *answer["others"] = written
    if attention:
        for answer in asked:
            answer["attention"] = looked_at(trained, tokenizer, answer["input"], save, whole)
    return found


def looked_at(trained: Trained, tokenizer: Tokenizer, text: str, save: str | None, whole: bool) -> dict[str, Any]:
    """See attention.look: from the tokens of the best translation, and its end, to those of the source."""
    import torch

    from dlcli.datasets.sentence_pairs import as_sources
    from dlcli.datasets.tokens.tokenizing import BOS, PAD
    from dlcli.inference.explain.attention import look

    source = as_sources([text], tokenizer, trained.tree["dataset"]["max_length"]).take(torch.arange(1))
    source_1K, lengths_1 = source.values.long()[:, : int(source.lengths[0])], source.lengths
    device, (beam, _) = trained.runtime.device, wanted(trained, 1)
    with trained.runtime.autocast()():
        tokens_1WQ, _ = trained.task.translate(source_1K.to(device), lengths_1.to(device), beam_size=beam)  # type: ignore[operator]
    written = [token for token in tokens_1WQ[0, 0].tolist() if token != PAD]
    keys = [tokenizer.name(token) for token in source_1K[0].tolist()]
    queries = [*(tokenizer.name(token) for token in written), "<eos>"]
    inputs = source_1K, lengths_1, torch.tensor([[BOS, *written]])
    return look(trained, inputs, name=text, keys=keys, queries=queries, save=save, whole=whole)


def wanted(trained: Trained, top: int) -> tuple[int, int]:
    """Beams of the search and translations to show: as task.beam_size says where the command does, else by `top`."""
    beam = int(trained.task.beam_size) if "task.beam_size" in trained.asked else max(BEAM, top)  # type: ignore[arg-type]
    return beam, min(beam, top)


def row(answer: dict[str, Any]) -> list[str | None]:
    """A line of the table."""
    others = " | ".join(map(printable, answer["others"]))
    return [printable(answer["input"]), printable(answer["translation"], limit=1_000), others]


def translated(trained: Trained, tokenizer: Tokenizer, texts: Sequence[str], top: int) -> list[list[str]]:
    """For each text its `top` different translations, the best first; of task.beam_size where the command says it."""
    import torch

    from dlcli.datasets.sentence_pairs import as_sources

    longest = trained.tree["dataset"]["max_length"]
    source = as_sources(texts, tokenizer, longest).take(torch.arange(len(texts)))
    tokens_BK, lengths_B = source.values.long().to(trained.runtime.device), source.lengths.to(trained.runtime.device)
    beam, top = wanted(trained, top)
    with trained.runtime.autocast()():
        tokens_BWQ, _ = trained.task.translate(tokens_BK, lengths_B, beam_size=beam)  # type: ignore[operator]
    spelt = [[tokenizer.decode(tokens) for tokens in beams] for beams in tokens_BWQ.tolist()]
    return [list(dict.fromkeys(beams))[:top] for beams in spelt]
