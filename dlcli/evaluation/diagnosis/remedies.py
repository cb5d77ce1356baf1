"""The command to try against what stands out in a run: never the run itself once more, nor more of what was wrong."""

from __future__ import annotations

from collections.abc import Callable

from dlcli.evaluation.diagnosis.evidence import Evidence, number

STRONG = {"dropout": 0.5, "weight_decay": 5e-4, "label_smoothing": 0.1, "mixup": 0.2}  # of regularization=strong
WARPS, OTHERS = ("rotation", "shift"), ("flip", "crop", "jitter", "erase")  # augmentation=light has the first two
OTHER_MODEL = "dlcli list model"


def smaller_lr(e: Evidence) -> str:
    """A tenth of the rate; a measured one in place of a rate so high that a tenth of it would be no better."""
    lr = number(e.setting("optimizer.lr"))
    return e.again(verb="tune lr") if lr is None or lr >= 1 else e.again(f"optimizer.lr={lr / 10:g}")


def more_regularization(e: Evidence) -> str:
    """The next stronger thing that the run does not have yet; a smaller network where it has them all."""
    if not (e.setting("regularization.dropout") or e.setting("regularization.weight_decay")):
        return e.again("regularization=standard")
    if not _augments(e, *WARPS, *OTHERS):
        return e.again("augmentation=light")
    has_strong = all((number(e.setting(f"regularization.{key}")) or 0) >= least for key, least in STRONG.items())
    return smaller(e) if has_strong else e.again("regularization=strong")


def less_augmentation(e: Evidence) -> str:
    """The next lighter one; for images that are used as they are, a batch of the size that is read quickest."""
    if not _augments(e, *WARPS, *OTHERS):
        return e.again(verb="tune batch")
    is_above_light = _augments(e, "rotation") and _augments(e, *OTHERS)
    return e.again("augmentation=light" if is_above_light else "augmentation=none")


def _augments(e: Evidence, *kinds: str) -> bool:
    return any(e.setting(f"augmentation.{kind}") for kind in kinds)


def larger(e: Evidence) -> str:
    """The network four times as wide where its config has widths, else another one."""
    return _resized(e, lambda size: max(64, 4 * size))


def smaller(e: Evidence) -> str:
    """Half as wide where its config has widths that can be halved, else another one."""
    return _resized(e, lambda size: max(1, size // 2))


def _resized(e: Evidence, resize: Callable[[int], int]) -> str:
    for key in ("hidden", "channels", "widths"):
        sizes = e.setting(f"model.{key}")
        if isinstance(sizes, list) and sizes and all(isinstance(size, int) for size in sizes):
            resized = [resize(size) for size in sizes]
            return e.again(f"model.{key}=[{','.join(map(str, resized))}]") if resized != sizes else OTHER_MODEL
    return OTHER_MODEL


def sweep_of(e: Evidence) -> str:
    """The best of the sweep that stopped this trial: to train it further on would spend what the sweep saved."""
    name, blank, outputs = e.name.partition(" ")  # sw/0003 --outputs FOLDER
    sweep, slash, _ = name.rpartition("/")
    return f"dlcli sweep top {sweep if slash else 'latest'}{blank}{outputs}"
