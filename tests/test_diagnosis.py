"""`dlcli why`: each reason is found in a run that has it, and in no healthy one."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from program import dlcli, events_of

from dlcli.config import compose_command
from dlcli.evaluation.diagnosis import reasons as diagnosis
from dlcli.evaluation.diagnosis.evidence import Evidence, read_evidence
from dlcli.evaluation.diagnosis.reasons import Reason, diagnose, falling_share, smooth
from dlcli.runs.folder import RunFolder

ON = ("tracker=none", "runtime.threads=1", "runtime.device=cpu")
CONFIG = compose_command(["digits"]).tree
PREPARED = {
    "monitor": "val/loss", "mode": "min", "classes": 10, "val_examples": 1000, "steps_per_epoch": 20, "epochs": 20,
    "steps": 400, "parameters": 1000, "source": "resident", "device": "cpu",
}  # fmt: skip


def curve(first: float, last: float, num: int = 20) -> list[float]:
    """Falling quickly, then ever more slowly, as losses do."""
    return [last + (first - last) * 0.6**i for i in range(num)]


def evidence(
    train_loss: Sequence[float] = (),
    val_loss: Sequence[float] = (),
    train_accuracy: Sequence[float] | float = 0.99,
    val_accuracy: Sequence[float] | float = 0.98,
    *,
    status: str = "completed",
    lr: float = 0.001,
    **more: Any,
) -> Evidence:
    """A run as its events would tell it: an evaluation an epoch, of 20 steps each."""
    num = len(val_loss)
    columns = {"train/loss": train_loss, "val/loss": val_loss}
    for name, values in (("train/accuracy", train_accuracy), ("val/accuracy", val_accuracy)):
        columns[name] = [values] * num if isinstance(values, float) else values
    rows = [{name: column[i] for name, column in columns.items()} for i in range(num)]
    evaluations = [{"epoch": i + 1, "step": 20 * (i + 1), "metrics": row, "lr": lr} for i, row in enumerate(rows)]
    summary = {"status": status, "step": 20 * num, "epoch": num, "steps_per_epoch": 20, **more.pop("summary", {})}
    known = {"config": CONFIG, "overrides": ["model.hidden=[16]", "name=mine"], "prepared": PREPARED}
    return Evidence("mine", "digits", status, evaluations=evaluations, summary=summary, **{**known, **more})


HEALTHY = evidence(curve(1.6, 0.05), curve(0.6, 0.10), curve(0.5, 0.99), curve(0.8, 0.98))


def titles(e: Evidence) -> list[str]:
    return [reason.title for reason in diagnose(e)]


def only(e: Evidence) -> Reason:
    (reason,) = diagnose(e)
    return reason


def composes(command: str) -> None:
    """A remedy is a command that is accepted when it is pasted."""
    program, verb, *words = shlex.split(command)
    assert program == "dlcli"
    if verb in ("train", "tune"):
        compose_command(words if verb == "train" else words[1:])
    else:
        assert verb in ("resume", "list", "runs", "sweep"), command


# ------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train with some words and read what came of it; by the name of the run, once each. What depends on how busy the
    machine is, the shares of time, only where it is asked for.
    """
    folder = tmp_path_factory.mktemp("why")

    def train(name: str, *words: str, by_the_clock: bool = False) -> list[Reason]:
        done = dlcli("train", *words, *ON, f"name={name}", "--json", cwd=folder)
        assert done.returncode in (0, 6), done.stderr
        (path,) = folder.glob(f"outputs/*/*-{name}")
        reasons = diagnose(read_evidence(RunFolder(path), name))
        for reason in reasons:
            composes(reason.remedy)
        return [reason for reason in reasons if by_the_clock or "share of the training" not in reason.figures]

    return train


@pytest.mark.parametrize(
    "words", [("digits",), ("digits", "seed=1"), ("digits", "seed=2"), ("digits_gan",)], ids=" ".join
)
def test_a_healthy_run_is_not_accused(trained: Any, words: tuple[str, ...]) -> None:
    found = trained("-".join(words).replace("=", "-"), *words)
    assert [reason.title for reason in found] == []


def test_the_quick_mnist_is_not_accused(trained: Any, data_root: Path) -> None:
    words = ("mnist_fast", f"dataset.root={data_root}", "trainer.max_steps=120")
    assert [reason.title for reason in trained("quick-mnist", *words)] == []


