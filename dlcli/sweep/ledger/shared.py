"""A ledger that machines share: Optuna's tables in a PostgreSQL, by an address (address.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import optuna
from sqlalchemy import event, text
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from dlcli.errors import ConfigError, EnvironmentFault, printable
from dlcli.sweep.ledger.address import VARIABLE, checked_address, without_password
from dlcli.sweep.ledger.claims import Ledger
from dlcli.sweep.study.definition import Definition

LOCK_S = 120  # to wait for the others' claims; and what a claim may take before the database ends it, with its process


def open_shared(folder: Path, definition: Definition, address: str) -> SharedLedger:
    """Errors: EnvironmentFault when the database cannot be reached, or its driver is not installed."""
    with reaching(address):
        storage = open_storage(address)
        try:
            return SharedLedger(folder, definition, storage)
        except BaseException:
            storage.engine.dispose()
            raise


def open_storage(address: str) -> optuna.storages.RDBStorage:
    """From here on, whatever keeps Optuna or dlcli from the database is an EnvironmentFault."""
    if find_spec("psycopg") is None:
        raise EnvironmentFault("a shared ledger needs psycopg", hint="pip install 'dlcli[postgres]'")
    url = urlunsplit(urlsplit(checked_address(address))._replace(scheme="postgresql+psycopg"))
    engine = {"pool_pre_ping": True, "pool_size": 4, "connect_args": {"connect_timeout": 10}}
    storage = optuna.storages.RDBStorage(url, engine_kwargs=engine)

    def tell(context: Any) -> None:
        is_lost = isinstance(context.sqlalchemy_exception, OperationalError | InterfaceError)
        if is_lost and not context.is_pre_ping:  # after a ping that failed a new connection is tried
            raise unreachable(address, context.sqlalchemy_exception) from context.sqlalchemy_exception

    event.listen(storage.engine, "handle_error", tell)
    return storage


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """While it is opened: the tables may be missing, of another version, or not ours to make."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise unreachable(address, error) from error


def unreachable(address: str, error: BaseException) -> EnvironmentFault:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    message = printable(lines[0] if lines else type(error).__name__)
    hint = f"Is the server up, and the password in ${VARIABLE}, $PGPASSWORD or ~/.pgpass?"
    return EnvironmentFault(
        f"the ledger at {printable(without_password(address))} does not answer: {message}", hint=hint
    )


class SharedLedger(Ledger):
    """The folder is this machine's: trials that ran elsewhere have theirs there, and the ledger has all records."""

    storage: optuna.storages.RDBStorage

    def __init__(self, folder: Path, definition: Definition, storage: optuna.storages.RDBStorage):
        super().__init__(folder, definition, storage)
        self.lock_number = int.from_bytes(hashlib.sha256(definition.name.encode()).digest()[:8], "big", signed=True)
        self._agree()

    def _agree(self) -> None:
        """The same sweep under one name on every machine, and of its numbers of trials the largest asked for."""
        with self.exclusively():
            stored = self.study.user_attrs.get("definition")
            if stored is None and not self.trials():
                self.study.set_user_attr("definition", self.definition.as_dict())
            elif stored is None or stored["created"] != self.definition.created:
                message = f"the ledger has another sweep called {printable(self.definition.name)}"
                raise ConfigError(message, hint=f"Start yours under another --name, or: {_join(self.definition)}")
            elif stored["trials"] < self.definition.trials:
                self.study.set_user_attr("definition", self.definition.as_dict())
            else:
                self.definition = self.definition.with_trials(stored["trials"])

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """A lock of the database: it ends with the connection, or after LOCK_S of silence of a machine that is gone."""
        with self.storage.engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_S}s'"))
            connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{LOCK_S}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": self.lock_number})
            yield

    def close(self) -> None:
        self.storage.engine.dispose()

    def beat(self, worker_id: str, number: int) -> None:
        self.study.set_user_attr(f"beat:{worker_id}", number)

    def read_beat(self, worker_id: str) -> int | None:
        return self.study.user_attrs.get(f"beat:{worker_id}")


def _join(definition: Definition) -> str:
    return f"dlcli sweep join {definition.name} --storage {definition.storage}"


def shared_names(address: str) -> list[str]:
    """The sweeps, and other studies, that a ledger has. EnvironmentFault where there is no database."""
    with _looking_into(address) as storage:
        return sorted(study.study_name for study in storage.get_all_studies())


def shared_definition(name: str, address: str) -> Definition:
    """The definition of a sweep that only the ledger tells of: this machine has no folder of it."""
    with _looking_into(address) as storage:
        found = {study.study_name: study.user_attrs for study in storage.get_all_studies()}
    if name not in found:
        shown = ", ".join(printable(other) for other in sorted(found)[:8]) or "none"
        raise ConfigError(f"the ledger has no sweep {printable(name)}", hint=f"It has: {shown}.")
    if "definition" not in found[name]:
        raise ConfigError(f"{printable(name)} is a study of another program", hint="Name a sweep of dlcli's.")
    return Definition.from_dict(found[name]["definition"])


@contextmanager
def _looking_into(address: str) -> Iterator[optuna.storages.RDBStorage]:
    with reaching(address):
        storage = open_storage(address)
        try:
            yield storage
        finally:
            storage.engine.dispose()
