"""Names that have changed since they were first stored: of `_target_` strings, settings and their values.

    tree = renamed(record["config"])        a stored config in the words of this version; the stored one stays as it is

A run's folder is written once and read by every later dlcli. Whoever renames something that a config names adds a line
here; nobody else needs to know the old word. `new_name("model.width")` answers an old word on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGETS = {  # 0.1.0: files of data sets moved into datasets/files and datasets/tokens
    "dlcli.datasets.box_files.peek_coco": "dlcli.datasets.files.box_files.peek_coco",
    "dlcli.datasets.box_files.peek_voc": "dlcli.datasets.files.box_files.peek_voc",
    "dlcli.datasets.image_tree.peek_image_folder": "dlcli.datasets.files.image_tree.peek_image_folder",
    "dlcli.datasets.mask_files.peek_masks": "dlcli.datasets.files.mask_files.peek_masks",
    "dlcli.datasets.pair_files.peek_pairs": "dlcli.datasets.files.pair_files.peek_pairs",
    "dlcli.datasets.pretrained_tokenizer.peek_tokenizer": "dlcli.datasets.tokens.pretrained_tokenizer.peek_tokenizer",
    "dlcli.datasets.sentence_files.peek_sentences": "dlcli.datasets.files.sentence_files.peek_sentences",
    "dlcli.datasets.speech_table.peek_speech": "dlcli.datasets.files.speech_table.peek_speech",
    "dlcli.datasets.table_files.peek_adult": "dlcli.datasets.files.table_files.peek_adult",
    "dlcli.datasets.table_files.peek_csv": "dlcli.datasets.files.table_files.peek_csv",
    "dlcli.datasets.text_files.peek_text": "dlcli.datasets.files.text_files.peek_text",
}


def renamed(config: Any) -> Any:
    """A stored config, or a part of one, with today's names. Plain data in, plain data out; what is not known stays."""
    if isinstance(config, Mapping):
        return {key: _target(value) if key == "_target_" else renamed(value) for key, value in config.items()}
    return [renamed(value) for value in config] if isinstance(config, list) else config


def _target(value: Any) -> Any:
    return TARGETS.get(value, value) if isinstance(value, str) else value
