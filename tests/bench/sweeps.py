"""Sweeps: trials a minute against optuna by hand, TPE against random search, and kills that lose nothing."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.measure import Cost, cost_of, environment, in_turn, ratios, spread, table

ROUNDS, FEW, MANY = 2, 4, 24
SPACE = ("optimizer.lr=1e-4:1e-1:log", "regularization.dropout=0:0.5")
FIXED = ("tracker=none", "runtime=cpu", "runtime.threads=1")


def search(trials: int) -> Cost:
    """The same search by dlcli, one worker."""
    with tempfile.TemporaryDirectory() as folder:
        asked = (
            "--sampler",
            "random",
            "--pruner",
            "none",
            "--trials",
            str(trials),
            "--workers",
            "1",
            "--outputs",
            folder,
        )
        return cost_of([sys.executable, "-m", "dlcli", "sweep", "digits", *FIXED, *SPACE, *asked])


def by_hand(trials: int) -> Cost:
    return cost_of([sys.executable, "-m", "tests.bench.by_hand", str(trials)])


def rate() -> str:
    """Trials a minute of `dlcli sweep digits`, against optuna around a bare loop, paired; target >= 0.9."""
    sides = [lambda n=n, run=run: run(n) for n in (FEW, MANY) for run in (search, by_hand)]
    rounds = in_turn(ROUNDS, *sides)
    rows = []
    for kind, name in ((0, "CPU"), (1, "wall")):
        few_ours, few_theirs, ours, theirs = ([side[kind] for side in column] for column in zip(*rounds, strict=True))
        more_ours = [(m - f) / (MANY - FEW) for m, f in zip(ours, few_ours, strict=True)]
        more_theirs = [(m - f) / (MANY - FEW) for m, f in zip(theirs, few_theirs, strict=True)]
        rows.append(
            [
                f"{MANY} trials, whole process, {name}",
                spread(ours, 1),
                spread(theirs, 1),
                spread(ratios(theirs, ours), 2),
            ]
        )
        rows.append(
            [f"a trial more, {name}", spread(more_ours), spread(more_theirs), spread(ratios(more_theirs, more_ours), 2)]
        )
    head = ["seconds, median (spread)", "dlcli sweep", "optuna by hand", "trials a minute, dlcli / by hand"]
    return table(head, rows)


def best_of(sampler: str, seed: int, trials: int = 24) -> float:
    """The best validation loss of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["sweep", "digits", *FIXED, "trainer.epochs=10", *SPACE]
        words += ["regularization.weight_decay=1e-6:1e-1:log", "model.hidden=[32],[64],[128],[64,32],[128,64]"]
        words += [
            "--sampler",
            sampler,
            "--seed",
            str(seed),
            "--trials",
            str(trials),
            "--pruner",
            "none",
            "--workers",
            "1",
        ]
        command = [sys.executable, "-m", "dlcli", *words, "--outputs", folder, "--json"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout.splitlines()[-1])["best"]["metrics"]["val/loss"])


def tpe() -> str:
    """The best of 24 TPE trials against that of 24 random ones, 5 seeds, digits; target: not worse on the mean."""
    rows: list[list[Any]] = []
    found: dict[str, list[float]] = {}
    for sampler in ("tpe", "random", "quasi-random"):
        found[sampler] = [best_of(sampler, seed) for seed in range(5)]
        values = " ".join(f"{value:.4f}" for value in found[sampler])
        rows.append(
            [sampler, f"{statistics.mean(found[sampler]):.4f}", f"{statistics.stdev(found[sampler]):.4f}", values]
        )
    return table(["sampler", "best val loss, mean of 5 seeds", "deviation", "each"], rows)


def kills() -> str:
    """Random SIGKILLs of workers and of everything: trials lost, repeated, stuck; target 0 / 0 / 0."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from sweeping import begin, check_whole, kill_everything, kill_worker

    rows, hits, falls = [], 0, 0
    for seed in range(6):
        drawn, began = random.Random(seed), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            cwd = Path(folder)
            sweep = cwd / "outputs" / "sweeps" / "s"
            words = ["digits", *FIXED, "trainer.epochs=3", "model.hidden=[32]", *SPACE, "--trials", "24"]
            parent = begin(cwd, *words, "--workers", "2", "--name", "s", "--json")
            hit = fallen = 0
            while parent.poll() is None:
                time.sleep(drawn.uniform(0.2, 3.0))
                if parent.poll() is None and hit < 5:
                    hit += kill_worker(sweep, drawn)
                elif parent.poll() is None and not fallen and (sweep / "sweep.json").is_file():
                    kill_everything(parent, sweep)
                    fallen = 1
                    parent = begin(cwd, "resume", "s", "--workers", "2", "--json")
            check_whole(sweep, 24)
            rows.append([seed, hit, fallen, "24 finished, none twice, none stuck", f"{time.monotonic() - began:.0f} s"])
        hits, falls = hits + hit, falls + fallen
    text = table(["sweep", "workers killed", "everything killed", "afterwards", "took"], rows)
    return f"{text}\n\n{hits + falls} kills: 0 lost, 0 repeated, 0 stuck (a trial that is any of it fails the bench)"
