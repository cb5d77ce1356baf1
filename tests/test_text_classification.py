"""Sentences are classified: learnt, answered for, and trained on bit for bit after a kill."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Child, Forge, differences, events, num_lines, outcome, run_of
from program import REPOSITORY, environment

from dlcli.commands.predict import print_answers
from dlcli.datasets.files.sentence_files import read_splits
from dlcli.datasets.kinds import KINDS
from dlcli.errors import CheckpointError, ConfigError
from dlcli.evaluation import score
from dlcli.inference import trained
from dlcli.inference.explain.attention import check_attentive, rounded
from dlcli.inference.predict import sentences as predicting
from dlcli.inference.predict import stream, table
from dlcli.inference.predict.text_inputs import find_sentences, read_whole
from dlcli.models.recurrent import Recurrent
from dlcli.tasks.classification import Classification
from dlcli.training.allow_list import Builder

GOOD, BAD = ("great", "wonderful", "charming", "moving"), ("awful", "dull", "tedious", "clumsy")
PLAIN = (
    "tracker=none", "runtime.threads=1", "runtime.device=cpu", "runtime.precision=fp32", "runtime.channels_last=false",
    "trainer.log_every=1",
)  # fmt: skip
# dropout, hidden words, clipping, sentences of many lengths; saved in the middle of epochs of 9 steps
WORDS = (
    "sentences", "dataset.word_dropout=0.1", "model.hidden_size=16", "model.embedding=16",
    "trainer.epochs=8", "trainer.save_every=5", "optimizer.lr=0.01", *PLAIN,
)  # fmt: skip


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reviews.tsv: 400 reviews, in each of which one word says what it is worth."""
    folder, chance = tmp_path_factory.mktemp("sentences"), random.Random(0)
    lines = []
    for _ in range(400):
        words = chance.choices(("the", "film", "is", "of", "people", "and", "a", "city"), k=chance.randint(1, 20))
        label, telling = chance.choice((("good", GOOD), ("bad", BAD)))
        words.insert(chance.randrange(len(words) + 1), chance.choice(telling))
        lines.append(f"{' '.join(words)}\t{label}\n")
    (folder / "reviews.tsv").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(forge: Forge, folder: Path) -> Path:
    """A finished run on the reviews."""
    child = forge.run("train", *WORDS, f"dataset.path={folder}/reviews.tsv", cwd=folder / "reference")
    assert child.code == 0, child.stderr
    return run_of(folder / "reference")


@pytest.fixture(scope="module")
def loaded(run: Path) -> trained.Trained:
    return trained.load(run / "checkpoints" / "best", builder=Builder.for_search())


@pytest.fixture(scope="module")
def report(loaded: trained.Trained) -> score.Report:
    return score.score(loaded, trained.read_data(loaded), "test")


def answers(loaded: trained.Trained, *names: str, top: int = 3) -> list[dict[str, Any]]:
    return predicting.answers(loaded, names, top=top)


def probability(answer: dict[str, Any], label: str) -> float:
    return next(c["probability"] for c in answer["classes"] if c["class"] == label)


# ------------------------------------------------------------------------------------------------------------- learning


def test_own_sentences_are_learnt(report: score.Report) -> None:
    assert report.baseline is not None and report.metrics["accuracy"] > report.baseline + 0.3


@pytest.mark.parametrize(
    ("experiment", "more"),
    [
        ("sst2_lstm", ("model.embedding=32", "model.hidden_size=32", "optimizer.lr=0.01")),
        (
            "sst2_transformer",
            (
                "model.hidden_size=32",
                "model.ffn_size=64",
                "model.num_layers=1",
                "schedule.warmup=50",
                "optimizer.lr=0.005",
            ),
        ),
    ],
)
def test_sst2_is_learnt(forge: Forge, tmp_path: Path, data_root: Path, experiment: str, more: tuple[str, ...]) -> None:
    words = ("dataset=sst2_sentences", f"dataset.root={data_root}", "trainer.epochs=3", *more, *PLAIN)
    child = forge.run("train", experiment, *words, cwd=tmp_path)
    assert child.code == 0, child.stderr
    majority = 912 / 1821
    assert events(run_of(tmp_path), "run_finished")[-1]["metrics"]["test/accuracy"] > majority + 0.15