def test_a_large_network_on_few_images_over_fits(trained: Any) -> None:
    words = ("dataset.val_size=1300", "regularization=none", "model.hidden=[512,512]", "trainer.epochs=40")
    first = trained("over-fit", "digits", *words)[0]
    assert first.title == "Over-fitting" and "regularization=standard" in first.remedy
    assert first.figures["train accuracy"] == 1.0 and first.figures["val accuracy"] < 0.95


def test_a_loss_that_is_no_number_is_told_with_its_step_and_rate(trained: Any) -> None:
    first, *others = trained("diverged", "digits", "optimizer=sgd", "optimizer.lr=1000")
    assert first.title.startswith("It diverged") and others == []
    assert first.figures["lr"] == 1000 and first.figures["step"] > 0 and "nan" in first.figures["reason"]
    assert first.remedy.startswith("dlcli tune lr digits"), "a tenth of a thousand would be no better"


def test_a_network_of_one_neuron_is_too_small(trained: Any) -> None:
    first = trained("small", "digits", "model.hidden=[1]")[0]
    assert "too small" in first.title and first.remedy.endswith("'model.hidden=[64]'")
    assert first.figures["parameters"] == 85


def test_one_epoch_at_a_tiny_rate_ended_before_it_learned(trained: Any) -> None:
    (reason,) = trained("early", "digits", "trainer.epochs=1", "optimizer.lr=1e-5")
    assert reason.title.startswith("It ended before") and reason.remedy == "dlcli resume early trainer.epochs=10"


def test_a_tiny_rate_is_told_from_a_small_network(trained: Any) -> None:
    first, second = trained("slow", "digits", "trainer.epochs=20", "optimizer.lr=2e-5")
    assert "still falling" in first.title and first.remedy == "dlcli resume slow trainer.epochs=40"
    assert second.title == "The learning rate may be too small" and second.remedy.startswith("dlcli tune lr")


def test_a_rate_far_too_high_is_named(trained: Any) -> None:
    first = trained("high", "digits", "optimizer.lr=0.3", "trainer.epochs=30")[0]
    assert first.title == "The learning rate is too high" and first.remedy.endswith("optimizer.lr=0.03")
    assert first.figures["highest train loss"] > first.figures["guessing has"]


def test_images_augmented_more_slowly_than_the_network_takes_them(trained: Any) -> None:
    words = ("dataset.in_memory=false", "augmentation=strong", "model.hidden=[16]", "trainer.epochs=80")
    found = {reason.title: reason for reason in trained("data", "digits", *words, by_the_clock=True)}
    reason = found["The data are the slower side: it waited for batches"]
    assert reason.figures["source"] == "loader" and reason.remedy.startswith("dlcli tune workers digits")


def test_a_checkpoint_at_every_step_is_told(trained: Any) -> None:
    found = {reason.title: reason for reason in trained("saves", "digits", "trainer.save_every=1", by_the_clock=True)}
    assert "trainer.save_every=10" in found["Checkpoints take much of the time"].remedy


# ------------------------------------------------------------------------------------------------ hand-written runs


def test_nothing_stands_out_in_a_healthy_course() -> None:
    assert titles(HEALTHY) == []
    figures = diagnosis.vital_figures(HEALTHY)
    assert figures["last val accuracy"] == pytest.approx(0.98, abs=1e-4) and figures["at epoch"] == 20


def test_a_validation_loss_that_rises_while_the_training_loss_falls_is_over_fitting() -> None:
    val = [0.6 - 0.05 * i for i in range(6)] + [0.35 + 0.02 * i for i in range(14)]
    reason = only(evidence(curve(1.6, 0.01), val))
    assert reason.title == "Over-fitting" and reason.figures["at epoch"] in (6, 7)
    rising_together = evidence([0.5 + 0.01 * i for i in range(20)], val)
    assert "Over-fitting" not in titles(rising_together), "that is no over-fitting"


@pytest.mark.parametrize("num_examples", [40, 4_000])
def test_a_gap_of_accuracy_counts_where_it_is_more_than_chance(num_examples: int) -> None:
    few = {**PREPARED, "val_examples": num_examples}
    e = evidence(curve(1.6, 0.01), curve(0.6, 0.3), 0.99, 0.91, prepared=few)
    assert ("Over-fitting" in titles(e)) == (num_examples == 4_000)


