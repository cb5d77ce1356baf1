"""Checkpoints: saved atomically, verified to the last bit, restored without running anything from them.

    checkpoints/step-00000938/
      model.safetensors     the weights to use (the averaged ones where there is an average), by name
      state.safetensors     what else training needs: optimizers, raw weights, random states
      checkpoint.json       {"body": ..., "sha256": of the body}: config, classes, scores, positions, sha256 of the two
    checkpoints/last, checkpoints/best    links to one of them

A save is: everything into memory, a look at the free space, a folder beside under a temporary name, write and fsync of
each file, rename, fsync of the directory, then the link, by rename too. A kill at any moment leaves older ones whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from dlcli.config.renamed import renamed, renamed_node
from dlcli.errors import CheckpointError, DivergedError, EnvironmentFault, printable
from dlcli.runs.disk import discard

FORMAT = 1
WEIGHTS, STATE, MANIFEST = "model.safetensors", "state.safetensors", "checkpoint.json"
LARGEST_MANIFEST = 16 * 2**20  # bytes
LARGEST_FILE = 64 * 2**30  # bytes
DEEPEST = 40  # levels of lists and objects in a manifest
NAME = re.compile(r"step-(\d{8,15})")


class StoredFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=LARGEST_FILE)


class Manifest(BaseModel):
    """The content of `checkpoint.json`: plain data, no other fields; `fitted`, added later, is optional."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int = Field(ge=FORMAT, le=FORMAT)
    dlcli: str
    run: str
    experiment: str
    step: int = Field(ge=0)
    files: dict[str, StoredFile]
    config: dict[str, Any]
    teacher: dict[str, Any] | None  # model node of the network to learn from, if the task has one
    classes: list[str]
    majority: int | None  # the most common training label: the baseline for every score
    fitted: dict[str, Any] = Field(
        default_factory=dict
    )  # what predictions need from the training split: a tokenizer, means
    data: dict[str, str]  # fingerprint per split
    environment: dict[str, Any]
    state: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory. weights, state: name -> tensor on the CPU."""

    folder: Path
    manifest: Manifest
    weights: dict[str, Tensor]
    state: dict[str, Tensor]


# --------------------------------------------------------------------------------------------------------------- saving


def save(
    checkpoints: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Tensor], body: Mapping[str, Any]
) -> Path:
    """Write `checkpoints/step-XXXXXXXX` and return it; `last` is left to `point`.

    body: the fields of Manifest but format, step and files. Raises DivergedError for weights that are not finite, and
    EnvironmentFault where the disk does not take it; what was saved before stays whole in either case.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            message = f"the weights in {name} are not finite at step {step}; they were not saved"
            raise DivergedError(
                message, hint="A smaller optimizer.lr or regularization.clip_norm=1.0 is the likely remedy."
            )
    files = {WEIGHTS: _to_bytes(weights), STATE: _to_bytes(state)}
    stored = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()}
    files[MANIFEST] = _manifest_bytes({**body, "format": FORMAT, "step": step, "files": stored})
    final = checkpoints / f"step-{step:08d}"
    try:
        _check_space(checkpoints, sum(map(len, files.values())))
        _write_folder(final, files)
    except OSError as error:
        raise _disk_fault(final, error) from error
    return final


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise tensors. Those that share memory (tied weights) are each written out."""
    copies: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        copies[name] = tensor.detach().to("cpu", copy=place in seen).contiguous()
        seen.add(place)
    return tensors_to_bytes(copies)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _manifest_bytes(body: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(_canonical(body).encode()).hexdigest()
    return _canonical({"body": body, "sha256": digest}).encode()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05 + 65_536:
        raise OSError(errno.ENOSPC, f"{needed / 2**20:.1f} MB needed, {free / 2**20:.1f} MB free")


def _write_folder(final: Path, files: Mapping[str, bytes]) -> None:
    parent = final.parent
    temporary = parent / f".tmp-{final.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, data in files.items():
            _write_file(temporary / name, data)
        fsync_folder(temporary)
        if final.exists():  # a damaged one, or one that a kill left without its link
            aside = parent / f".old-{final.name}-{os.getpid()}"
            os.rename(final, aside)
            os.rename(temporary, final)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(temporary, final)
        fsync_folder(parent)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_file(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], done)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_fault(path: Path, error: OSError) -> EnvironmentFault:
    what = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file is too large",
    }
    message = (
        f"the checkpoint {path} could not be saved: {what.get(error.errno or 0, 'the disk says')}: {error.strerror}"
    )
    return EnvironmentFault(
        message, hint="Free some space and continue with  dlcli resume; earlier checkpoints are intact."
    )


def point(checkpoints: Path, name: str, target: Path) -> None:
    """Make the link `checkpoints/name` point at a checkpoint beside it, by rename."""
    temporary = checkpoints / f".tmp-{name}-{os.getpid()}"
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, checkpoints / name)
        fsync_folder(checkpoints)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _disk_fault(checkpoints / name, error) from error


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the `keep` newest and the targets of `last` and `best`, and the leftovers of kills.

    Those newer than `last` are damaged, since a resume skipped them: they are not counted and are deleted too.
    """
    last, best = ((checkpoints / name).resolve().name for name in ("last", "best"))
    folders = by_step(checkpoints)
    names = [folder.name for folder in folders]
    whole = names.index(last) + 1 if last in names else len(names)
    for folder in [*folders[: max(0, whole - keep)], *folders[whole:]]:
        if folder.name not in (last, best):
            discard(folder)
    for left in (*checkpoints.glob(".tmp-*"), *checkpoints.glob(".old-*")):
        discard(left)


