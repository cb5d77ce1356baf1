"""The table that <TAB> reads, made from the Typer app:  python -m tests.completion_table  writes the file.

Typer itself takes 0.1 s to import, half of what an answer may take; so the table lies in a file of the package, and
tests/test_completion.py fails where it differs from the app.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlcli.completion import TABLE


def table() -> str:
    """One line per command with what it takes, below it one line per option: its name, and its value if it has one."""
    import typer.main

    from dlcli.cli import make_app

    return "".join(f"{line}\n" for line in _lines(typer.main.get_command(make_app()), ""))


def _lines(command: Any, path: str) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    yield "\t".join([path, *(f"{a.name.upper()}: {_value(a)}" for a in arguments)])
    options = {name: p for p in command.params if p.param_type_name == "option" for name in p.opts}
    for name in sorted(options):
        yield f"  {name}" if options[name].is_flag else f"  {name}\t{_value(options[name])}"
    for name, below in getattr(command, "commands", {}).items():
        yield from _lines(below, f"{path} {name}".strip())


def _value(parameter: Any) -> str:
    """`[RUN] [KEY=VALUE]...` as the command's help shows it, `a|b|c` for a choice, else the parameter's name."""
    return parameter.metavar or "|".join(getattr(parameter.type, "choices", ())) or parameter.name.upper()


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    print(f"{TABLE} has been written")