def test_dropout_that_keeps_the_training_worse_than_the_validation_is_no_problem() -> None:
    assert titles(evidence(curve(1.6, 0.60), curve(0.6, 0.10), 0.80, 0.97)) == []


def test_a_training_loss_that_climbs_again_asks_for_a_smaller_rate() -> None:
    losses = curve(1.6, 0.1, 10) + [0.1 + 0.05 * i for i in range(10)]
    reason = only(evidence(losses, curve(0.6, 0.1)))
    assert reason.title == "The learning rate is too high" and reason.remedy.endswith("optimizer.lr=0.0001")


def test_a_loss_that_climbs_with_a_rate_that_restarts_is_no_rate_too_high() -> None:
    losses = curve(1.6, 0.1, 10) + [0.1 + 0.05 * i for i in range(10)]
    e = evidence(losses, curve(0.6, 0.1))
    fall = [1e-3 * 0.9**i for i in range(20)]
    for rates, is_told in (
        (fall[:10] * 2, False),
        (fall, True),
        (fall[::-1], True),  # a warm-up
        ([*fall[:10], 1.02 * fall[9], *fall[10:19]], True),  # a schedule under a limit of time
    ):
        rated = replace(e, evaluations=[{**e.evaluations[i], "lr": rate} for i, rate in enumerate(rates)])
        assert ("The learning rate is too high" in titles(rated)) == is_told, rates


@pytest.mark.parametrize(("accuracy", "is_nothing"), [(0.50, True), (0.52, True), (0.6, False), (0.72, False)])
def test_of_two_classes_more_than_half_is_something(accuracy: float, is_nothing: bool) -> None:
    e = evidence([0.69] * 20, [0.69] * 20, accuracy, accuracy, prepared={**PREPARED, "classes": 2})
    assert ("Nothing was learned" in titles(e)) == is_nothing


def test_two_epochs_of_a_rate_far_too_high_are_no_matter_of_epochs() -> None:
    assert titles(evidence([9.0, 8.0], [3.0, 2.9], 0.1, 0.11, lr=1.0)) == ["The learning rate is too high"]


def test_a_loss_that_is_not_the_cross_entropy_is_not_held_to_what_guessing_has() -> None:
    """Of a contrastive task, whose loss begins near the logarithm of the batch's size."""
    e = evidence([9.0, 8.0], [3.0, 2.9], 0.1, 0.11, lr=1.0)
    metrics = [{k.replace("val/loss", "val/cross_entropy"): v for k, v in m["metrics"].items()} for m in e.evaluations]
    e = replace(e, evaluations=[{**m, "metrics": own} for m, own in zip(e.evaluations, metrics, strict=True)])
    assert "The learning rate is too high" not in titles(e)


def configured(group: str, option: str) -> dict[str, Any]:
    """The composed settings of digits with one group replaced."""
    return compose_command(["digits", f"{group}={option}"]).tree


def test_the_remedy_against_over_fitting_is_none_that_the_run_has() -> None:
    course = (curve(1.6, 0.01), curve(0.6, 0.3), 0.99, 0.80)
    strong, light = configured("regularization", "strong"), configured("augmentation", "light")
    remedies = [
        only(evidence(*course, config=config, overrides=[])).remedy.removeprefix("dlcli train digits ")
        for config in (
            configured("regularization", "none"),
            strong,
            light,
            {**light, "regularization": strong["regularization"]},
        )
    ]
    sizes = ",".join(str(size // 2) for size in CONFIG["model"]["hidden"])
    assert remedies[:2] == ["regularization=standard", "augmentation=light"]
    assert remedies[2:] == ["regularization=strong", f"'model.hidden=[{sizes}]'"]


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("strong", "train digits augmentation=light"),
        ("standard", "train digits augmentation=light"),
        ("light", "train digits augmentation=none"),
        ("flip_shift", "train digits augmentation=none"),
        ("none", "tune batch digits"),
    ],
)
def test_a_resident_run_that_waits_gets_a_lighter_augmentation(option: str, remedy: str) -> None:
    time = {"data": 40.0, "device": 60.0}
    config = configured("augmentation", option)
    e = replace(HEALTHY, config=config, overrides=[], summary={**HEALTHY.summary, "time": time})
    assert only(e).remedy == f"dlcli {remedy}"


