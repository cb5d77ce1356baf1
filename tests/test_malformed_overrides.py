"""Commands that cannot be meant: each is refused with exit 2, says what is wrong, imports no torch, writes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from program import dlcli, environment

from dlcli.errors import printable

HANG_S = 60  # against a hang; how long each takes is printed (`pytest -s`), not judged


@dataclass(frozen=True)
class Case:
    """words: after `dlcli train`; names: what the answer must mention; files: path -> bytes (latin-1) made before."""

    words: tuple[str, ...]
    names: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)


def one(word: str) -> Case:
    return Case(("digits", word), (printable(word, limit=80)[:60],))


def alone(*words: str, names: str | None = None) -> Case:
    return Case(words, (printable(names if names is not None else words[0], limit=80)[:60],))


GRAMMAR = [
    "a=[1", "=3", "@", "++=", "+=", "~=", "==", "=", "~", "+", "++", "trainer.epochs=[1,2", "model.hidden=[64,64",
    "model.hidden=64,64]", "model.hidden={a:1", "model.hidden=}", "model.hidden=]", "name='a", 'name="a',
    "name=a'b'c\"", "name='a'b", "seed=(1", "seed=1)", "trainer.epochs=3]", "trainer..epochs=3", ".epochs=3",
    "trainer.=3", "trainer.epochs.=3", "trainer.epochs = 3", " trainer.epochs=3", "trainer epochs=3",
    "trainer:epochs=3", "trainer[epochs]=3", "trainer/epochs=3", "tr\u00e4iner.epochs=3", "trainer.epochs=\u0663",
    "\u200btrainer.epochs=3", "seed=1;seed=2", "a=b=c", "%s=%s", "$HOME=1", "`id`=1", "!x=1",
    "model.hidden=" + "[" * 1000 + "]" * 1000, "model.hidden=" + "[" * 1000, "a=" + "{a:" * 1000 + "1" + "}" * 1000,
    "seed=" + "(" * 1000, "name=" + "x" * 2**20, "x" * 2**20 + "=1", "a" + ".a" * 1500 + "=1",
    "model.hidden=[" + "1," * 1500 + "1]", "trainer.epochs=" + "9" * 4000,
]  # fmt: skip
TYPES = [
    *(
        f"trainer.epochs={value}"
        for value in (
            "ten", "1.5", "1.0", "[1]", "{a:1}", "null", "true", "'3'", '"3"', "3x", "0x10", "1_0_", "''", "",
        )
    ),
    *(
        f"optimizer.lr={value}"
        for value in (
            "fast", "[0.1]", "{a:1}", "null", "true", "'0.1'", "1e", "0.1.1", "1-3", "0.1f", "", "1e-3e",
        )
    ),
    *(
        f"model.hidden={value}"
        for value in (
            "64", "[a]", "[64,null]", "[1.5]", "[true]", "[[64]]", "'[64]'", "null", "{a:1}", "[64,'64']",
        )
    ),
    *(f"seed={value}" for value in ("one", "1.5", "null", "[0]", "true", "'0'")), "dataset.download=maybe",
    "dataset.download=1", "dataset.download='true'", "runtime.compile=2", "runtime.deterministic=null",
    "dataset.in_memory=sometimes", "trainer.max_time=10", "trainer.max_time=10minutes", "trainer.max_time=-5m",
    "trainer.max_time=1.5h", "trainer.max_time=''", "trainer.monitor=accuracy", "trainer.monitor=[val/accuracy]",
    "dataset.image_shape=[1,8]", "dataset.mean=0.5", "runtime.device=gpu", "runtime.device=cuda:x",
    "runtime.device=0", "runtime.precision=32", "runtime.precision=fp8", "tracker.project=a/b", "tracker=[none]",
    "model=[mlp]", "model={mlp:1}", "model=null", "model=", "optimizer=1", "dataset=true",
]  # fmt: skip
RANGES = [
    *(
        f"optimizer.lr={value}"
        for value in (
            "-0.1", "0", "-0.0", "nan", "inf", "-inf", "1e400", "NaN", ".inf", "1000000",
        )
    ),
    *(f"trainer.epochs={value}" for value in ("0", "-1", "nan", "inf", "1e400", str(10**30), f"-{10**30}", "1e3")),
    *(f"dataset.batch_size={value}" for value in ("0", "-64", "inf", str(10**30), "0.5")),
    *(f"regularization.dropout={value}" for value in ("-0.1", "1", "1.0", "1.5", "nan", "inf")),
    "regularization.clip_norm=-1", "regularization.clip_norm=0", "regularization.clip_norm=inf",
    "regularization.ema=1", "regularization.ema=nan", "regularization.early_stopping.patience=-1",
    "regularization.early_stopping.patience=0", "regularization.early_stopping.min_delta=-1",
    "regularization.label_smoothing=1", "optimizer.weight_decay=-1e-4", "optimizer.weight_decay=nan",
    "optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9]", "optimizer.eps=0", "seed=-1", f"seed={2**32}",
    "trainer.accumulate_grad_batches=0", "trainer.keep_checkpoints=0", "trainer.log_every=0", "trainer.max_steps=0",
    "trainer.eval_every=-1", "trainer.max_steps=1e400", "dataset.val_size=0", "dataset.num_workers=-1",
    "dataset.num_workers=100000", "runtime.devices=0", "runtime.devices=99", "runtime.threads=0", "runtime.threads=-2",
    "model.hidden=[0]", "model.hidden=[-64]", "model.hidden=[inf]", f"model.hidden=[{10**30}]", "schedule.warmup=-1",
    "schedule.final=2", "dataset.std=[0]", "dataset.std=[nan]", "dataset.num_classes=1",
]  # fmt: skip
UNKNOWN = [
    "optimzer.lr=0.1", "trainer.lr=0.1", "lr=0.1", "zzz=1", "zzz.yyy=1", "trainer.zzz=1", "trainer=1",
    "trainer={epochs:1}", "optimizer.lr.x=1", "model=lenet", "model=zzz", "model=../../etc/passwd",
    "model=/etc/passwd", "model=mlp.yaml", "modle=mlp", "experiment=digits", "experiment=zzz", "optimizer=adm",
    "tracker=tensorboard", "dataset=imagenet", "task=zzz", "runtime=tpu", "model.channels=[8]",
    "optimizer.momentum=0.9", "regularization.dropuot=0.1", "config=x", "defaults=[]", "defaults.0=x", "_self_=1",
]  # fmt: skip
PREFIXES = [
    "+zzz=1", "++zzz=1", "++trainer.zzz=1", "+trainer.epochs=ten", "++trainer.epochs=0", "~trainer.epochs",
    "~trainer", "~trainer.epochs=30", "~model", "~model=mlp", "~optimizer", "~zzz", "+++trainer.epochs=3",
    "-trainer.epochs=3", "+model=zzz", "++model=zzz", "~~model", "+~model=mlp", "~+seed",
]  # fmt: skip
INTERPOLATIONS = [
    "name=${oc.env:HOME}", "dataset.root=${oc.env:HOME}", "dataset.root=${oc.env:NOTHING_THERE}",
    "dataset.root=${hydra:runtime.cwd}", "seed=${seed}", "seed=${trainer.accumulate_grad_batches}${seed}",
    "trainer.epochs=${trainer.epochs}", "seed=${nothing.there}", "seed=${", "seed=${}", "seed=${seed",
    "name='${oc.env:PATH}'", "seed=${oc.decode:1}", "seed=${oc.create:{a:1}}", "seed=${oc.select:trainer.epochs}",
    "seed=${now:%Y}", "seed=${${seed}}", "name=${trainer}", "trainer.epochs=${optimizer.lr}", "model.hidden=${seed}",
    "name=${hydra.run.dir}", "model.hidden=[${seed}]", "optimizer.lr=${trainer.monitor}",
    "dataset.root=x${oc.env:HOME}y", "seed=${.seed}", "seed=${python:1}",
]  # fmt: skip
SWEEPS = [
    "trainer.epochs=1,2", "model=mlp,lenet5", "trainer.epochs=choice(1,2)", "trainer.epochs=range(1,3)",
    "model=glob(*)", "optimizer.lr=interval(0,1)", "optimizer.lr=sort(1,2)", "seed=shuffle(1,2)",
    "trainer.epochs=int(3,4)", "seed=eval(1)", "seed=__import__(os)", "model=glob([a*],exclude=b*)",
]  # fmt: skip
TARGETS = [
    "model._target_=os.system", "+model._target_=os.system", "optimizer._target_=builtins.eval",
    "dataset.reader._target_=os.system", "+task._args_=[id]", "+model._partial_=true", "+model._recursive_=false",
    "+model._convert_=all", "_target_=os.system", "+_target_=os.system", "+parameter_groups.a._target_=os.system",
    "model.facts.kind=gan", "+model.x={_target_:os.system}", "model={_target_:os.system}",
    "optimizer.lr={_target_:os.system}", "augmentation._target_=subprocess.call",
]  # fmt: skip
HYDRA = [
    "hydra.run.dir=/tmp/x", "hydra.job.name=x", "+hydra.sweeper=x", "hydra/launcher=basic", "hydra=x",
    "hydra/job_logging=none", "hydra.searchpath=[file:///tmp]", "++hydra.verbose=true", "~hydra",
    "hydra.output_subdir=null", "model@x=mlp", "model@_global_=mlp", "+model@optimizer=mlp", "model@:=mlp", "@x=mlp",
    "model@=mlp", "optimizer@trainer=adam", "experiment@hydra=digits",
]  # fmt: skip
NAMES = [
    *(
        f"name={value}"
        for value in (
            "../../x", "/etc/x", ".", "..", "-rf", "", "x" * 300, "a/b", "a b", "con\\x", ".hidden", "~", "a:b", "*",
            "[a]", "latest", "best", "1", "true",
        )
    ),
    "name=a\nb", "name=\x1b[31mred\x1b[0m", "name='\x1b]0;title\x07'", "name=a\tb", "name=a\x00b", "name=\u202egnp",
    "name=na\u00efve", "name=\U0001f600", "name=a\r",
]  # fmt: skip
WHOLE_COMMANDS = [
    alone("mnsit"), alone("zzz"), alone("/etc/passwd"), alone("../digits"), alone("nowhere.yaml"), alone("-"),
    alone("--lr", "0.1", names="--lr 0.1"), alone("--batch-size=32"), alone("--epochs", "3", names="--epochs 3"),
    alone("-e", "3", names="-e 3"), alone("--gpus", "all", names="--gpus all"), alone("--jsn"),
    alone("--json=yes", names="--json"), alone("--config-dir", names="--config-dir"),
    alone("--config-dir", "nowhere", names="nowhere"), alone("--cfg", "job", names="--cfg job"),
    alone("-m", "seed=1", names="-m"), alone("--multirun"), alone("--hydra-help"), alone("--info"),
    alone("--package", "x", names="--package x"), alone("-cn", "x", names="-cn x"),
    alone("digits", "mnist", names="mnist"), alone("digits", "epochs", names="epochs"),
    alone("digits", "optimizer.lr", "0.1", names="optimizer.lr"),
    alone("digits", "model=mlp", "model=simple_cnn", names="model=simple_cnn"),
    alone("digits", "model=lenet5", names="model=lenet5"), alone("digits", "task=gan", names="model"),
    alone("digits", "model=gan_mlp", names="model"),
    alone("digits", "trainer.monitor=val/zzz", names="trainer.monitor"),
    alone("digits_distill", names="task.teacher"),
    alone("digits", "runtime.precision=fp16", "runtime.device=cpu", names="precision"),
    alone("", names="there is no such experiment"), alone("digits", "", names="an experiment was named already"),
    alone("   "), alone("\x1b[2J"), alone("\n"), alone("@x"),
]  # fmt: skip

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "bomb": BOMB,
    "object": "a: !!python/object/apply:os.system [id]\n",
    "tag": "a: !!binary aGk=\n",
    "bom": "\xef\xbb\xbfseed: 1\n",
    "utf16": "seed: 1\n".encode("utf-16").decode("latin-1"),
    "tab": "trainer:\n\tepochs: 3\n",
    "nul": "seed: 1\x00\n",
    "recursive": "a: &a [*a]\n",
    "merge": "a: &a {b: 1}\nc:\n  <<: *a\n",
    "deep": "a: " + "[" * 300 + "]" * 300 + "\n",
    "deep_map": "".join("  " * i + "a:\n" for i in range(300)),
    "large": "a: " + "x" * 2_000_000 + "\n",
    "scalar": "just a word\n",
    "list": "- 1\n- 2\n",
    "twice": "seed: 1\nseed: 2\n",
    "documents": "seed: 1\n---\nseed: 2\n",
    "syntax": "trainer: {epochs: 3\n",
    "latin1": "name: caf\xe9\n",
    "binary": "\x7fELF\x02\x01\x01\x00\xff\xfe",
    "key": "? [a, b]\n: 1\n",
    "control": "name: a\x07b\n",
}
HERE = {
    "unknown": ("trainer:\n  epoch: 3\n", "trainer.epoch"),
    "type": ("trainer:\n  epochs: ten\n", "trainer.epochs=ten"),
    "range": ("optimizer:\n  lr: .nan\n", "optimizer.lr=nan"),
    "env": ("name: ${oc.env:HOME}\n", "oc.env:HOME"),
    "loop": ("seed: ${seed}\n", "seed"),
    "name": ("name: ../../x\n", "../../x"),
    "target": ("model:\n  _target_: os.system\n", "os.system"),
    "default": ("defaults:\n  - override /model: zzz\n", "zzz"),
    "hydra": ("hydra:\n  run:\n    dir: /tmp/x\n", "hydra"),
    "group": ("trainer: 3\n", "trainer"),
}


def file_cases() -> dict[str, Case]:
    """Each bad file as an experiment given by path, as an experiment of ./conf, and as a model of ./conf."""
    cases = {}
    for name, content in FILES.items():
        cases[f"file-{name}"] = Case(("bad.yaml",), ("bad.yaml",), {"bad.yaml": content})
        for group in ("experiment", "model"):
            path = f"conf/{group}/bad.yaml"
            words = ("bad",) if group == "experiment" else ("digits", "model=bad")
            cases[f"conf-{group}-{name}"] = Case(words, (path,), {path: content})
    for name, (content, names) in HERE.items():
        content = f"# @package _global_\n{content}"
        cases[f"file-{name}"] = Case(("bad.yaml",), (names,), {"bad.yaml": content})
        path = "conf/experiment/bad.yaml"
        cases[f"conf-{name}"] = Case(("bad",), (names,), {path: content})
    return cases


LISTS = {
    "grammar": GRAMMAR,
    "types": TYPES,
    "ranges": RANGES,
    "unknown": UNKNOWN,
    "prefixes": PREFIXES,
    "interpolations": INTERPOLATIONS,
    "sweeps": SWEEPS,
    "targets": TARGETS,
    "hydra": HYDRA,
    "names": NAMES,
}
CASES: dict[str, Case] = {
    f"{kind}-{i}-{printable(word, limit=40)}": one(word)
    for kind, words in LISTS.items()
    for i, word in enumerate(words)
}
CASES |= {f"command-{i}-{printable(' '.join(c.words), limit=40)}": c for i, c in enumerate(WHOLE_COMMANDS)}
CASES |= file_cases()

DRIVER = """
import contextlib, io, json, os, sys, tempfile, time
from dlcli.cli import run

