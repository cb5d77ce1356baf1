"""What a message proposes: the nearest of what there is, in a command that is whole."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dlcli.config import compose_command
from dlcli.config.settings import SETTINGS
from dlcli.config.tree import lookup
from dlcli.errors import ConfigError


def refused(*words: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        compose_command(words)
    return caught.value


def proposed(*words: str) -> str | None:
    """The word that stands behind "Did you mean" of the only problem."""
    (problem,) = refused(*words).problems
    return problem.better


@pytest.mark.parametrize(
    ("experiment", "word", "better"),
    [
        ("sentences", "dataset.tokenizer=charcters", "characters"),
        ("digits", "model.activation=leakyrelu", "leaky_relu"),
        ("csv", "dataset.delimiter=semi", "semicolon"),
        ("cifar10_resnet", "model.depth=51", "50"),
        ("digits", "runtime.threads=atuo", "auto"),
        ("digits", "augmentation.flip=altrenate", "alternate"),
        ("digits", "runtime.compile=ture", "true"),
        ("digits", "runtime.deterministic=1", "true"),
        ("digits", "dataset.download=off", "false"),
    ],
)
def test_the_nearest_choice_of_a_setting_is_proposed(experiment: str, word: str, better: str) -> None:
    assert proposed(experiment, word) == f"{word.partition('=')[0]}={better}"


def test_where_no_choice_is_near_the_value_that_stands_there_is_proposed() -> None:
    assert proposed("digits", "model.activation=xyzzy") == "model.activation=relu"
    assert proposed("digits", "runtime.device=gpu") == "runtime.device=auto"


def test_a_setting_names_its_choices_and_a_range_has_none() -> None:
    assert SETTINGS["runtime.compile"].choices == [True, False]
    assert SETTINGS["dataset.in_memory"].choices == [True, False, "auto"]
    assert SETTINGS["model.depth"].choices == [18, 34, 50, 101, 152]
    assert SETTINGS["optimizer.lr"].choices == SETTINGS["name"].choices == []


GROUPS = 'parameter_groups={biases:{match:"*.bias",weight_decay:0.0,from_epoch:2},first:{match:layers.0.*}}'


def pasted(hint: str | None) -> list[str]:
    """The words that a shell makes of a proposed command, without the program and its verb."""
    assert hint is not None
    return shlex.split(hint.removeprefix("try:"))[2:]


def test_a_group_given_whole_is_proposed_setting_by_setting_and_the_command_runs_as_pasted() -> None:
    told = refused("digits", GROUPS)
    assert "is a group of settings, which are set one by one" in told.problems[0].message
    groups = compose_command(pasted(told.hint)).tree["parameter_groups"]
    assert groups == {
        "biases": {"match": "*.bias", "weight_decay": 0.0, "from_epoch": 2},
        "first": {"match": "layers.0.*"},
    }


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ('parameter_groups.biases={match:"*.bias",lr:0.1}', "parameter_groups.biases.match", "*.bias"),
        ("regularization.early_stopping={patience:null}", "regularization.early_stopping.patience", None),
        ('parameter_groups.head={match: "a,b", lr: 0.1}', "parameter_groups.head.match", "a,b"),
        ('parameter_groups.head={match: "1"}', "parameter_groups.head.match", "1"),
        ('parameter_groups.head={match: "null"}', "parameter_groups.head.match", "null"),
        ('parameter_groups.head={match: "it\'s, \\ all"}', "parameter_groups.head.match", "it's, \\ all"),
    ],
)
def test_a_group_given_in_part_is_proposed_too(word: str, key: str, value: object) -> None:
    assert lookup(compose_command(pasted(refused("digits", word).hint)).tree, key) == value


def test_an_empty_group_names_the_form() -> None:
    (problem,) = refused("digits", "parameter_groups=none").problems
    assert "parameter_groups.GROUP.match, parameter_groups.GROUP.SETTING" in problem.message


def test_another_model_is_proposed_beside_what_asked_for_it() -> None:
    told = refused("mnist", "trainer.pretrained=imagenet", "model.dropout=0.1")
    better = told.problems[0].better
    assert better in ("model=mobilenet", "model=resnet", "model=shufflenet")
    assert pasted(told.hint) == ["mnist", "trainer.pretrained=imagenet", "model.dropout=0.1", better]
    told = refused("mnist", "model=lenet5", "trainer.pretrained=imagenet")
    assert pasted(told.hint) == ["mnist", better, "trainer.pretrained=imagenet"]
    assert compose_command(pasted(told.hint)).choices["model"] == better.removeprefix("model=")


def test_where_no_model_has_such_weights_the_command_without_them_is_proposed() -> None:
    told = refused("digits", "trainer.pretrained=imagenet")  # 8 x 8 pixels, where these models need 16
    assert pasted(told.hint) == ["digits", "trainer.pretrained=null"]
    assert compose_command(pasted(told.hint)).choices["model"] == "mlp"


def test_a_proposed_command_is_quoted_for_the_shell() -> None:
    told = refused("sentences", "dataset.path=my good file.tsv", "dataset.tokenizer=charcters")
    assert pasted(told.hint) == ["sentences", "dataset.path=my good file.tsv", "dataset.tokenizer=characters"]


def test_a_folder_of_images_is_named_by_its_root_whatever_the_others_say() -> None:
    told = refused("image_folder", "dataset.path=photos")
    assert pasted(told.hint) == ["image_folder", "dataset.root=photos"]
    assert "is a setting of dataset=" in refused("digits", "dataset.path=photos").problems[0].message


@pytest.mark.parametrize(
    ("experiment", "name", "key"),
    [
        ("sentences", "ok.tsv", "dataset.path"),
        ("csv", "my good (new) file, it's.csv", "dataset.path"),
        ("csv", "2024", "dataset.path"),
        ("image_folder", "photos", "dataset.root"),
        ("finetune", "photos", "dataset.root"),
    ],
)
def test_a_file_or_folder_beside_an_experiment_is_taken_to_be_its_data(
    experiment: str, name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    told = refused(experiment, name, "seed=3")
    composed = compose_command(pasted(told.hint))
    assert (composed.experiment, lookup(composed.tree, key), composed.tree["seed"]) == (experiment, name, 3)


def test_a_file_that_cannot_be_the_data_is_told_without_a_proposal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.tsv", "b.tsv"):
        Path(name).touch()
    assert [p.better for p in refused("sentences", "a.tsv", "b.tsv").problems] == ["dataset.path=a.tsv", None]
    assert proposed("sentences", "dataset.path=a.tsv", "b.tsv") is proposed("digits", "a.tsv") is None


@pytest.mark.parametrize(
    ("words", "better"),
    [
        (("sentences", "regularization.mixup=0.2"), "regularization.mixup=0.0"),
        (("adult", "regularization.cutmix=1.0"), "regularization.cutmix=0.0"),
        (("adult", "task.mixup=0.3"), "task.mixup=0.0"),
        (("adult", "regularization=strong"), "regularization.mixup=0.0"),
        (("sentences", "task.test_time_augmentation.mirror=true"), "task.test_time_augmentation.mirror=false"),
        (("sentences", "task.test_time_augmentation.shift=2"), "task.test_time_augmentation.shift=0"),
    ],
)
def test_what_is_of_images_is_refused_for_other_data_before_anything_is_read(
    words: tuple[str, ...], better: str
) -> None:
    told = refused(*words)
    assert [(p.better, "is of images; dataset" in p.message) for p in told.problems] == [(better, True)]
    compose_command(pasted(told.hint))