def test_guessing_is_called_nothing_learned() -> None:
    reason = only(evidence([2.3] * 20, [2.3] * 20, 0.1, 0.11))
    assert reason.title == "Nothing was learned" and reason.figures["guessing gets"] == 0.1
    assert reason.remedy == "dlcli tune lr digits 'model.hidden=[16]'", "the name was of the other run"


def scored(metric: str, values: Sequence[float], loss: Sequence[float] | None = None, **more: Any) -> Evidence:
    """A run without accuracies, whose validation has one more score; its loss is falling evenly, if not told."""
    loss = loss or [2 - 0.05 * i for i in range(len(values))]
    e = evidence(loss, loss)
    accuracy = more.pop("accuracy", None)
    for each, value in zip(e.evaluations, values, strict=True):
        del each["metrics"]["train/accuracy"], each["metrics"]["val/accuracy"]
        each["metrics"] |= {f"val/{metric}": value} | ({"val/accuracy": accuracy} if accuracy else {})
    mode = "min" if metric in ("cer", "bits_per_character") else "max"
    return replace(e, prepared={**PREPARED, "monitor": f"val/{metric}", "mode": mode, "classes": 0}, **more)


TEXT = compose_command(["shakespeare"]).tree
NUCLEI = {"config": compose_command(["nuclei"]).tree}  # two classes
NOTHING = [
    ("r2", [-0.5, -0.2, -0.01] * 2, "always answering with the mean", {}),
    ("cer", [1.3, 1.0, 1.0] * 2, "an empty transcript", {}),
    ("cer", [0.9, 0.85, 0.82] * 2, "the same transcript for everything", {}),
    ("bleu", [0.0, 0.3, 0.2] * 2, "writing anything", {}),
    ("map50", [0.0, 0.002, 0.001] * 2, "finding nothing", {}),
    ("mean_iou", [0.3, 0.44, 0.44] * 2, "one class for every pixel", {**NUCLEI, "accuracy": 0.87}),
    ("mean_iou", [0.02, 0.08, 0.07] * 2, "one class for every pixel", {**NUCLEI, "accuracy": 0.15}),
    ("bits_per_character", [6.11, 6.1, 6.09] * 2, "every token being as likely", {"config": TEXT, "loss": [4.23] * 6}),
]
SOMETHING = [
    ("r2", [-0.5, 0.2, -0.3], {}),
    ("cer", [1.3, 1.0, 0.6], {}),
    ("bleu", [0.0, 0.3, 5.0], {}),
    ("map50", [0.0, 0.002, 0.1], {}),
    ("mean_iou", [0.3, 0.44, 0.6], {**NUCLEI, "accuracy": 0.87}),
    ("bits_per_character", [4.78] * 3, {"config": TEXT, "loss": [3.31] * 3}),  # as often as in the text: 0.78 of all
]


@pytest.mark.parametrize(("metric", "values", "answer", "more"), NOTHING)
def test_no_better_than_an_answer_that_needs_no_input_is_nothing_learned(
    metric: str, values: list[float], answer: str, more: dict[str, Any]
) -> None:
    first = diagnose(scored(metric, values, **more))[0]
    assert first.title.startswith(f"Nothing was learned: no better than {answer}")
    best = min(values) if metric in ("cer", "bits_per_character") else max(values)
    assert first.figures[f"best val {metric}"] == best and first.figures[f"last val {metric}"] == values[-1]
    is_falling = "loss" not in more
    assert first.remedy.startswith("dlcli resume mine" if is_falling else "dlcli tune lr")
    composes(first.remedy)
    short = scored(metric, values[1:3], **{**more, "loss": more["loss"][:2]} if "loss" in more else more)
    assert titles(short) == ["It ended before it could learn much"], "two epochs are too few to tell"


@pytest.mark.parametrize(("metric", "values", "more"), SOMETHING)
def test_a_little_better_than_that_is_not_accused(metric: str, values: list[float], more: dict[str, Any]) -> None:
    assert titles(scored(metric, values, **more)) == []


