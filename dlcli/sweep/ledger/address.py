"""Where a shared ledger is: an address like postgresql://user@host:5432/database.

The password is never written down: it comes from the address given, $DLCLI_STORAGE, $PGPASSWORD or ~/.pgpass.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from dlcli.errors import ConfigError, printable

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
VARIABLE = "DLCLI_STORAGE"


def checked_address(address: str) -> str:
    """Raise ConfigError for what is not the address of a PostgreSQL."""
    if not _is_address(address):
        shown = printable(without_password(address))
        hint = "postgresql://user@host:5432/database; a password's / # ? @ are written %2F %23 %3F %40"
        raise ConfigError(f"--storage {shown} is not understood", hint=hint)
    return address


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in SCHEMES and bool(parts.path.strip("/")) and parts.port != 0 and not parts.fragment
    except ValueError:  # a port that is not a number
        return False


def without_password(address: str) -> str:
    """Everything between `user:` and the last `@`, even if that makes the address invalid; and ?password=..."""
    shown = re.sub(r"(//[^:@/]*):.*@", r"\1@", address, flags=re.DOTALL)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1", shown, flags=re.IGNORECASE)
