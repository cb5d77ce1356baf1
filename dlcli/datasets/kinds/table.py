"""Rows of a table with one class or number each."""

from __future__ import annotations

from dlcli.datasets.kinds.kind import Kind


class Table(Kind):
    """dataset.num_features numbers, and a class or a number."""

    name = "table"
    made_by = "dlcli.datasets.table"
    question = "ROWS.csv"
    size_setting = "num_features"