def test_of_a_run_that_diverged_nothing_else_is_told() -> None:
    reason = "the loss is inf at step 25; the update was not made"
    e = scored("r2", [-1e20, -1e25, -1e30])
    assert titles(replace(e, status="failed", reason=reason)) == ["It diverged: the loss is not a number any more"]


def test_pixels_that_are_mostly_background_are_no_classes_guessed_rightly() -> None:
    """Nine tenths of the pixels are background, and a loss with Dice's is no cross-entropy: no rate is too high."""
    e = evidence([1.40, 1.39, 1.385], [1.4, 1.4, 1.4], 0.16, 0.15, prepared={**PREPARED, "classes": 2})
    for each in e.evaluations:
        each["metrics"]["val/mean_iou"] = 0.08
    assert [title.partition(":")[0] for title in titles(e)] == ["Nothing was learned"]


def test_numbers_that_are_always_the_mean_or_worse_are_told(trained: Any) -> None:
    """R2 is -0.02 after twelve epochs of a rate that is far too small."""
    words = ("diabetes", "optimizer=sgd", "optimizer.lr=1e-4", "trainer.epochs=12")
    (reason,) = trained("mean", *words)
    assert reason.title == "Nothing was learned: no better than always answering with the mean"
    assert -0.2 < reason.figures["best val r2"] < 0 and reason.remedy == "dlcli resume mean trainer.epochs=24"
    assert trained("diabetes", "diabetes") == []


def test_a_score_that_still_gets_better_at_the_end_is_told() -> None:
    val = [0.6 - 0.02 * i for i in range(20)]
    reason = only(evidence(curve(1.6, 0.1), val))
    assert reason.title == "It ended while it was still improving"
    assert reason.remedy == "dlcli resume mine trainer.epochs=120"


def test_a_best_epoch_far_before_the_end_is_told() -> None:
    val = curve(0.6, 0.1, 5) + [0.2 + 0.001 * i for i in range(15)]
    reason = only(evidence([0.5 + 0.1 * loss for loss in curve(1, 0)], val))
    assert reason.title == "It trained longer than needed" and reason.figures["best epoch"] == 5


@pytest.mark.parametrize(("what", "word"), [("data", "data"), ("evaluation", "Evaluations"), ("saving", "Checkpoints")])
def test_time_that_went_elsewhere_is_told_with_its_share(what: str, word: str) -> None:
    time = {"start": 50.0, "data": 1.0, "device": 60.0, "evaluation": 1.0, "saving": 1.0, what: 40.0}
    reason = only(replace(HEALTHY, summary={**HEALTHY.summary, "time": time}))
    assert word in reason.title and reason.figures["share of the training"] == pytest.approx(40 / 102)
    composes(reason.remedy)
    brief = {name: seconds / 100 for name, seconds in time.items()}
    assert titles(replace(HEALTHY, summary={**HEALTHY.summary, "time": brief})) == [], "nobody waits for 0.4 s"


@pytest.mark.parametrize("status", ["interrupted", "killed"])
def test_a_run_that_was_cut_short_is_told_how_to_go_on(status: str) -> None:
    reason = only(evidence(curve(1.6, 0.05, 3), curve(0.6, 0.1, 3), status=status))
    assert reason.remedy == "dlcli resume mine" and reason.figures["epochs"] == 3 and reason.figures["of"] == 20


@pytest.mark.parametrize(("flags", "name"), [("", "sw/0003"), (" --outputs 'my runs/a'", "sw/0003")])
def test_a_pruned_trial_points_at_its_sweep(flags: str, name: str) -> None:
    e = evidence(curve(1.6, 0.05, 3), curve(0.6, 0.1, 3), status="pruned")
    assert only(replace(e, name=name + flags)).remedy == f"dlcli sweep top sw{flags}"


def test_memory_that_did_not_suffice_for_one_example_asks_for_a_smaller_network() -> None:
    config = {**CONFIG, "dataset": {**CONFIG["dataset"], "batch_size": 1}, "model": {"hidden": [512, 256]}}
    e = evidence(status="failed", reason="out of memory: 2 GiB more were needed", config=config, overrides=[])
    assert only(e).remedy == "dlcli train digits 'model.hidden=[256,128]'"


