"""`dlcli generate [RUN]`: text that goes on where a prompt ends, shown as it is made."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dlcli.commands import ConfigDir, Outputs, Trust


def generate(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN|CHECKPOINT]", help="As in dlcli eval; default latest.")
    ] = None,
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", help="How the text begins, a file of it (./FILE, x.txt), or - for stdin; default a new line."
        ),
    ] = "",
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=1_000_000, help="How long the text may be.")] = 500,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, max=100.0, help="0: always the likeliest; 1: as learnt.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Only from the K likeliest tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", min=0.0, max=1.0, help="Only from the likeliest that reach probability P together."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this text; may be given several times.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Repeats a text; default: another each time.")
    ] = None,
    num: Annotated[int, typer.Option("--num", min=1, max=10_000, help="How many texts; seeds S, S + 1, ...")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per text.")] = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
) -> None:
    """Let a trained language model go on with a text.

    Example: dlcli generate --prompt "ROMEO:" --tokens 300 --temperature 0.8
    """
    import secrets

    from dlcli.config.folders import search_path
    from dlcli.errors import ConfigError
    from dlcli.runs.find import find_checkpoint, outputs_folder

    if "" in (stop or ()):
        raise ConfigError("--stop must not be empty: it would match everywhere", hint="--stop END")
    folder = find_checkpoint(run, outputs_folder(outputs))

    from dlcli.inference import trained
    from dlcli.inference.generation import Sampling
    from dlcli.inference.predict import stream
    from dlcli.training.allow_list import Builder

    prompt = read_prompt(prompt)
    loaded = trained.load(folder, builder=Builder.for_search(search_path(config_dir), trust or []))
    sampling = Sampling(temperature, top_k, top_p)
    tells_seed = seed is None and sampling.is_random
    first = secrets.randbelow(2**31) if seed is None else seed
    for i in range(num):
        pieces = stream.write(loaded, prompt, num_tokens=tokens, sampling=sampling, seed=first + i, stop=stop or ())
        show(prompt, pieces, seed=first + i, as_json=as_json, is_last=i == num - 1, tells_seed=tells_seed)


def read_prompt(named: str) -> str:
    """The text that --prompt means: itself, a file's, or stdin's. Raises DataError."""
    from dlcli.errors import DataError, printable
    from dlcli.inference.predict.text_inputs import read_whole

    try:
        return read_whole(named)
    except DataError as error:
        hint = "--prompt 'A TEXT', --prompt ./FILE, or --prompt - for stdin"
        raise DataError(f"--prompt {printable(named)} {error.message}", hint=hint) from error


def show(prompt: str, pieces: Any, *, seed: int, as_json: bool, is_last: bool, tells_seed: bool) -> None:
    import json
    import sys

    if as_json:
        print(json.dumps({"prompt": prompt, "text": "".join(pieces), "seed": seed}), flush=True)
        return
    for i, piece in enumerate(pieces):
        print(tame(prompt) * (i == 0) + tame(piece), end="", flush=True)
    print("" if is_last else "\n---", flush=True)
    if tells_seed:
        print(f"again:  --seed {seed}", file=sys.stderr)


def tame(text: str) -> str:
    """Without signs that could steer a terminal; lines and tabs stay."""
    from dlcli.errors import printable

    return "".join(c if c in "\n\t" else printable(c) for c in text)
