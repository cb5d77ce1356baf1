"""`dlcli predict IMAGE...`: classes with probabilities for image files, folders, or stdin."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dlcli.commands import ConfigDir, Outputs, Trust


def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Image files or folders of them; - reads one from stdin.")
    ],
    run: Annotated[
        str | None, typer.Option("--run", help="A run or checkpoint, as in dlcli eval; default latest.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="How many classes to show.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image.")] = False,
    config_dir: ConfigDir = None,
    outputs: Outputs = None,
    trust: Trust = None,
) -> int:
    """Classify images with a trained network; the answers keep the order of the images.

    Example: dlcli predict picture.png --run latest
    """
    from dlcli.confdir import search_path
    from dlcli.images import find_images
    from dlcli.runs import find_checkpoint, outputs_folder

    found = find_images(images)
    folder = find_checkpoint(run, outputs_folder(outputs))

    from dlcli import trained
    from dlcli.build import Builder
    from dlcli.images import classify

    loaded = trained.load(folder, builder=Builder.for_search(search_path(config_dir), trust or []))
    answers = classify(loaded, found, top=top)
    print_answers(answers, as_json=as_json)
    return 3 if any("error" in answer for answer in answers) else 0


def print_answers(answers: list[dict[str, Any]], *, as_json: bool) -> None:
    import json

    from dlcli.display import print_table
    from dlcli.errors import printable

    if as_json:
        for answer in answers:
            print(json.dumps(answer))
        return
    rows = []
    for answer in answers:
        others = ", ".join(
            f"{printable(c['class'])} {100 * c['probability']:.1f} %" for c in answer.get("classes", [])[1:]
        )
        first = answer["classes"][0] if "classes" in answer else None
        rows.append(
            [printable(answer["image"]), printable(first["class"]), f"{100 * first['probability']:.1f} %", others]
            if first
            else [printable(answer["image"]), "error", None, printable(answer["error"].removesuffix("."))]
        )
    print_table("predictions", ["image", "class", "probability", "others"], rows)
