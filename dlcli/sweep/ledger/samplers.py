"""Which point comes next, and which trial is stopped: Optuna's samplers and pruners, and our own that need no results.

A new sampler is made for each trial, seeded by the sweep's seed and the trial's number: with the results that there
are, these decide, so that a sweep that was killed goes on as it would have.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from dlcli.sweep.study.definition import Definition
from dlcli.sweep.study.points import point

WARM_UP = 2  # evaluations of a trial before the median stops it
PEERS = 4  # trials that must have come as far


def make_sampler(definition: Definition, number: int) -> BaseSampler:
    seed = int.from_bytes(hashlib.sha256(f"{definition.seed}/{number}".encode()).digest()[:4], "big")
    starts, name = definition.starts, definition.sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls some of its options experimental
        if name in ("tpe", "gp") and number < starts and len(definition.objectives) == 1:
            return Points(definition, number)
        if name == "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=starts, multivariate=True, group=True, constant_liar=True
            )
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=starts, deterministic_objective=False)
        if name == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1)
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=definition.population)
    return Points(definition, number)


class Points(BaseSampler):
    """What `points.point` says of a trial's number, given to Optuna value by value."""

    def __init__(self, definition: Definition, number: int):
        is_learner = definition.sampler not in ("grid", "random", "quasi-random")
        self.number = number
        self.point = point(definition, number, "quasi-random" if is_learner else definition.sampler)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        text = self.point[param_name]
        if isinstance(param_distribution, optuna.distributions.CategoricalDistribution):
            return text
        return float(text) if isinstance(param_distribution, optuna.distributions.FloatDistribution) else int(text)


def make_pruner(definition: Definition) -> BasePruner:
    """The resource is the number of evaluations, so that it acts within an epoch where validation does."""
    if definition.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=PEERS, n_warmup_steps=WARM_UP, n_min_trials=PEERS)
    if definition.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if definition.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource="auto", reduction_factor=3)
    return optuna.pruners.NopPruner()
