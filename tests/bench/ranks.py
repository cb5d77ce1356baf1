"""Weak scaling: the classic network on two gloo ranks of one thread each, against one rank alone.

Each rank makes the steps of batch 64; two ranks learn from twice the examples. In every round rank 0 steps alone, then
both step at once without a word to each other (what this machine's cores and memory allow), then as `average_gradients`
has it. The wall time needs two idle cores; the CPU time shows what the exchange itself costs on a busy machine too.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from dlcli.models.mnist_net import MnistNet
from dlcli.runtime.launch import Forwarding, Group
from dlcli.runtime.ranks import Ranks, SingleProcess
from dlcli.runtime.rendezvous import find_ranks, join_ranks
from tests.bench.measure import REPOSITORY, give_result, spread, table

STEPS = 15
ROUNDS = 10
BATCH = 64
Times = dict[str, list[float]]  # seconds per step of a rank: [wall, CPU] of a round


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "RESULT": str(file)}
        with Forwarding() as forwarding:
            code = Group(["-m", "tests.bench.ranks"], 2, own).watch(forwarding)
        if code:
            return f"not measured: the ranks ended with {code}"
        rounds: list[Times] = json.loads(file.read_text())[1:]  # the first warms up
    names = {"alone": "rank 0 alone", "apart": "two ranks, no exchange: the machine's limit", "together": "two ranks"}
    rows = [[said, *cells(name, rounds)] for name, said in names.items()]
    head = ["", "wall ms a step", "CPU ms a step", "efficiency, wall", "efficiency, CPU"]
    return (
        f"{ROUNDS} rounds of {STEPS} steps, conv 32, conv 64, fc 128 (1.2 M parameters), batch {BATCH} a rank, fused "
        "Adam, one thread a rank. Efficiency: time alone over time here, median (least to most).\n\n"
        f"{table(head, rows)}\n\nThe exchange itself, two ranks against two without: "
        f"{spread(against('apart', 'together', 0, rounds))} by wall, "
        f"{spread(against('apart', 'together', 1, rounds))} by CPU time."
    )


def cells(name: str, rounds: list[Times]) -> list[str]:
    times = [f"{1000 * statistics.median([r[name][clock] for r in rounds]):.1f}" for clock in (0, 1)]
    return times + [spread(against("alone", name, clock, rounds)) for clock in (0, 1)]


def against(one: str, other: str, clock: int, rounds: list[Times]) -> list[float]:
    return [r[one][clock] / r[other][clock] for r in rounds]


def main() -> None:
    """A rank's part."""
    place = find_ranks()
    assert place is not None
    torch.set_num_threads(1)
    ranks = join_ranks(place, torch.device("cpu"))
    step = make_step()
    rounds = []
    for _ in range(ROUNDS + 1):
        alone = timed(step, SingleProcess(), ranks) if ranks.is_primary else wait(ranks)
        rounds.append(
            {"alone": alone, "apart": timed(step, SingleProcess(), ranks), "together": timed(step, ranks, ranks)}
        )
    slowest = [{name: ranks.agree(times) for name, times in one.items()} for one in rounds]
    if ranks.is_primary:
        give_result(slowest)
    ranks.close()


def make_step() -> Callable[[SingleProcess | Ranks], None]:
    torch.manual_seed(0)
    network = MnistNet(num_classes=10, image_shape=[1, 28, 28])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    x, y = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))

    def step(ranks: SingleProcess | Ranks) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()
        ranks.average_gradients(network.parameters(), loss, BATCH)
        optimizer.step()

    return step


def timed(step: Callable[[SingleProcess | Ranks], None], peers: SingleProcess | Ranks, ranks: Ranks) -> list[float]:
    """Wall and CPU seconds per step, begun by all ranks at once; the other rank waits meanwhile, or does the same."""
    ranks.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        step(peers)
    taken = [time.perf_counter() - wall, time.process_time() - cpu]
    ranks.barrier()
    return [seconds / STEPS for seconds in taken]


def wait(ranks: Ranks) -> list[float]:
    ranks.barrier()
    ranks.barrier()
    return [0.0, 0.0]


if __name__ == "__main__" and "RANK" in os.environ:
    main()
