"""Every option of every group, as the first comment of its file has it: two steps on made-up data, from end to end.

Composed, built, trained for two finite steps, saved after each; resumed from the first checkpoint to the same bits;
evaluated as `dlcli eval` does and asked as `dlcli predict` does. Tables are real: what is fitted to them is their
shape.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from string import printable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dlcli.config import compose_command
from dlcli.config.folders import GROUPS, options, packaged_conf
from dlcli.datasets.batches.examples import Data, Examples, in_memory
from dlcli.datasets.kinds import gives
from dlcli.datasets.made_up import made_up_data
from dlcli.evaluation import score
from dlcli.inference import trained
from dlcli.inference.explain.attention import as_lines, rounded
from dlcli.inference.predict import predictor
from dlcli.runs.events import Silent
from dlcli.training import build, completing, start
from dlcli.training.allow_list import Builder

CONF = packaged_conf()
SMALL = (
    "trainer.max_steps=2", "trainer.eval_every=null", "trainer.save_every=1", "trainer.keep_checkpoints=9",
    "trainer.accumulate_grad_batches=1", "trainer.pretrained=null", "dataset.batch_size=4", "dataset.eval_batch_size=4",
    "runtime.threads=1", "runtime.device=cpu",
)  # fmt: skip
COUNTED = {"num_classes": 3, "num_tokens": 60, "num_features": 5}  # what only the data can tell
EXAMPLES, LARGEST_SIDE = 8, 64
TEXT = "a man rides a bike . the quick brown fox jumps over it , and then it is five zero seven"


def command_of(group: str, name: str) -> tuple[str, ...]:
    """The words of the first comment of an option's file."""
    lines = options(group, [CONF])[name].read_text().splitlines()
    first = next(line for line in lines if line.startswith("# dlcli train"))
    return tuple(shlex.split(first.removeprefix("# dlcli train")))


OPTIONS = [(group, name) for group in GROUPS if group != "sweep" for name in options(group, [CONF])]
CASES = {command_of(*option): option for option in OPTIONS}  # the same command is walked once


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Walk:
    return Walk(monkeypatch, tmp_path)


def said(words: tuple[str, ...]) -> str:
    return " ".join(words) or "train"


class TestExperiments:  # two classes, so that two processes share the way
    @pytest.mark.parametrize("words", [w for w, (group, _) in CASES.items() if group == "experiment"], ids=said)
    def test_every_experiment_goes_all_the_way(self, words: tuple[str, ...], walk: Walk) -> None:
        go(words, walk)


class TestOptions:
    @pytest.mark.parametrize("words", [w for w, (group, _) in CASES.items() if group != "experiment"], ids=said)
    def test_every_option_goes_all_the_way(self, words: tuple[str, ...], walk: Walk) -> None:
        go(words, walk)


def go(words: tuple[str, ...], walk: Walk) -> None:
    if any("cuda" in str(v) for v in compose_command(walk.filled(words)).tree["runtime"].values()):
        pytest.skip("needs a CUDA device") if not torch.cuda.is_available() else None
    if words[0] == "adult" and "DLCLI_DATA" not in os.environ:
        pytest.skip("needs real data: set DLCLI_DATA to a folder that holds adult/*.gz")
    run = walk.train(words)
    losses = [
        e["values"]["train/loss"] for e in walk.events(run) if e["event"] == "values" and "train/loss" in e["values"]
    ]
    assert all(map(math.isfinite, losses))
    scores = next(e["metrics"] for e in walk.events(run) if e["event"] == "run_finished")
    assert any(name.startswith("test/") for name in scores)
    resumed = walk.resume_from_the_first_step(run)
    for part in ("model.safetensors", "state.safetensors"):
        straight, again = (load_file(path / "checkpoints" / "step-00000002" / part) for path in (run, resumed))
        assert straight.keys() == again.keys()
        assert all(tensor.equal(again[name]) for name, tensor in straight.items()), part
    walk.evaluate_and_predict(run, scores)


