"""What a message proposes: the nearest of what there is, in a command that is whole."""

from __future__ import annotations

import pytest

from dlcli.config import compose_command
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