def test_a_transformer_learns_from_an_lstm_and_not_from_one_with_other_tokens(
    forge: Forge, folder: Path, run: Path
) -> None:
    words = (*WORDS, f"dataset.path={folder}/reviews.tsv", "task=distillation", f"task.teacher={run}")
    words = (*(word for word in words if not word.startswith(("model.", "optimizer."))), "model=transformer")
    words = (*words, "model.hidden_size=32", "optimizer.lr=0.003")
    child = forge.run("train", *words, cwd=folder / "student")
    assert child.code == 0, child.stderr
    assert events(run_of(folder / "student"), "run_finished")[-1]["metrics"]["test/accuracy"] > 0.8
    refused = forge.run("train", *words, "dataset.tokenizer=characters", cwd=folder / "refused")
    assert refused.code == 2 and "dataset.num_tokens=" in refused.stderr


def test_augmentation_of_sentences_is_told_to_have_no_effect(forge: Forge, folder: Path, tmp_path: Path) -> None:
    words = (*WORDS, f"dataset.path={folder}/reviews.tsv", "trainer.epochs=1")
    child = forge.run("train", *words, "augmentation=light", cwd=tmp_path / "light")
    assert (
        child.code == 0 and "augmentation.rotation=10 has no effect: dataset=sentences gives sentences" in child.stderr
    )
    assert forge.run("train", *words, cwd=tmp_path / "plain").code == 0
    assert differences(outcome(run_of(tmp_path / "light")), outcome(run_of(tmp_path / "plain"))) == []


@pytest.mark.parametrize(
    "word",
    [
        "regularization.mixup=0.2",
        "regularization.cutmix=0.2",
        "task.test_time_augmentation.shift=1",
    ],
)
def test_settings_of_images_are_refused(forge: Forge, folder: Path, tmp_path: Path, word: str) -> None:
    child = forge.run("train", *WORDS, f"dataset.path={folder}/reviews.tsv", word, cwd=tmp_path)
    assert child.code == 2 and "images" in child.stderr and word.partition("=")[0] in child.stderr


# ----------------------------------------------------------------------------------------------------------- resumption


