"""Every supervised system on its real data: the figure that its row must reach, the command, the cost.

python -m tests.bench systems                      all rows: some hours of one core
DLCLI_ROWS=A9,T4 python -m tests.bench systems     those named
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.bench.accuracy import finished
from tests.bench.measure import table


@dataclass(frozen=True)
class System:
    """words: the command behind `dlcli train`; least: what `metric` must reach, most of one that is to be small."""

    row: str
    words: tuple[str, ...]
    metric: str
    least: float
    is_error: bool = False  # the smaller the better


SYSTEMS = (
    System("A1", ("mnist_mlp",), "test/accuracy", 0.975),
    System("A2", ("mnist",), "test/accuracy", 0.99),
    System("A3", ("mnist_simple",), "test/accuracy", 0.98),
    System("A4", ("cifar10_subset",), "test/accuracy", 0.55),
    System("A5", ("mnist_lenet",), "test/accuracy", 0.985),
    System("A6", ("cifar10_subset_resnet",), "test/accuracy", 0.60),
    System("A7", ("cifar10_subset_mobilenet",), "test/accuracy", 0.45),
    System("A7", ("cifar10_subset_shufflenet",), "test/accuracy", 0.45),
    System("A8", ("mnist_rows_rnn",), "test/accuracy", 0.95),
    System("A9", ("mnist_rows_lstm",), "test/accuracy", 0.98),
    System("A10", ("mnist_rows_gru",), "test/accuracy", 0.98),
    System("A11", ("mnist_rows_transformer",), "test/accuracy", 0.97),
    System("A12", ("cifar10_subset_vit",), "test/accuracy", 0.45),
    System("A13", ("mnist_rows_moe",), "test/accuracy", 0.97),
    System("T2", ("sst2_lstm",), "test/accuracy", 0.80),
    System("T2", ("sst2_transformer",), "test/accuracy", 0.78),
    System("T2", ("sst2_sentences_lstm",), "test/accuracy", 0.80),
    System("T2", ("sst2_sentences_transformer",), "test/accuracy", 0.78),
    System("T4", ("spoken_digits",), "test/cer", 0.10, is_error=True),
    System("T4", ("spoken_digits_conformer",), "test/cer", 0.10, is_error=True),
    System("T6", ("blood_cells",), "test/map50", 0.60),
    System("T7", ("nuclei",), "test/mean_iou", 0.80),
    System("T8", ("shakespeare",), "val/bits_per_character", 2.4, is_error=True),
    System("T9", ("multi30k",), "test/bleu", 25.0),
    System("T14", ("diabetes",), "test/r2", 0.35),
    System("table", ("adult",), "test/accuracy", 0.84),
)


def run() -> str:
    """Each system once, with seed 0 and its experiment's own settings."""
    wanted = os.environ.get("DLCLI_ROWS")
    chosen = [system for system in SYSTEMS if not wanted or system.row in wanted.split(",")]
    head = ("row", "command", "metric", "figure", "must be", "reached", "CPU s")
    return table(head, [measured(system) for system in chosen])


def measured(system: System) -> tuple[object, ...]:
    done = finished(*system.words, "runtime.threads=1")
    figure = done["metrics"][system.metric]
    reached = figure <= system.least if system.is_error else figure >= system.least
    bound = f"{'<=' if system.is_error else '>='} {system.least:g}"
    command = " ".join(("dlcli train", *system.words))
    return (
        system.row, f"`{command}`", system.metric, f"{figure:.4f}", bound, "yes" if reached else "NO",
        f"{done['cost'].cpu_s:.0f}",
    )  # fmt: skip