class Walk:
    """One option's way, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path):
        self.folder, self.patch = folder, monkeypatch
        monkeypatch.chdir(folder)

    def filled(self, words: tuple[str, ...]) -> list[str]:
        """The words, and the table beside them that they name."""
        rows = [f"{i},{'abc'[i % 3]},{i * i % 7},{'yes' if i % 2 else 'no'}" for i in range(60)]
        Path("rows.csv").write_text("size,kind,colour,COLUMN\n" + "\n".join(rows) + "\n")
        return list(words)

    def train(self, words: tuple[str, ...]) -> Path:
        filled = self.filled(words)
        experiment = [word for word in filled if "=" not in word]
        own = [word for word in filled if "=" in word]
        known = compose_command([*experiment, *own]).tree
        small = [word for word in SMALL if self._is_setting(word, known)]
        channels, *sides = known["dataset"].get("image_shape") or (0,)
        if max(sides, default=0) > LARGEST_SIDE:
            small.append(f"dataset.image_shape=[{channels},{LARGEST_SIDE},{LARGEST_SIDE}]")
        quiet = [] if any(word.startswith("tracker=") for word in own) else ["tracker=none"]
        composed = compose_command([*experiment, *own, *small, *quiet])
        tree = composed.tree
        if "teacher" in tree["task"]:
            tree["task"]["teacher"] = str(self.train(("digits",)))
        self.use_made_up_data(tree)
        outputs = self.folder / f"outputs-{len(list(self.folder.iterdir()))}"
        assert start.train(replace(composed, tree=tree), outputs=outputs, display=Silent()) == 0
        (run,) = outputs.glob("*/*")
        return run

    def _is_setting(self, word: str, tree: dict[str, Any]) -> bool:
        node: Any = tree
        for part in word.partition("=")[0].split("."):
            node = node.get(part, ...) if isinstance(node, dict) else ...
        return node is not ...

    def use_made_up_data(self, tree: dict[str, Any]) -> None:
        self.patch.setattr(completing, "_peek", lambda node: COUNTED)
        if gives(tree["dataset"]) == "table":
            self.patch.undo()
            self.patch.chdir(self.folder)
            return

        def build_data(builder: Builder, tree: dict[str, Any]) -> Data:
            settings = tree["dataset"]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                train, val, test = (made_up(settings) for _ in range(3))
            has_names = train.labels is not None or gives(tree["dataset"]) in ("boxes", "masks")
            num_classes = settings.get("num_classes") if has_names else 0
            classes = tuple(f"class {i}" for i in range(num_classes or 0))
            return Data(classes, train, test, val, fitted=fitted(gives(tree["dataset"]), settings))

        self.patch.setattr(build, "build_data", build_data)

    def events(self, run: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]

    def resume_from_the_first_step(self, run: Path) -> Path:
        """A copy of the run as a kill after its first step would have left it, resumed."""
        from dlcli.runs.folder import RunFolder

        copy = run.parent.parent.parent / "resumed" / run.parent.name / run.name
        shutil.copytree(run, copy, symlinks=True)
        shutil.rmtree(copy / "checkpoints" / "step-00000002")
        for name in ("last", "best"):
            (copy / "checkpoints" / name).unlink(missing_ok=True)
        os.symlink("step-00000001", copy / "checkpoints" / "last")
        (copy / "summary.json").unlink()
        assert start.resume(RunFolder(copy), (), display=Silent(), search=[CONF]) == 0
        return copy

    def evaluate_and_predict(self, run: Path, scores: dict[str, float]) -> None:
        loaded = trained.load(run / "checkpoints" / "best", builder=Builder.for_search([CONF]))
        data = trained.read_data(loaded)
        report = score.score(loaded, data, "test")
        assert report.is_same_data is not False
        for name, value in report.metrics.items():
            assert value == pytest.approx(scores[f"test/{name}"], rel=1e-5, nan_ok=True), name
        score.draw_report(loaded, data, report, run / "eval")
        if loaded.tree["task"]["facts"]["models"] == "gan":  # it answers for nothing
            return
        module = predictor(gives(loaded.tree["dataset"]))
        is_attentive = getattr(getattr(loaded.task, "model", None), "reads_from", None) is not None
        answers = module.answers(
            loaded,
            inputs(gives(loaded.tree["dataset"]), self.folder, loaded.tree),
            top=2,
            save=str(self.folder / "pictures"),
            **({"attention": True, "whole": True} if is_attentive else {}),
        )
        assert answers
        if is_attentive:
            check_attention(answers)
        for answer in answers:
            assert "error" not in answer, answer
            json.dumps(answer, default=rounded)
            assert len(module.row(answer)) == len(module.COLUMNS)


def check_attention(answers: list[dict[str, Any]]) -> None:
    """Each has all weights, by the names of its queries and keys, rows to show, and a picture."""
    for answer in answers:
        looked = answer["attention"]
        weights = np.array([rounded(layer_HQK) for layer_HQK in looked["weights"]])
        assert weights.ndim == 4 and weights.shape[2:] == (len(looked["queries"]), len(looked["keys"]))
        for rows in (weights, np.array(looked["shown"])):
            np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-4 * len(looked["keys"]))
        assert Path(looked["picture"]).is_file()
        _, names, lines = as_lines(answer)
        assert lines and all(len(line) == len(names) for line in lines)


def made_up(settings: dict[str, Any]) -> Examples:
    """Plain images as their readers give them; the rest as it is made up anyway."""
    if gives(settings) != "images":
        return made_up_data(settings, EXAMPLES)
    images = torch.randint(256, (EXAMPLES, *settings["image_shape"]), dtype=torch.uint8)
    return in_memory(images.numpy(), torch.randint(settings["num_classes"], (EXAMPLES,)).numpy())


def fitted(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What answers need of a training split that is made up."""
    from dlcli.datasets.tokens.tokenizing import Tokenizer

    if kind in ("sentences", "stream", "pairs"):
        return {"tokenizer": Tokenizer.train([TEXT], kind="characters", size=None).to_json()}
    return {"alphabet": ["", *printable][: settings["num_tokens"]], "sample_rate": 8000} if kind == "speech" else {}


def inputs(kind: str, folder: Path, tree: dict[str, Any]) -> list[str]:
    """Something of the kind, as a user would name it."""
    if kind in ("sentences", "stream", "pairs"):
        return ["a man rides"]
    if kind == "speech":
        import soundfile

        wave = 0.1 * np.sin(np.arange(8000) / 10)
        soundfile.write(folder / "sound.wav", wave, tree["dataset"].get("sample_rate", 8000))
        return [str(folder / "sound.wav")]
    if kind == "table":
        return [rows_of(folder, tree)]
    from PIL import Image

    Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(48, 64)).save(folder / "picture.png")
    return [str(folder / "picture.png")]


def rows_of(folder: Path, tree: dict[str, Any]) -> str:
    """A file with some rows of the table that was trained on."""
    import gzip

    name = tree["dataset"]["name"]
    if name == "csv":
        return str(folder / "rows.csv")
    if name == "adult":
        with gzip.open(Path(os.environ["DLCLI_DATA"]) / "adult" / "adult.data.gz", "rt") as file:
            lines = [next(file).strip() for _ in range(3)]
    else:
        lines = [",".join(["0.5"] * 10)] * 3
    (folder / "some.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "some.csv")