cases, root = json.load(sys.stdin), os.getcwd()
sys.modules["torch"] = None  # a command that is let through ends at once, with another exit code
for number, (name, case) in enumerate(cases.items()):
    os.chdir(root)
    os.makedirs(str(number))
    os.chdir(str(number))
    for path, content in case["files"].items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode("latin-1"))
    out, err, began = io.StringIO(), io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(["train", *case["words"]])
        except BaseException as error:
            code = repr(error)[:200]
    seconds = time.perf_counter() - began
    files = [os.path.join(f, n) for f, _, names in os.walk(".") for n in names]
    heavy = [m for m in ("torch", "torchvision", "wandb", "matplotlib", "sklearn") if sys.modules.get(m)]
    new = sorted(set(map(os.path.normpath, files)) - set(map(os.path.normpath, case["files"])))
    answer = {"name": name, "code": code, "out": out.getvalue()[:2000], "err": err.getvalue()[:200_000],
              "seconds": seconds, "heavy": heavy, "new": new}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `run(["train", ...])` answers to every case asked for, in one process in which nothing imports torch."""
    folder = Path(tempfile.mkdtemp(prefix="m"))  # a short path: a message shows at most 80 characters of one
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    cases = {name: asdict(case) for name, case in CASES.items() if name in asked}
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER],
        cwd=folder,
        env=environment(),
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=HANG_S * 10,
        check=False,
    )
    found = {(answer := json.loads(line))["name"]: answer for line in done.stdout.splitlines()}
    assert list(found) == list(cases), f"it ended at case {len(found)}: {done.stderr[-2000:]}"
    slowest = max(found.values(), key=lambda answer: answer["seconds"])
    print(f"\n{len(found)} malformed commands; the slowest, {slowest['name']}, took {slowest['seconds']:.2f} s")
    return found


EVERY_SECOND = [pytest.param(n, marks=[] if i % 2 == 0 else [pytest.mark.slow]) for i, n in enumerate(CASES)]


def test_there_are_at_least_200_of_them() -> None:
    assert sum(not parameters.marks for parameters in EVERY_SECOND) >= 200
    assert len(set(map(repr, CASES.values()))) == len(CASES)


@pytest.mark.parametrize("name", EVERY_SECOND)
def test_it_is_refused_and_nothing_else_happens(name: str, answers: dict[str, Any]) -> None:
    answer, case = answers[name], CASES[name]
    assert answer["code"] == 2, answer
    assert answer["err"].startswith("error: "), answer["err"]
    assert "Traceback" not in answer["err"]
    assert answer["out"] == ""
    assert answer["heavy"] == []
    assert answer["new"] == []
    told = answer["err"].split("hint: try:")[0]
    for named in case.names:
        assert named in told
    assert len(answer["err"]) < 20_000, "an answer is for people"
    assert all(c == "\n" or c.isprintable() for c in answer["err"]), "nothing steers the terminal"


SAMPLE = [
    ("digits", "model.hidden=[64,64"),
    ("digits", "optimizer.lr=nan", "name=../../x"),
    ("digits", "name=\x1b[31mred"),
    ("digits", "seed=${oc.env:HOME}"),
    ("mnsit", "--lr", "0.1"),
]


@pytest.mark.parametrize("words", SAMPLE, ids=[printable(" ".join(words)) for words in SAMPLE])
def test_as_a_command(words: tuple[str, ...], tmp_path: Path) -> None:
    done = dlcli("train", *words, cwd=tmp_path, timeout=HANG_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_three_mistakes_are_three_problems(tmp_path: Path) -> None:
    words = ("mnist", "optimzer.lr=0.1", "trainer.epochs=ten", "model=lenet")
    done = dlcli("train", *words, cwd=tmp_path, timeout=HANG_S)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 3 problems in the command, nothing was started")
    numbered = [line.split(None, 2)[:2] for line in done.stderr.splitlines() if line[:3].strip().isdigit()]
    assert numbered == [["1", words[1]], ["2", words[2]], ["3", words[3]]]
    better = next(line for line in done.stderr.splitlines() if line.startswith("hint: try:  dlcli "))
    shown = dlcli("config", "show", *better.split()[4:], cwd=tmp_path, timeout=HANG_S)
    assert shown.returncode == 0, "the command that is proposed is a right one"


def test_json_tells_the_same_problems_as_one_object(tmp_path: Path) -> None:
    done = dlcli("train", "digits", "lr=x", "zzz=1", "--json", cwd=tmp_path, timeout=HANG_S)
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, answer["event"], answer["code"]) == (2, "error", 2)
    assert [problem["where"] for problem in answer["problems"]] == ["lr=x", "zzz=1"]


def test_the_proposed_command_is_the_right_one(tmp_path: Path) -> None:
    done = dlcli("train", "--lr", "0.1", "mnsit", "model=lenet", cwd=tmp_path, timeout=HANG_S)
    assert "hint: try:  dlcli train optimizer.lr=0.1 mnist model=lenet5\n" in done.stderr


def test_a_file_with_the_name_of_an_experiment_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("# @package _global_\ntrainer:\n  epochs: 7\n")
    done = dlcli("config", "show", "digits.yaml", "--json", cwd=tmp_path, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["trainer"]["epochs"] == 7
