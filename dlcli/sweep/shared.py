"""A ledger that machines share: Optuna's tables in a PostgreSQL, by an address like postgresql://user@host/database.

The password is never written down: it stands in the address given, in $DLCLI_STORAGE, $PGPASSWORD or ~/.pgpass.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import optuna

from dlcli.errors import ConfigError, EnvironmentFault, printable
from dlcli.sweep.definition import Definition
from dlcli.sweep.ledger import Ledger

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
LOCK_S = 120  # to wait for the others' claims; and what a claim may take before the database ends it, with its process
VARIABLE = "DLCLI_STORAGE"


def checked_address(address: str) -> str:
    """ConfigError for what is no address of a PostgreSQL."""
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES or not parts.path.strip("/"):
        shown = printable(without_password(address))
        raise ConfigError(f"--storage {shown} is not understood", hint="postgresql://user@host:5432/database")
    return address


def without_password(address: str) -> str:
    parts = urlsplit(address)
    if parts.password is None:
        return address
    user = f"{parts.username}@" if parts.username else ""
    return urlunsplit(parts._replace(netloc=user + parts.netloc.rpartition("@")[2]))


def open_shared(folder: Path, definition: Definition, address: str) -> SharedLedger:
    """Errors: EnvironmentFault when the database cannot be reached, or its driver is not installed."""
    address = os.environ.get(VARIABLE) or address
    shown = printable(without_password(address))
    with reaching(shown):
        return SharedLedger(folder, definition, open_storage(address))


def open_storage(address: str) -> optuna.storages.RDBStorage:
    if find_spec("psycopg") is None:
        raise EnvironmentFault("a shared ledger needs psycopg", hint="pip install 'dlcli[postgres]'")
    parts = urlsplit(checked_address(address))
    url = urlunsplit(parts._replace(scheme="postgresql+psycopg"))
    engine = {"pool_pre_ping": True, "pool_size": 4, "connect_args": {"connect_timeout": 10}}
    return optuna.storages.RDBStorage(url, engine_kwargs=engine)


@contextmanager
def reaching(shown: str) -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        told = printable(str(getattr(cause, "orig", cause)).splitlines()[0] if str(cause) else type(cause).__name__)
        hint = f"Is the server up, and the password in ${VARIABLE}, $PGPASSWORD or ~/.pgpass?"
        raise EnvironmentFault(f"the ledger at {shown} cannot be reached: {told}", hint=hint) from error


class SharedLedger(Ledger):
    """The folder is this machine's: trials that ran elsewhere have theirs there, and the ledger has all records."""

    storage: optuna.storages.RDBStorage

    def __init__(self, folder: Path, definition: Definition, storage: optuna.storages.RDBStorage):
        super().__init__(folder, definition, storage)
        self.lock_number = int.from_bytes(hashlib.sha256(definition.name.encode()).digest()[:8], "big", signed=True)
        if "definition" not in self.study.user_attrs:
            self.study.set_user_attr("definition", definition.as_dict())

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """A lock of the database: it ends with the connection, or after LOCK_S of silence of a machine that is gone."""
        from sqlalchemy import text

        with self.storage.engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_S}s'"))
            connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{LOCK_S}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": self.lock_number})
            yield

    def beat(self, worker_id: str, number: int) -> None:
        self.study.set_user_attr(f"beat:{worker_id}", number)

    def read_beat(self, worker_id: str) -> int | None:
        return self.study.user_attrs.get(f"beat:{worker_id}")


def shared_definition(name: str, address: str) -> Definition:
    """The definition of a sweep that only the ledger tells of: this machine has no folder of it."""
    with reaching(printable(without_password(address))):
        storage = open_storage(address)
        names = sorted(storage_study.study_name for storage_study in storage.get_all_studies())
        if name not in names:
            shown = ", ".join(names[:8]) or "none"
            raise ConfigError(f"the ledger has no sweep {printable(name)}", hint=f"It has: {shown}.")
        attrs: dict[str, Any] = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    if "definition" not in attrs:
        raise ConfigError(f"{printable(name)} is a study of another program", hint="Name a sweep of dlcli's.")
    return Definition.from_dict(attrs["definition"])
