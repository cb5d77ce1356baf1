"""`dlcli predict INPUT...`: what a trained network says of images, sentences, recordings, rows of a table."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dlcli.commands import ConfigDir, Outputs, Trust


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="What the run was trained on: files, folders of images or recordings, sentences or files "
            "with one a line; - reads stdin. KEY=VALUE among them: as in dlcli eval.",
        ),
    ],
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN|CHECKPOINT", help="A run or checkpoint, as in dlcli eval; default latest."),
    ] = None,
    top: Annotated[int, typer.Option("--top", help="How many classes or readings to show.", min=1)] = 3,
    save: Annotated[str | None, typer.Option("--save", help="A folder for pictures: boxes, masks, attention.")] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="What the answer looks at: the weight of each token, patch, row.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Of boxes: the lowest score to show; 0.4.", min=0.0, max=1.0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per input.")] = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
) -> int:
    """Ask a trained network: classes, boxes, masks, transcripts, translations. The answers keep the inputs' order.

    Example: dlcli predict picture.png --run latest
    """
    from dlcli.config.folders import search_path
    from dlcli.errors import ConfigError
    from dlcli.runs.find import find_checkpoint, outputs_folder

    folder = find_checkpoint(run, outputs_folder(outputs))

    from dlcli.datasets.kinds import kind_of
    from dlcli.inference import trained
    from dlcli.inference.explain.attention import check_attentive
    from dlcli.inference.predict import predictor
    from dlcli.training.allow_list import Builder

    inputs, settings = trained.split_settings(inputs)
    if not inputs:
        raise ConfigError("no input is named, only settings", hint="dlcli predict INPUT " + " ".join(settings))
    loaded = trained.load(folder, settings, builder=Builder.for_search(search_path(config_dir), trust or []))
    kind = kind_of(loaded.tree["dataset"])
    module = predictor(kind.name)
    wishes: dict[str, Any] = {}
    if threshold is not None:
        if not kind.has_threshold:
            given = f"{loaded.manifest.run} was trained on {kind.name}"
            raise ConfigError(f"--threshold is of boxes; {given}, whose answers have none", hint="Leave it out.")
        wishes["threshold"] = threshold
    if attention:
        check_attentive(loaded, kind)
        wishes |= {"attention": True, "whole": as_json}
    answers = module.answers(loaded, inputs, top=top, save=save, **wishes)
    print_answers(answers, module, as_json=as_json)
    return 3 if any("error" in answer for answer in answers) else 0


def print_answers(answers: list[dict[str, Any]], module: Any, *, as_json: bool) -> None:
    import json

    from dlcli.inference.explain.attention import rounded
    from dlcli.inference.predict import as_table
    from dlcli.reporting.tables import print_table

    if as_json:
        for answer in answers:
            print(json.dumps(answer, default=rounded))  # tensors: whole weights of attention
        return
    print_table("predictions", *as_table(module, answers))
    for answer in answers:
        if "attention" in answer:
            print_attention(answer)


def print_attention(answer: dict[str, Any]) -> None:
    from dlcli.inference.explain.attention import as_lines
    from dlcli.reporting.output import place
    from dlcli.reporting.tables import print_table

    title, names, rows = as_lines(answer)
    print(f"\n{title}")
    print_table("attention", names, rows)
    if "picture" in answer["attention"]:
        print(f"picture: {place(answer['attention']['picture'])}")
