"""What a message proposes: the nearest of what there is, in a command that is whole."""

from __future__ import annotations

import shlex

import pytest

from dlcli.config import compose_command
from dlcli.config.tree import lookup
from dlcli.errors import ConfigError
from dlcli.schema import SETTINGS


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
    assert SETTINGS["dataset.resident"].choices == [True, False, "auto"]
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
