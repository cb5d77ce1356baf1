"""Names that have changed since they were first stored: `_target_` strings, settings and their values.

    tree = renamed(record["config"])                a copy of a stored config with today's names

A run's folder is written once and read by every later dlcli. If you rename something that a config names, add a line
here; no other code needs the old name. `new_name("model.width")` finds the new name for an old one on the command line.
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

SETTINGS = {  # 0.1.0: names of our own became the field's
    "trainer.accumulate": "trainer.accumulate_grad_batches",
    "dataset.ignore": "dataset.drop_columns",
    "dataset.ignored": "dataset.ignore_index",
    "dataset.workers": "dataset.num_workers",
    "dataset.resident": "dataset.in_memory",
    "dataset.block": "dataset.context_length",
    "model.width": "model.hidden_size",
    "model.layers": "model.num_layers",
    "model.heads": "model.num_heads",
    "model.feed_forward": "model.ffn_size",
    "model.block": "model.context_length",
    "model.positions": "model.max_positions",
    "model.tied": "model.tie_embeddings",
    "model.balance": "model.aux_loss_weight",
    "model.neck": "model.fpn_channels",
    "model.min_score": "model.score_threshold",
    "model.max_overlap": "model.nms_iou",
    "task.beam": "task.beam_size",
    "schedule.rise": "schedule.pct_start",
    "augmentation.edge": "augmentation.padding_mode",
}
VALUES = {  # setting, in today's name -> old value -> new value
    "runtime.parallel": {"data": "ddp", "shard": "fsdp", "tensor": "tp"},
    "augmentation.padding_mode": {"black": "zeros", "mirror": "reflect"},
}


def renamed(config: Any) -> Any:
    """Return a stored config with today's names. Plain data in, plain data out; unknown names are kept."""
    if not isinstance(config, Mapping):
        return config
    return {group: renamed_node(node, str(group)) for group, node in config.items()}


def renamed_record(record: dict[str, Any]) -> dict[str, Any]:
    """A run's record, summary or first event, its config and overrides in today's names.

    An override whose key the config still has, as a setting of a user's own class, keeps its name.
    """
    config = renamed(record.get("config"))
    changed: dict[str, Any] = {"config": config} if isinstance(config, Mapping) else {}
    if isinstance(words := record.get("overrides"), list):
        changed["overrides"] = [
            renamed_word(word) if isinstance(word, str) and not _has(config, word.partition("=")[0]) else word
            for word in words
        ]
    return record | changed


def _has(config: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return False
        config = config[name]
    return True


def renamed_word(word: str) -> str:
    """Rename a stored override or an axis of a sweep: `model.width=16` -> `model.hidden_size=16`."""
    key, equals, value = word.partition("=")
    key = SETTINGS.get(key, key)
    return f"{key}{equals}{VALUES.get(key, {}).get(value, value)}"


def new_name(key: str) -> str | None:
    """Return today's name of a setting that was once called `key`; None if there is none."""
    return SETTINGS.get(key)


def new_value(key: str, value: str) -> str | None:
    """Return today's word for a value of a setting (by its new name); None if the word has not changed."""
    return VALUES.get(key, {}).get(value)


def renamed_node(node: Any, group: str) -> Any:
    """Return one group of a stored config with today's names, such as the model of a teacher."""
    if isinstance(node, list):
        return [renamed_node(value, group) for value in node]
    if not isinstance(node, Mapping):
        return node
    target = node.get("_target_")
    is_ours = not isinstance(target, str) or target.startswith("dlcli.")  # a user's own class keeps its own names
    found: dict[Any, Any] = {}
    for key, value in node.items():
        name = _leaf(SETTINGS.get(f"{group}.{key}")) if is_ours else None
        if name is None or name in node:
            name = key
        if key == "_target_":
            found[name] = TARGETS.get(value, value) if isinstance(value, str) else value
        elif isinstance(value, str):
            found[name] = VALUES.get(f"{group}.{name}", {}).get(value, value)
        else:
            found[name] = renamed_node(value, group)
    return found


def _leaf(key: str | None) -> str | None:
    return key and key.rpartition(".")[2]