def test_memory_that_did_not_suffice_asks_for_half_the_batch() -> None:
    reason = only(evidence(status="failed", reason="out of memory: 2 GiB more were needed"))
    assert reason.remedy.endswith("dataset.batch_size=32 trainer.accumulate_grad_batches=2")


def test_another_failure_is_told_in_its_own_words() -> None:
    reason = only(evidence(status="failed", reason="the disk is full"))
    assert reason.title == "It failed" and reason.figures["reason"] == "the disk is full"
    assert reason.remedy == "dlcli runs show mine", "there is nothing to go on from"
    saved = evidence(status="failed", reason="the disk is full", summary={"checkpoint": "outputs/it/checkpoints/last"})
    assert only(saved).remedy == "dlcli resume mine"


def test_a_remedy_is_quoted_so_that_it_pastes() -> None:
    e = replace(HEALTHY, overrides=["model.hidden=[64, 64]", "name=it's mine"])
    assert e.again("optimizer.lr=1") == "dlcli train digits 'model.hidden=[64, 64]' optimizer.lr=1"
    assert shlex.split(e.again("a=it's", verb="tune lr"))[-1] == "a=it's"


def test_early_stopping_is_named() -> None:
    reason = only(replace(HEALTHY, summary={**HEALTHY.summary, "stopped_early": True, "best_epoch": 18}))
    assert reason.title.startswith("Early stopping") and reason.figures["best epoch"] == 18


def test_reasons_come_by_their_weight_and_point_at_commands_that_are_accepted() -> None:
    time = {"data": 1.0, "device": 60.0, "evaluation": 40.0, "saving": 1.0}
    e = evidence(curve(1.6, 0.01), curve(0.6, 0.3), 0.99, 0.80, summary={"time": time})
    reasons = diagnose(e)
    assert [reason.title for reason in reasons] == ["Over-fitting", "Evaluations take much of the time"]
    assert reasons[0].weight > reasons[1].weight
    for reason in reasons:
        composes(reason.remedy)


def test_a_plateau_and_an_even_fall_are_told_apart() -> None:
    assert falling_share([5.0 - 0.1 * i for i in range(20)]) == pytest.approx(0.4 / 1.9)
    assert falling_share(curve(2.5, 2.0)) < 0.01 and falling_share([1.0] * 4) is None
    assert smooth([1.0, 3.0]) == [1.0, 3.0] and smooth([float(i) for i in range(20)])[-1] == 18.5


# ------------------------------------------------------------------------------------------------------ the command


def test_the_command_ends_well_for_a_finished_and_for_a_killed_run(quick_run: Path, tmp_path: Path) -> None:
    shutil.copytree(quick_run, tmp_path / "outputs" / "digits" / quick_run.name, symlinks=True)
    done = dlcli("why", cwd=tmp_path, COLUMNS="80")
    assert done.returncode == 0 and "completed" in done.stdout and done.stderr == ""
    (tmp_path / "outputs" / "digits" / quick_run.name / "summary.json").unlink()
    killed = dlcli("why", "latest", cwd=tmp_path, COLUMNS="80")
    assert killed.returncode == 0 and "It was killed" in killed.stdout and "dlcli resume" in killed.stdout
    folded = [line for line in killed.stdout.splitlines() if "try: " not in line]
    assert all(len(line) <= 80 for line in folded), folded


def test_json_is_a_line_a_reason_and_the_verdict(quick_run: Path, tmp_path: Path) -> None:
    done = dlcli("why", str(quick_run), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *reasons, last = events_of(done.stdout)
    assert last["event"] == "diagnosed" and last["reasons"] == len(reasons) and last["figures"]["epochs"] == 2
    assert all(set(reason) == {"event", "title", "figures", "remedy", "weight"} for reason in reasons)


@pytest.mark.parametrize("lines", [[], [{"event": "epoch", "epoch": None, "metrics": {"val/loss": None}}], ["torn"]])
def test_a_record_of_nothing_or_of_nonsense_is_read_too(tmp_path: Path, lines: list[Any]) -> None:
    run = RunFolder.create(tmp_path / "outputs", "digits", "odd")
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = dlcli("why", "odd", cwd=tmp_path)
    assert done.returncode == 0 and "It was killed" in done.stdout, done.stderr


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = dlcli("why", "nobody", cwd=tmp_path)
    assert done.returncode == 2 and "dlcli train digits" in done.stderr
