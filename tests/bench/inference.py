"""Answers of a trained run through dlcli's own path (what `dlcli predict` calls) beside the network called by hand."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.measure import cost_of, in_turn, ratios, spread, table

ROUNDS = 15
CALLS = {1: 100, 256: 2}  # batch -> calls in a block


def run() -> str:
    """Latency and throughput of a trained run beside its network called by hand."""
    import torch

    from dlcli.inference import trained
    from dlcli.training.allow_list import Builder

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run_folder = train(folder)
        sides: dict[str, Callable[[Any], Any]] = {}
        for words in ((), ("runtime.precision=fp32",)):
            loaded = trained.load(run_folder, words, builder=Builder.for_search())
            told = f"dlcli.inference.trained.predict, {loaded.runtime.precision}"
            sides[told] = lambda images, loaded=loaded: trained.predict(loaded, images)
        fresh = trained.load(run_folder, ("runtime.precision=fp32",), builder=Builder.for_search())
        sides["eager network in fp32, called by hand"] = by_hand(fresh.task.model.float())
        torch.set_num_threads(1)
        rows = [row for batch in CALLS for row in measured(sides, batch)]
    told = f"MNIST network of `dlcli train mnist`, uint8 images to probabilities; {ROUNDS} paired blocks, one thread."
    return f"{told}\n\n" + table(("", "batch", "CPU us per call", "images per CPU second", "x by hand: CPU"), rows)


def train(folder: str) -> Path:
    """The checkpoint of a short run."""
    import sys

    words = ("train", "mnist", "trainer.max_steps=20", "tracker=none", "--outputs", folder)
    cost_of((sys.executable, "-m", "dlcli", *words))
    return next(Path(folder).glob("*/*/checkpoints/last"))


def by_hand(model: Any) -> Callable[[Any], Any]:
    import torch

    @torch.no_grad()
    def answer(images: Any) -> Any:
        return model((images.float() / 255 - 0.1307) / 0.3081).softmax(1)

    model.to(memory_format=torch.contiguous_format)
    return answer


def measured(sides: dict[str, Callable[[Any], Any]], batch: int) -> list[tuple[object, ...]]:
    import torch

    images = torch.randint(256, (batch, 1, 28, 28), dtype=torch.uint8)

    def block(answer: Callable[[Any], Any]) -> float:
        start = time.process_time()
        for _ in range(CALLS[batch]):
            answer(images)
        return (time.process_time() - start) / CALLS[batch] * 1e6

    columns = list(zip(*in_turn(ROUNDS, *(lambda a=a: block(a) for a in sides.values())), strict=True))
    hand = columns[-1]
    return [
        (name, batch, f"{statistics.median(us):.0f}", f"{batch / statistics.median(us) * 1e6:,.0f}",
         "" if us is hand else spread(ratios(us, hand), 2))
        for name, us in zip(sides, columns, strict=True)
    ]  # fmt: skip
