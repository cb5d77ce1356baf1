"""The names of runs: which a user may give, and two words drawn for those who give none (`calm-otter`)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

from dlcli.errors import ConfigError, printable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def checked_name(name: str, what: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {printable(repr(name))} cannot be the name of a folder",
            hint="1 to 80 letters, digits, dots, underscores and hyphens, starting with a letter or a digit.",
        )
    return name


def candidates(name: str | None, taken: set[str]) -> Iterator[str]:
    """Names to try in turn: the given one, then with -2, -3, ...; or drawn ones that no run has yet."""
    if name is None:
        for _ in range(100):
            word = f"{secrets.choice(ADJECTIVES)}-{secrets.choice(NOUNS)}"
            if word not in taken:
                yield word
        name = f"{secrets.choice(ADJECTIVES)}-{secrets.choice(NOUNS)}"
    else:
        yield name
    number = 1
    while True:
        number += 1
        yield f"{name}-{number}"


_ADJECTIVES_TEXT = """
able agile amber ample apt azure balmy bold brave breezy bright brisk calm candid chatty cheery clear clever cosy
crisp curious dapper deft dreamy eager early easy fair fancy fleet fluent fond frank fresh gentle glad golden grand
happy hardy honest jolly keen kind light lively lucid lucky mellow merry mild misty modest neat nimble noble patient
placid plucky polite proud quick quiet rapid ready rosy royal serene sharp shiny silent simple sleek smart snowy solid
spry steady stout sunny swift tidy true vivid warm wise witty zesty
"""
_NOUNS_TEXT = """
acorn alder badger beacon beaver birch bison brook canyon cedar cloud comet condor coral crane creek cricket dolphin
eagle ember falcon fern finch fjord fox gecko glacier grove harbor hare hawk hazel heron hill ibis iris island ivy
jackal jay kestrel kite koala lagoon lake lark lemur lily linden lynx magpie maple marlin meadow mesa moon moose newt
oak ocean olive orca orchid osprey otter owl panda pebble pine plover puffin quail raven reef river robin salmon seal
sparrow spruce star stork summit swan thistle tiger trout tulip valley walrus willow wren zebra
"""
ADJECTIVES, NOUNS = tuple(_ADJECTIVES_TEXT.split()), tuple(_NOUNS_TEXT.split())
