"""The pictures of a sweep and what mattered in it, made once for the results that there are."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlcli.errors import DlcliError
from dlcli.reporting.output import clean
from dlcli.runs.disk import read_json, write_atomically
from dlcli.sweep.study.definition import Definition
from dlcli.sweep.study.trial_record import Record

CACHE = ".pictures.json"  # in the sweep's folder: of which records the pictures and the importance are


def draw_once(folder: Path, definition: Definition, records: Sequence[Record]) -> dict[str, Any]:
    """{"pictures": name -> path, "importance": axis -> share}, made again if the results have changed since.

    What cannot be drawn is a note on stderr: nothing depends on it.
    """
    finished = [record.as_dict() for record in records if record.is_finished]
    plain = json.dumps([definition.as_dict(), finished], sort_keys=True)
    now = hashlib.sha256(plain.encode()).hexdigest()
    before = read_json(folder / CACHE) or {}
    if before.get("of") == now and all(os.path.exists(path) for path in before["pictures"].values()):
        return {key: before[key] for key in ("pictures", "importance")}
    try:
        made = _draw(folder, definition, records)
        write_atomically(folder / CACHE, json.dumps({"of": now, **made}).encode())
    except DlcliError as error:  # another's folder: there is something to see all the same
        print(f"note: {clean(error.message)}", file=sys.stderr)
        made = {"pictures": {}, "importance": {}}
    except Exception as error:
        print(f"note: the pictures could not be drawn ({type(error).__name__}: {clean(error)})", file=sys.stderr)
        made = {"pictures": {}, "importance": {}}
    return made


def _draw(folder: Path, definition: Definition, records: Sequence[Record]) -> dict[str, Any]:
    from dlcli.sweep.results.importance import importance
    from dlcli.sweep.results.pictures import draw_sweep

    shares = importance(definition, records)
    return {"pictures": draw_sweep(folder, definition, records, shares), "importance": shares}