def test_killed_in_the_middle_of_an_epoch(forge: Forge, folder: Path, run: Path) -> None:
    child = forge.start("train", *WORDS, f"dataset.path={folder}/reviews.tsv", cwd=folder / "killed")
    assert child.wait_for_lines(num_lines(run) // 2) and child.kill()
    killed = run_of(folder / "killed")
    step = json.loads((killed / "checkpoints" / "last" / "checkpoint.json").read_text())["body"]["step"]
    assert 0 < step < 72 and step % 9, "saved between two epochs"
    resumed: Child = forge.run("resume", "latest", cwd=folder / "killed")
    assert resumed.code == 0, resumed.stderr
    assert differences(outcome(killed), outcome(run)) == []


# -------------------------------------------------------------------------------------------------------------- answers


def test_answers_say_class_and_probabilities(loaded: trained.Trained) -> None:
    good, bad = answers(loaded, "a great film", "the film is AWFUL")
    assert (good["input"], good["class"], bad["class"]) == ("a great film", "good", "bad")
    for answer in (good, bad):
        assert [set(c) for c in answer["classes"]] == [{"class", "probability"}] * 2
        assert sum(c["probability"] for c in answer["classes"]) == pytest.approx(1)
        assert answer["probability"] == answer["classes"][0]["probability"] > 0.5
        assert predicting.row(answer)[:2] == [answer["input"], answer["class"]]
    assert [len(answer["classes"]) for answer in answers(loaded, "a great film", top=1)] == [1]


def test_a_sentence_alone_and_in_a_batch_gives_the_same(loaded: trained.Trained) -> None:
    names = ["dull", "a great film", "the film is " * 20 + "awful", "unheard of", "great " * 300]
    together = answers(loaded, *names)
    assert [answer["input"] for answer in together] == names, "in the order asked"
    for name, answer in zip(names, together, strict=True):
        (alone,) = answers(loaded, name)
        assert probability(alone, "good") == pytest.approx(probability(answer, "good"), abs=1e-6)


def test_predictions_agree_with_the_evaluation(loaded: trained.Trained, report: score.Report, folder: Path) -> None:
    test = read_splits(str(folder / "reviews.tsv")).splits["test"]
    given = answers(loaded, *(sentence.text for sentence in test))
    right = [answer["class"] == sentence.label for answer, sentence in zip(given, test, strict=True)]
    assert report.metrics["accuracy"] == pytest.approx(sum(right) / len(right))
    assert report.right is not None and report.right.tolist() == right


def test_a_file_holds_a_sentence_a_line_and_a_bad_input_spoils_no_other(
    loaded: trained.Trained, tmp_path: Path
) -> None:
    file, latin1, empty = tmp_path / "lines.txt", tmp_path / "latin1.txt", tmp_path / "empty.txt"
    file.write_text("a great film\n\n  an awful film  \r\n")
    latin1.write_bytes(b"fine\nna\xefve\n")
    empty.write_text(" \n")
    found = answers(loaded, str(file), str(latin1), " ", str(tmp_path / "none.txt"), str(empty), "dull")
    assert [answer.get("class") for answer in found] == ["good", "bad", None, None, None, None, "bad"]
    errors = [answer["error"] for answer in found if "error" in answer]
    assert errors == [
        "line 2 is not UTF-8",
        "is empty",
        "cannot be read: No such file or directory",
        "holds no sentence",
    ]
    assert [answer["input"] for answer in found[:2]] == ["a great film", "an awful film"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("two.tsv", "sentence\tlabel\na great film\tgood\n\nan awful, dull film\tbad\n"),
        ("label-first.tsv", "good\ta great film\nbad\tan awful, dull film\n"),
        ("one.tsv", "sentence\na great film\nan awful, dull film\n"),
        ("three.csv", 'id,text,by\n1,a great film,"Ann, B."\n2,"an awful, dull film",Bo\n'),
        ("tabs.txt", "sentence\tlabel\na great film\tgood\nan awful, dull film\tbad\n"),
        ("plain.txt", "a great film\nan awful, dull film\n"),
        ("./noted", "a great film\nan awful, dull film\n"),
    ],
)
def test_a_file_that_exists_is_read_a_sentence_a_line(
    loaded: trained.Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    Path(f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    for file in (name, f"{name}.gz"):
        found = answers(loaded, file)
        assert [answer["input"] for answer in found] == ["a great film", "an awful, dull film"]
        assert [answer["class"] for answer in found] == ["good", "bad"]


@pytest.mark.parametrize("word", ["text", "sentence", "review"])
def test_a_plain_text_has_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    content = f"{word}\ngood\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    plain, table = tmp_path / "lines.txt", tmp_path / "lines.tsv"
    for file in (plain, table):
        file.write_text(content)
    names = [str(plain), "-", str(table)]
    of_text, of_stdin, of_table = find_sentences(names, column=word, classes=("bad", "good"))
    assert of_text == of_stdin == [{"input": word}, {"input": "good"}] and of_table == [{"input": "good"}]
    plain.write_text("a great film\nwith a\ttab\n")
    assert list(find_sentences([str(plain)])) == [[{"input": "a great film"}, {"input": "with a\ttab"}]]


@pytest.mark.parametrize(("module", "example"), [(predicting, "sentences"), (stream, "beginning"), (table, "rows")])
def test_stdin_is_named_once(loaded: trained.Trained, module: Any, example: str) -> None:
    with pytest.raises(ConfigError, match=r"^- is given twice; stdin is read once") as caught:
        module.answers(loaded, ["-", "dull", "-"], top=1)
    assert caught.value.hint is not None and caught.value.hint.startswith(f"dlcli predict - < {example}.")


def test_what_looks_like_a_file_is_one_and_a_sentence_is_none(
    loaded: trained.Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is meant where it is written as a path; a sentence may end like a file's name."""
    monkeypatch.chdir(tmp_path)
    Path("great").mkdir()
    Path("odd.csv").write_text("a,b,c\n1,2,3\n")
    Path("dull").write_text("a great film\n")
    names = ["none.tsv", "none.csv.gz", "great/", "odd.csv", "great", "great is reviews.tsv", "~nobody", "great " * 200]
    *bad, word, sentence, tilde, long = answers(loaded, *names)
    assert [answer["error"] for answer in bad] == [
        "cannot be read: No such file or directory",
        "cannot be read: No such file or directory",
        "is a folder; name its files:  great/*.txt",
        "has 3 columns (a, b, c); the one of the sentences is not called sentence",
    ]
    assert word["class"] == sentence["class"] == long["class"] == "good" and "class" in tilde
    word, file = answers(loaded, "dull", "./dull")
    assert (word["input"], word["class"]) == ("dull", "bad") and file["input"] == "a great film"
    assert read_whole("dull") == "dull" and read_whole("./dull") == "a great film\n"


def test_the_command_answers_in_json_and_reads_stdin(run: Path) -> None:
    words = [sys.executable, "-P", "-m", "dlcli", "predict", "-", "a great film", "--run", str(run), "--json"]
    done = subprocess.run(
        words, cwd=REPOSITORY, env=environment(), input="tedious\nnot\n", capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["input"] for answer in found] == ["tedious", "not", "a great film"]
    assert [answer["class"] for answer in found][::2] == ["bad", "good"]
    assert set(found[0]) == {"input", "class", "probability", "classes"}
    asked = subprocess.run(
        [*words[:-1], "--attention"],
        cwd=REPOSITORY,
        env=environment(),
        input="tedious\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "attention of a great film\nthe attention pooling\ntoken" in asked.stdout and "%  ■" in asked.stdout
    refused = subprocess.run([*words, "--threshold", "0.5"], cwd=REPOSITORY, env=environment(), capture_output=True)
    assert refused.returncode == 2 and b"--threshold is of boxes" in refused.stderr


def test_attention_is_that_of_the_network_in_a_padded_batch(loaded: trained.Trained, tmp_path: Path) -> None:
    names = ["a great film", "dull"]
    found = predicting.answers(loaded, names, top=1, save=str(tmp_path), attention=True, whole=True)
    tokens = torch.tensor([[5, 4, 6], [7, 0, 0]])
    tokenizer = predicting.tokenizer_of(loaded)
    ids = tokenizer.encode_batch(names)
    tokens[0], tokens[1, :1] = torch.tensor(ids[0]), torch.tensor(ids[1])
    with torch.no_grad():
        (weights_B11L,) = loaded.task.get_submodule("model").attention(tokens, torch.tensor([3, 1]))  # type: ignore[operator]
    looked = [answer["attention"] for answer in found]
    assert [one["keys"] for one in looked] == [[tokenizer.name(token) for token in row] for row in ids]
    for one, weights_11L, count in zip(looked, weights_B11L, (3, 1), strict=True):
        assert one["shown"][0] == pytest.approx(weights_11L[0, 0, :count].tolist(), abs=1e-4)
        assert [rounded(layer_HQK) for layer_HQK in one["weights"]] == [[one["shown"]]]
    assert {Path(one["picture"]).name for one in looked} == {"a-great-film-attention.png", "dull-attention.png"}


def test_all_weights_are_kept_only_where_json_prints_them(
    loaded: trained.Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    (shown,) = predicting.answers(loaded, ["a great film"], top=1, attention=True)
    assert set(shown["attention"]) == {"of", "queries", "keys", "shown"}
    (whole,) = predicting.answers(loaded, ["a great film"], top=1, attention=True, whole=True)
    assert [layer.dtype for layer in whole["attention"]["weights"]] == [torch.float32]
    print_answers([whole], predicting, as_json=True)
    printed = json.loads(capsys.readouterr().out)["attention"]
    assert printed == shown["attention"] | {"weights": [[shown["attention"]["shown"]]]}


def test_a_network_without_attention_is_told_with_those_that_have_it(loaded: trained.Trained) -> None:
    check_attentive(loaded, KINDS["sentences"])
    last = replace(loaded, task=Classification(Recurrent(num_classes=2, num_tokens=9, pooling="last")))
    with pytest.raises(ConfigError, match="Recurrent, has none") as caught:
        check_attentive(last, KINDS["sentences"])
    assert "model.pooling=attention" in str(caught.value.hint) and "distilbert" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="trained on boxes, for which no model has attention"):
        check_attentive(loaded, KINDS["boxes"])


@pytest.mark.parametrize(
    ("fitted", "told"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer": "{}"}, "stored tokenizer cannot be read"),
        (
            {"tokenizer": json.dumps({"kind": "words", "pieces": [f"w{i}" for i in range(99)], "merges": []})},
            "103 tokens",
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(loaded: trained.Trained, fitted: dict[str, Any], told: str) -> None:
    damaged = replace(loaded, manifest=loaded.manifest.model_copy(update={"fitted": fitted}))
    with pytest.raises(CheckpointError, match=told):
        answers(damaged, "a film")


def test_a_sentence_is_read_the_same_whatever_is_beside_it(loaded: trained.Trained) -> None:
    """Probabilities of a batch do not change with the padding of a longer neighbour."""
    ids = [[4, 5, 6], [7] * 40]
    alone, together = predicting.probabilities(loaded, ids[:1]), predicting.probabilities(loaded, ids)
    torch.testing.assert_close(alone[0], together[0])
