"""The `dlcli` program: the Typer app, and what becomes of errors: one message, a remedy, an exit code."""

from __future__ import annotations

import os
import sys
from typing import Any


def main() -> None:
    """Entry point of the console script."""
    if "_DLCLI_COMPLETE" in os.environ:  # a <TAB>: answered before Typer is imported
        from dlcli.completion import answer

        answer()
        return
    open_closed_streams()
    sys.exit(run(sys.argv[1:]))


def open_closed_streams() -> None:
    """Where stdin, stdout or stderr came closed (`>&-`): to nowhere, so that no file of the run gets their number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code. Nothing but a bug gets past as an exception, and that only with --debug."""
    from dlcli.errors import DlcliError

    debug = "--debug" in arguments or os.environ.get("DLCLI_DEBUG", "") not in ("", "0")
    arguments = ["--help" if word == "-h" else word for word in arguments if word != "--debug"]
    try:
        code = make_app()(args=arguments, prog_name="dlcli", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except DlcliError as error:
        if debug:
            import traceback

            traceback.print_exc()
        return tell(error, as_json="--json" in arguments)
    except BrokenPipeError:  # dlcli runs ls | head -1
        return nobody_reads()
    except SystemExit as end:  # Typer's own answer to the same, while a command prints
        if isinstance(end.__context__, BrokenPipeError):
            return nobody_reads()
        raise
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return (
            usage_error(error, as_json="--json" in arguments)
            if hasattr(error, "format_message")
            else _interruption(error) or fault(error, debug=debug)
        )


def nobody_reads() -> int:
    """The code of a program that a closed pipe ended; what is still held for stdout goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141


def make_app() -> Any:
    """The Typer app with every command that works."""
    import typer

    from dlcli import __version__

    app = typer.Typer(
        name="dlcli",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            print(f"dlcli {__version__}")
            raise typer.Exit

    @app.callback(epilog="Begin with:  dlcli train      then  dlcli eval      `--debug` shows tracebacks.")
    def dlcli(
        version: bool = typer.Option(
            False, "--version", help="Show the version.", callback=show_version, is_eager=True
        ),
    ) -> None:
        """Train, evaluate and compare deep-learning experiments."""

    _add_commands(app)
    return app


def _add_commands(app: Any) -> None:
    from dlcli.commands import (
        compare,
        completion,
        config,
        doctor,
        evaluate,
        generate,
        info,
        learn,
        plan,
        predict,
        rerun,
        resume,
        runs,
        sweep,
        sync,
        train,
        tune,
        why,
    )
    from dlcli.commands import list as list_command

    # A misspelt flag is reported together with every other mistake; `-h` would be found inside `-trainer.epochs=3`.
    free = {"ignore_unknown_options": True, "help_option_names": ["--help"]}
    app.command(context_settings=free)(train.train)
    app.command("eval")(evaluate.evaluate)
    app.command(context_settings=free)(plan.plan)
    app.command(context_settings=free)(info.info)
    app.command()(resume.resume)
    app.command()(rerun.rerun)
    app.command()(compare.compare)
    app.command()(predict.predict)
    app.command()(generate.generate)
    app.command()(why.why)
    app.add_typer(runs.app, name="runs")
    app.add_typer(config.app, name="config")
    app.add_typer(tune.app, name="tune")
    app.add_typer(learn.app, name="learn")
    app.add_typer(sweep.app, name="sweep")
    app.command("list")(list_command.list_options)
    app.command()(sync.sync)
    app.command()(doctor.doctor)
    app.command()(completion.completion)


def tell(error: Any, *, as_json: bool) -> int:
    from dlcli.reporting.errors import print_error

    if error.is_told_elsewhere:
        return int(error.code)
    print_error(error, stream=sys.stderr)
    if as_json and not error.is_on_record:
        import json

        problems = [
            {"where": p.where, "message": p.message, "better": p.better} for p in getattr(error, "problems", ())
        ]
        print(
            json.dumps(
                {
                    "event": "error",
                    "code": error.code,
                    "message": error.message,
                    "hint": error.hint,
                    "problems": problems,
                }
            )
        )
    return int(error.code)


def usage_error(error: Any, *, as_json: bool) -> int:
    """Typer's own complaint about a command line."""
    from dlcli.errors import ConfigError

    message = " ".join(error.format_message().split()).rstrip(".")
    if not message:  # no command was named: its help has been shown
        return 2
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context else "dlcli --help"
    return tell(ConfigError(message, hint=hint), as_json=as_json)


def _interruption(error: Exception) -> int | None:
    """Typer turns Ctrl-C into its own Abort."""
    return 130 if type(error).__name__ == "Abort" else None


def fault(error: Exception, *, debug: bool) -> int:
    """A bug of dlcli's own: one line, and where the traceback lies."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    if debug:
        sys.stderr.write(text)
        return 70
    log = next(iter(getattr(error, "__notes__", ())), None)
    if log is None:
        with tempfile.NamedTemporaryFile("w", prefix="dlcli-", suffix=".log", delete=False, encoding="utf-8") as file:
            file.write(text)
        log = file.name
    print(
        f"error: a fault of dlcli's own: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        file=sys.stderr,
    )
    print(f"hint: The traceback lies in {log}; please report it.", file=sys.stderr)
    return 70
