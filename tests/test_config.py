"""Every mistake in a command is told at once, with the nearest right name, before torch is imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import dlcli

from dlcli.config import compose_command
from dlcli.config.folders import GROUPS, describe, options, packaged_conf, search_path
from dlcli.config.settings import SETTINGS, seconds
from dlcli.config.stored import change_stored, check_stored
from dlcli.config.why import explain
from dlcli.errors import ConfigError, any_of

OPTIONS = [(group, name) for group in GROUPS for name in options(group, [packaged_conf()])]


def problems(*words: str, **named: str) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(ConfigError) as caught:
        compose_command(list(words), **named)
    return {p.where: (p.message, p.better) for p in caught.value.problems}


@pytest.mark.parametrize(("group", "name"), OPTIONS, ids=[f"{g}={n}" for g, n in OPTIONS])
def test_every_option_says_its_command_and_composes(group: str, name: str) -> None:
    path = options(group, [packaged_conf()])[name]
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# dlcli train"), path
    assert "  " not in lines[0] and describe(path).endswith("."), "a command to paste, then a sentence"
    command = lines[0].removeprefix("# dlcli train").split()
    needs = {"PATH": "/tmp"}
    words = [next((w.replace(k, v) for k, v in needs.items() if w.endswith(k)), w) for w in command]
    composed = compose_command(words)
    if group != "experiment":
        assert composed.choices[group] == name, "the command of the first comment chooses this option"


def test_every_setting_of_the_packaged_configs_is_in_the_table() -> None:
    from dlcli.config.tree import leaves

    for experiment in options("experiment", [packaged_conf()]):
        words = [experiment, "task.teacher=x"] if "distill" in experiment else [experiment]
        for key, _ in leaves(compose_command(words).tree):
            assert key in SETTINGS or key.startswith(("dataset.reader.", "dataset.peek.", "parameter_groups.")), key


def test_mnist_is_the_reference(tmp_path: Path) -> None:
    tree = compose_command(["mnist"]).tree
    assert (tree["optimizer"]["_target_"], tree["optimizer"]["lr"]) == ("torch.optim.Adam", 1e-3)
    assert (tree["dataset"]["batch_size"], tree["trainer"]["epochs"]) == (64, 5)
    assert (tree["model"]["_target_"], tree["model"]["dropout"]) == ("dlcli.models.mnist_net.MnistNet", 0.5)


def test_the_three_mistakes_are_told_at_once_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from dlcli.cli import run;"
        "code = run(['train', 'mnist', 'optimzer.lr=0.1', 'trainer.epochs=ten', 'model=lenet']);"
        "print(code, 'torch' in sys.modules)"
    )
    import subprocess
    import sys

    from program import environment

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["2", "False"]
    assert "3 problems" in done.stderr
    for right in ("optimizer.lr=0.1", "model=lenet5", "whole number"):
        assert right in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was written"


@pytest.mark.parametrize(
    ("word", "better"),
    [
        ("optimzer.lr=0.1", "optimizer.lr=0.1"),
        ("lr=0.1", "optimizer.lr=0.1"),
        ("trainer.lr=0.1", "optimizer.lr=0.1"),
        ("epochs=3", "trainer.epochs=3"),
        ("batch_size=32", "dataset.batch_size=32"),
        ("dropout=0.1", "regularization.dropout=0.1"),
        ("trainer.epoch=3", "trainer.epochs=3"),
        ("model=lenet", "model=lenet5"),
        ("model=resnt", "model=resnet"),
        ("optimizer=adm", "optimizer=adam"),
        ("trainer.monitor=val/acc", "trainer.monitor=val/accuracy"),
        ("trainer.monitor=val/frechet", "trainer.monitor=val/accuracy"),
    ],
)
def test_the_nearest_right_word(word: str, better: str) -> None:
    assert next(iter(problems("digits", word).values()))[1] == better


def test_flags_of_other_programs_are_translated() -> None:
    found = problems("digits", "--lr", "0.1", "--batch-size=32", "--jsn")
    assert found["--lr 0.1"][1] == "optimizer.lr=0.1"
    assert found["--batch-size=32"][1] == "dataset.batch_size=32"
    assert found["--jsn"][1] == "--json"


def test_a_setting_of_another_option_is_explained() -> None:
    message, _ = problems("digits", "optimizer=sgd", "optimizer.betas=[0.9,0.99]")["optimizer.betas=[0.9,0.99]"]
    assert "adam" in message and "not of sgd" in message
    two, _ = problems("digits", "dataset.context_length=3")["dataset.context_length=3"]
    assert "is a setting of dataset=shakespeare or text, not of" in two


@pytest.mark.parametrize(
    ("count", "told"), [(1, "a"), (2, "a or b"), (3, "a, b or c"), (4, "a, b, c or d"), (6, "a, b, c or 3 others")]
)
def test_options_are_told_as_a_person_would_list_them(count: int, told: str) -> None:
    assert any_of("abcdef"[:count], most=4) == told


def test_groups_that_cannot_go_together() -> None:
    assert "28 x 28" in problems("digits", "model=lenet5")["model=lenet5"][0]
    assert any("needs a gan" in message for message, _ in problems("digits", "task=gan").values())


def test_a_model_that_fits_is_found_by_its_facts_however_they_are_written(tmp_path: Path) -> None:
    assert problems("digits", "task=gan")["model"][1] == "model=gan_mlp"
    assert problems("digits", "model=gan_mlp")["model=gan_mlp"][1] == "model=mlp"
    (tmp_path / "task").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "task" / "drawing.yaml").write_text(
        "_target_: mine.Drawing\nfacts:\n  models: painter\n  scores: {loss: min}\n  monitor: val/loss\n"
    )
    (tmp_path / "model" / "brush.yaml").write_text("_target_: mine.Brush\nfacts:\n  min_size: 1\n  kind: painter\n")
    assert problems("digits", "task=drawing", config_dir=str(tmp_path))["model"][1] == "model=brush"


def test_an_unknown_experiment() -> None:
    assert problems("mnsit")["mnsit"][1] == "mnist"


def test_a_group_chosen_on_the_command_line_is_taken_whole() -> None:
    assert compose_command(["digits_gan"]).tree["optimizer"]["lr"] == 2e-3
    assert compose_command(["digits_gan", "optimizer=sgd"]).tree["optimizer"]["lr"] == 0.1


def test_a_users_conf_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "experiment").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(
        "# dlcli train mine\n_target_: mine.Net\nfacts: {kind: classifier}\nwidth: 3\n"
    )
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n# dlcli train mine\ndefaults:\n  - override /model: mine\ntrainer: {epochs: 7}\n"
    )
    composed = compose_command(["mine", "model.width=4"], config_dir=str(tmp_path))
    assert (composed.tree["model"]["width"], composed.tree["trainer"]["epochs"]) == (4, 7)
    assert "whole number" in problems("mine", "model.width=wide", config_dir=str(tmp_path))["model.width=wide"][0]


def test_an_experiment_of_a_users_folder_needs_no_package_line(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment" / "mine.yaml"
    path.write_text("defaults:\n  - override /optimizer: sgd\nseed: 3\n")
    assert compose_command(["mine"], config_dir=str(tmp_path)).tree["seed"] == 3
    path.write_text("seed: 3\ntrainer: {epoch: 3}\n")
    assert any("trainer.epochs" in message for message, _ in problems("mine", config_dir=str(tmp_path)).values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["parameter_groups.b.match=*.bias", "parameter_groups.b.weight_decay=-3"], "from 0"),
        (["parameter_groups.b.match=*.bias", "parameter_groups.b.weigth_decay=0.0"], "not a setting of the optimizer"),
        (["parameter_groups.b.match=*.bias", "parameter_groups.b.lr=abc"], "a number"),
        (["parameter_groups.b.match=*.bias", "parameter_groups.b.params=3"], "not a setting of the optimizer"),
        (["parameter_groups.b.weight_decay=0.1"], "must be a pattern"),
        (["parameter_groups.b=3"], ""),
    ],
)
def test_parameter_groups_are_held_to_the_optimizers_settings(words: list[str], told: str) -> None:
    quoted = [word.replace("=*.bias", "='*.bias'") for word in words]
    assert any(told in message for message, _ in problems("digits", *quoted).values())
    right = ["parameter_groups.b.match='*.bias'", "parameter_groups.b.weight_decay=0.0"]
    assert compose_command(["digits", *right]).tree["parameter_groups"]["b"]["weight_decay"] == 0.0


def test_a_validation_split_is_a_number_or_a_share() -> None:
    for value in ("100", "0.1"):
        assert compose_command(["digits", f"dataset.val_size={value}"]).tree["dataset"]["val_size"] == float(value)
    for value in ("0", "1.5", "-1", "true", "1.0"):
        assert problems("digits", f"dataset.val_size={value}")


def test_the_hint_of_a_missing_setting_is_a_command_that_works() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_command(["digits_distill"])
    assert str(caught.value.hint).endswith("dlcli train digits_distill task.teacher=latest")


def test_a_yaml_file_is_an_experiment(tmp_path: Path) -> None:
    path = tmp_path / "my own.yaml"
    path.write_text("defaults:\n  - override /optimizer: sgd\nseed: 5\n")
    composed = compose_command([str(path)])
    assert (composed.tree["seed"], composed.choices["optimizer"], composed.experiment) == (5, "sgd", "my_own")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\nb: *a\n",
        "a: !!python/object/apply:os.system ['true']\n",
        "seed: [" * 400,
        "seed: 1\nseed: 2\n",
        "- 1\n",
        "seed: '",
        "seed: ${oc.env:HOME}\n",
        "seed: ${seed}\n",
        "trainer: 5\n",
        "no_such_key: 5\n",
    ],
)
def test_a_hostile_experiment_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert problems(str(path))


def test_regularization_without_effect_is_said() -> None:
    warned = compose_command(["mnist", "model=resnet", "regularization.batch_norm=true"]).warnings
    assert warned and "no effect" in warned[0]


def test_values_of_stored_configs_are_held_to_the_same_ranges() -> None:
    tree = compose_command(["digits"]).tree
    assert check_stored(tree) is tree
    tree["model"]["hidden"] = [10**9]
    with pytest.raises(ConfigError, match="65,536"):
        check_stored(tree)


def test_a_resume_changes_only_what_it_may() -> None:
    tree = compose_command(["digits"]).tree
    assert change_stored(tree, ["trainer.epochs=40"], ["trainer.epochs"])["trainer"]["epochs"] == 40
    assert tree["trainer"]["epochs"] == 60
    with pytest.raises(ConfigError) as caught:
        change_stored(tree, ["optimizer.lr=1", "trainer.epochs=no"], ["trainer.epochs"])
    assert len(caught.value.problems) == 2


def test_durations() -> None:
    assert [seconds(text) for text in ("90s", "10m", "1h30m")] == [90, 600, 5400]


def test_why_names_every_place(tmp_path: Path) -> None:
    done = dlcli("config", "why", "digits_gan", "optimizer.lr", "optimizer.lr=0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for place in ("optimizer/adam.yaml", "experiment/digits_gan.yaml", "the command"):
        assert place in done.stdout
    assert "above 0" in done.stdout
    chain = explain(["digits_gan", "optimizer.betas"])["chain"]
    assert [place["value"] for place in chain] == ["[0.9, 0.999]", "[0.5, 0.99]"]


def line_of(path: Path, text: str) -> int:
    return next(n for n, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_why_names_who_chose_the_option_of_a_group() -> None:
    conf = packaged_conf()
    answer = explain(["digits_gan", "optimizer"])
    assert (answer["value"], answer["meaning"]) == ("adam", describe(conf / "optimizer/adam.yaml"))
    assert "optimizer/adam.yaml" in answer["file"] and "sgd" in answer["expects"]
    in_train = line_of(conf / "train.yaml", "- optimizer:")
    in_experiment = line_of(conf / "experiment/digits_gan.yaml", "override /optimizer")
    places = [f"train.yaml:{in_train}", f"experiment/digits_gan.yaml:{in_experiment}"]
    assert [f"conf/{place}" for place in places] == [p["place"].replace(" (dlcli's)", "") for p in answer["chain"]]
    chosen = explain(["mnist", "optimizer", "optimizer=sgd"])
    assert chosen["value"] == "sgd" and [p["value"] for p in chosen["chain"]] == ["adam", "sgd"]
    assert chosen["chain"][-1]["place"].startswith("the command")


def test_why_understands_what_completion_leaves() -> None:
    assert explain(["digits", "optimizer.lr="]) == explain(["digits", "optimizer.lr"])
    assert explain(["digits", "optimizer="]) == explain(["digits", "optimizer"])
    assert explain(["optimizer.lr=", "optimizer.lr=0.5"])["value"] == 0.5


def test_a_search_is_no_part_of_a_training() -> None:
    found = problems("digits", "sweep=learning_rate")
    assert found == {
        "sweep=learning_rate": ("is a search over many trials; use: dlcli sweep digits sweep=learning_rate", None)
    }


@pytest.mark.parametrize(
    ("words", "where", "told", "better"),
    [
        (
            ("sst2_lstm", "model=mlp"),
            "model=mlp",
            "this model takes images or table; dataset sst2 gives sentences",
            "model=",
        ),
        (("mnist", "task=ctc"), "task=ctc", "this task takes speech; dataset mnist gives images", "task="),
        (
            ("spoken_digits", "model=lstm"),
            "model=lstm",
            "this model is a classifier; the task needs a recognizer",
            "model=",
        ),
        (("adult", "model=mnist_net"), "model=mnist_net", "gives table", "model=mlp"),
    ],
)
def test_what_does_not_take_the_data_is_told_with_what_does(
    words: tuple[str, ...], where: str, told: str, better: str
) -> None:
    message, proposed = problems(*words)[where]
    assert told in message and (proposed or "").startswith(better)


@pytest.mark.parametrize(
    ("word", "better"),
    [
        ("modl=gru", "model=gru"),
        ("datset=digits", "dataset=digits"),
        ("optimzer=sdg", "optimizer=sgd"),
        ("mode=offline", "tracker.mode=offline"),
        ("sed=3", "seed=3"),
    ],
)
def test_a_misspelt_group_is_known_by_its_name_and_by_what_was_chosen(word: str, better: str) -> None:
    assert problems("mnist", word)[word][1] == better


def test_of_many_options_a_message_names_the_nearest_and_where_the_others_stand() -> None:
    told, better = problems("mnist", "model=lenett")["model=lenett"]
    assert (
        better == "model=lenet5"
        and told == f"there is no such model (dlcli list model shows all {len(options('model', search_path(None)))})"
    )
    told, _ = problems("mnist", "tracker=wandbb")["tracker=wandbb"]
    assert told == "there is no such tracker (none, wandb)"


def test_only_what_a_dataset_may_lack_is_looked_up_so(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for number, text in enumerate(
        ("${oc.env:HOME}", "${oc.select:dataset.num_tokens,${oc.env:HOME}}", "${oc.decode:1}")
    ):
        (tmp_path / "model" / f"odd{number}.yaml").write_text(
            f"_target_: mine.Net\nfacts: {{kind: classifier}}\nwidth: {text}\n"
        )
        found = problems("digits", f"model=odd{number}", config_dir=str(tmp_path))
        assert any("only ${other.setting}" in message for message, _ in found.values())


def test_augmentation_of_what_is_no_picture_is_told_to_have_no_effect() -> None:
    assert compose_command(["diabetes"]).warnings == ()
    (told,) = compose_command(["diabetes", "augmentation.flip=0.5"]).warnings
    assert told == "augmentation.flip=0.5 has no effect: dataset=diabetes gives table"
