"""Rows of a table, as features and a target to predict: a class or a number.

Letters: N rows, B of them in a batch, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.records import Dense, Records, fingerprint_of
from dlcli.datasets.files.table_files import Prepared, prepare_adult, prepare_csv, prepare_diabetes
from dlcli.errors import ConfigError


class ClassRows(NamedTuple):
    """Rows with a class to predict."""

    features: Tensor  # (B, F) float32, numbers standardised
    labels: Tensor  # (B,) int64
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; (B,) int64, the row in its Records

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.features,)

    @property
    def targets(self) -> Tensor:
        raise ConfigError("the target is a class; this task predicts a number", hint="task=classification")


class NumberRows(NamedTuple):
    """Rows with a number to predict."""

    features: Tensor  # (B, F) float32, numbers standardised
    targets: Tensor  # (B,) float32, standardised
    index: Tensor  # type: ignore[assignment]  # hides tuple.index; (B,) int64, the row in its Records
    unit: float  # 1 of `targets` in the unit of the table

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.features,)

    @property
    def labels(self) -> Tensor:
        raise ConfigError("the target is a number; this task predicts a class", hint="task=regression")


def read_csv(root: str | None, path: str | None, **settings: Any) -> Data:
    """The user's own table; the settings are those of `prepare_csv`."""
    return as_data(prepare_csv(root, path, **settings))


def read_adult(root: str | None, *, val_size: float) -> Data:
    return as_data(prepare_adult(root, val_size=val_size))


def read_diabetes(*, val_size: float) -> Data:
    return as_data(prepare_diabetes(val_size=val_size))


def as_data(prepared: Prepared) -> Data:
    splits = {split: as_records(prepared, split) for split in ("train", "val", "test")}
    return Data(prepared.classes, **splits, facts=dict(prepared.facts), fitted=prepared.fitted, notes=prepared.notes)


def as_records(prepared: Prepared, split: str) -> Records:
    features, targets = prepared.features[split], prepared.targets[split]
    if prepared.classes:
        return class_records(torch.from_numpy(features), torch.from_numpy(targets))
    mean, std = prepared.fitted["target"]["mean"], prepared.fitted["target"]["std"]
    return number_records(torch.from_numpy(features), torch.from_numpy((targets - mean) / std).float(), std)


def class_records(features: Tensor, labels: Tensor) -> Records:
    """features: (N, F) float32; labels: (N,) int64."""
    columns = {"features": Dense(features), "labels": Dense(labels)}
    return Records(columns, collate_classes, fingerprint_of(features, labels), labels)


def number_records(features: Tensor, targets: Tensor, unit: float) -> Records:
    """features: (N, F) float32; targets: (N,) float32, standardised."""
    columns = {"features": Dense(features), "targets": Dense(targets)}
    fingerprint = fingerprint_of(features, targets, np.array([unit]))
    return Records(columns, partial(collate_numbers, unit=unit), fingerprint)


def collate_classes(taken: Mapping[str, Tensor], index_B: Tensor, augment: object, keys_B: object) -> ClassRows:
    return ClassRows(taken["features"], taken["labels"], index_B)


def collate_numbers(
    taken: Mapping[str, Tensor], index_B: Tensor, augment: object, keys_B: object, *, unit: float
) -> NumberRows:
    return NumberRows(taken["features"], taken["targets"], index_B, unit)


def made_up(settings: Mapping[str, Any], num_examples: int) -> Records:
    """Noise in the shapes that the settings give; num_classes of 1: a number is predicted."""
    features = torch.randn(num_examples, settings["num_features"])
    if settings["num_classes"] == 1:
        return number_records(features, torch.randn(num_examples), 1.0)
    return class_records(features, torch.randint(settings["num_classes"], (num_examples,)))
