"""Takes secrets out of what is written down: everything that goes to a run folder passes through `redact`.

Three things are replaced by `***`: the values of environment variables with a secret's name, wherever they occur; user
and password in URLs; values under a key with a secret's name (`tracker.api_key`, also as the word `api_key=...`).
"""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
SHORTEST = 8  # characters; a shorter value would be found inside ordinary words

_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
# The last word of a key, whole: `tokenizer`, `num_tokens` and `monkey` are no secrets.
_KEY = re.compile(r"(?:^|[._\-/\s])(?:api)?(?:key|token|secrets?|passwords?|passwd|credentials?)$", re.IGNORECASE)
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)[^/\s?#]*@")
_ASSIGNMENT = re.compile(r"^([-+~]*[\w.\-/@]+)=(.+)$", re.DOTALL)


def redact(value: Any, secrets: list[str] | None = None) -> Any:
    """A copy of `value` (text, numbers, lists, dicts, nested) without secrets; tuples become lists, paths text.

    Numbers under a secret's key stay (`pad_token: 0` is not a secret), text and containers do not. Who redacts often
    gives `find_secrets()` once: looking through the environment takes 0.1 ms.
    """
    return _redact(value, find_secrets() if secrets is None else secrets)


def find_secrets() -> list[str]:
    """The secret values in the environment, longest first so that one inside another leaves no rest."""
    values: set[str] = set()
    for name, value in os.environ.items():
        # A folder (`SSH_KEYS_DIR=/home/me`) is a place, and hiding it would break every path below it.
        if len(value) >= SHORTEST and _VARIABLE.search(name) and not (value.startswith("/") and os.path.isdir(value)):
            values.update((value, value.strip(), quote(value, safe="")))
    return sorted(values, key=len, reverse=True)


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str | PurePath):
        return _redact_text(str(value), secrets)
    if isinstance(value, dict):
        return {_redact_key(key, secrets): _redact_entry(key, entry, secrets) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item, secrets) for item in value]
    return value


def _redact_key(key: Any, secrets: list[str]) -> Any:
    return _redact_text(key, secrets) if isinstance(key, str) else key


def _redact_entry(key: Any, entry: Any, secrets: list[str]) -> Any:
    if isinstance(key, str) and entry and isinstance(entry, str | dict | list | tuple) and _KEY.search(key):
        return HIDDEN
    return _redact(entry, secrets)


def _redact_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    if "=" in text and (word := _ASSIGNMENT.match(text)) and _KEY.search(word[1]):
        text = f"{word[1]}={HIDDEN}"
    if not text.isascii():  # a lone surrogate, from a file name that is not UTF-8, can be written nowhere
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text