def by_step(checkpoints: Path) -> list[Path]:
    """List the checkpoint folders, oldest step first."""
    found = [
        (int(m.group(1)), p) for p in checkpoints.glob("step-*") if (m := NAME.fullmatch(p.name)) and not p.is_symlink()
    ]
    return [path for _, path in sorted(found)]


# -------------------------------------------------------------------------------------------------------------- reading


def newest_valid(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint, by step, that verifies; and a sentence for each newer one that does not."""
    warnings: list[str] = []
    for folder in reversed(by_step(checkpoints)):
        try:
            return read(folder), warnings
        except CheckpointError as error:
            warnings.append(f"{folder.name} is passed over: {error.message}")
    return None, warnings


def read(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint folder. Raises CheckpointError; runs nothing from it, returns nothing half-read."""
    folder = _resolve(folder)
    manifest = read_manifest(folder)
    data = {name: _read_verified(folder / name, manifest.files[name]) for name in (WEIGHTS, STATE)}
    weights, state = (_tensors(folder / name, data.pop(name)) for name in (WEIGHTS, STATE))
    _check_finite(folder, weights)
    return Checkpoint(folder, manifest, weights, state)


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest and verify all but the tensors. Raises CheckpointError."""
    folder = _resolve(folder)
    path = folder / MANIFEST
    raw = _read_regular(path, LARGEST_MANIFEST)
    try:
        outer = json.loads(raw.decode("ascii"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        body, digest = outer["body"], outer["sha256"]
        if set(outer) != {"body", "sha256"} or _canonical(outer).encode() != raw:
            raise _damaged(path, "it is not written as dlcli writes it")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"it is not the JSON that dlcli writes ({printable(error, limit=60)})") from error
    if hashlib.sha256(_canonical(body).encode()).hexdigest() != digest:
        raise _damaged(path, "its sha256 does not match")
    if isinstance(body, dict) and isinstance(body.get("format"), int) and body["format"] > FORMAT:
        message = f"{printable(path)} has format {body['format']}, newer than this dlcli knows ({FORMAT})"
        raise CheckpointError(message, hint="pip install -U dlcli")
    if _is_deeper(body, DEEPEST):
        raise _damaged(path, f"it is nested deeper than {DEEPEST}")
    try:
        manifest = Manifest.model_validate(body)
    except (ValidationError, RecursionError) as error:
        raise _damaged(path, f"it lacks what a checkpoint has: {_first_error(error)}") from error
    if set(manifest.files) != {WEIGHTS, STATE}:
        raise _damaged(path, "it does not name the two files of a checkpoint")
    if (named := NAME.fullmatch(folder.name)) and int(named.group(1)) != manifest.step:
        raise _damaged(path, f"it is of step {manifest.step}, not of {folder.name}")
    return manifest.model_copy(
        update={"config": renamed(manifest.config), "teacher": renamed_node(manifest.teacher, "model")}
    )


def _first_error(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return printable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", limit=100)
    return "nested too deep"


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) and (levels == 0 or any(_is_deeper(v, levels - 1) for v in inner))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _resolve(folder: Path) -> Path:
    try:
        resolved = folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"there is no checkpoint {printable(folder)}", hint="dlcli runs ls  shows what there is"
        ) from error
    if not resolved.is_dir():
        raise CheckpointError(
            f"{printable(folder)} is not a checkpoint: a checkpoint is a folder with {WEIGHTS}, {STATE} and {MANIFEST}",
            hint="Pickled files (.pt, .ckpt) are never opened: they can run code.",
        )
    return resolved


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint is damaged: {printable(path)}: {why}",
        hint="Use another one of the run: dlcli eval RUN/last, RUN/best or RUN/step-XXXXXXXX; "
        "dlcli resume takes the newest whole one.",
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a regular file: no link, no pipe, no device, and no waiting for one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_regular(path: Path, limit: int) -> bytes:
    with _opened(path) as descriptor:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise _damaged(path, "it is not an ordinary file")
        if facts.st_size > limit:
            raise _damaged(path, f"it has {facts.st_size:,} bytes, more than {limit:,}")
        parts = []
        while chunk := os.read(descriptor, 2**26):
            parts.append(chunk)
        return b"".join(parts)


def _read_verified(path: Path, stored: StoredFile) -> bytes:
    data = _read_regular(path, stored.size)
    if len(data) != stored.size:
        raise _damaged(path, f"it has {len(data):,} bytes of {stored.size:,}")
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise _damaged(path, "its sha256 does not match")
    return data


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        tensors = load_tensors(data)
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        json.loads(header, object_pairs_hook=_no_duplicates)  # safetensors takes the last of two of one name
        return tensors
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, AttributeError) as error:
        raise _damaged(path, f"it is not a safetensors file ({printable(error, limit=80)})") from error


def _check_finite(folder: Path, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{printable(folder)}: the weights in {printable(name)} are not finite",
                hint="The run had diverged; use an older checkpoint, or train again with a smaller optimizer.lr.",
            )
