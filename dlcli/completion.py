"""What may follow on the command line, for <TAB>: commands, experiments, groups, options, keys, runs and flags.

The shell calls `dlcli` with _DLCLI_COMPLETE set; cli.main() then calls `answer()` before anything else is imported.
Everything is read from files line by line, without Typer or a YAML reader, so that an answer takes < 0.2 s. What the
commands take is in completion.txt, which is generated from the Typer app; a test compares the two.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NoReturn

from dlcli.config import folders

TABLE = Path(__file__).resolve().with_name("completion.txt")  # made from the Typer app by tests/completion_table.py
MOST_RUNS = 200  # offered at one <TAB>, newest first


def answer() -> NoReturn:
    """Print the candidates for the line in COMP_WORDS (its words) and COMP_CWORD (the number of the current one)."""
    try:
        words = os.environ.get("COMP_WORDS", "").split(" ")
        at = int(os.environ.get("COMP_CWORD", "0"))
        current = words[at] if at < len(words) else ""
        sys.stdout.write("".join(f"{word}\n" for word in complete(words[1:at], current)))
        sys.stdout.flush()
    except Exception:  # a shell shows what is printed here in the middle of the user's line
        os._exit(0)
    raise SystemExit(0)


def complete(words: Sequence[str], current: str) -> list[str]:
    """What the word `current` may become, after the whole `words` that follow `dlcli`."""
    table = read_table()
    with_value = {option for entry in table.values() for option, value in entry.options.items() if value is not None}
    plain = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in with_value
    ]
    if not plain:
        return _matching(current, _flags(table[""]) if current.startswith("-") else _below("", table))
    command, rest, subcommands = plain[0], plain[1:], _below(plain[0], table)
    entry = table.get(_path(plain, subcommands)) or Entry()
    if words[-1] in with_value:
        return _matching(current, _option_values(words[-1], entry, words, current))
    if current.startswith("-"):
        option, equals, value = current.partition("=")
        found = [f"{option}={v}" for v in _option_values(option, entry, words, value)] if equals else _flags(entry)
        return _matching(current, found)
    if command == "sweep":
        return _matching(current, _of_a_sweep(words, rest, current, subcommands))
    if subcommands and not rest:
        return _matching(current, subcommands)
    rest, takes = rest[1:] if subcommands else rest, entry.takes
    if command == "completion":
        return [] if rest else _matching(current, list(SCRIPTS))
    if command == "list":
        return [] if rest else _matching(current, folders.groups(folders.search_path(_value_of("--config-dir", words))))
    if "FILTER" in takes:
        return [] if rest else _matching(current, folders.options("experiment", folders.search_path()))
    if plain[:2] == ["runs", "restore"]:
        return _matching(current, _removed(words))
    if "RUN" in takes and (not rest or takes.startswith("RUNS")):
        return _matching(current, _runs(words, current, checkpoints="CHECKPOINT" in takes))
    if plain[:2] == ["config", "why"] and "=" not in current:
        found = list(_settings(words, rest, current, experiments=True))
        return _matching(current, found if _names_key(rest, words) else _asked_keys(found))
    if "[MODEL]" in takes and not rest and "=" not in current:
        search = folders.search_path(_value_of("--config-dir", words))
        return _matching(current, [*folders.options("experiment", search), *folders.options("model", search)])
    if "KEY=VALUE" in takes:
        return _matching(current, _settings(words, rest, current, experiments="RUN" not in takes))
    return []


def _of_a_sweep(words: Sequence[str], rest: list[str], current: str, subcommands: Sequence[str]) -> Iterator[str]:
    """`dlcli sweep` takes an experiment and settings at once, or a subcommand and the name of a sweep."""
    if rest[:1] and rest[0] in subcommands:
        yield from ["latest", *_sweeps(words)] if len(rest) == 1 else []
        return
    if current.startswith(f"{folders.SWEEP}="):
        yield from (f"{folders.SWEEP}={name}" for name in folders.options(folders.SWEEP, folders.search_path()))
        return
    yield from [] if rest else (name for name in subcommands if name != "start")
    yield from _settings(words, rest, current, experiments=True)
    yield f"{folders.SWEEP}="


def _matching(current: str, candidates: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(word for word in candidates if word.startswith(current)))


# ------------------------------------------------------------------------------------------------- commands and flags


class Entry(NamedTuple):
    """A command of the table: its arguments, and each option with its value, or None for a switch."""

    takes: str = ""
    options: Mapping[str, str | None] = {}


def read_table() -> dict[str, Entry]:
    """Each command by its words (`eval`, `runs ls`); "" is `dlcli` itself. In the order of the Typer app."""
    table: dict[str, Entry] = {}
    options: dict[str, str | None] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            name, tab, value = line.strip().partition("\t")
            options[name] = value if tab else None
        else:
            words, _, takes = line.partition("\t")
            options = {}
            table[words] = Entry(takes, options)
    return table


def _below(command: str, table: Mapping[str, Entry]) -> list[str]:
    """The commands there are, sorted; of one of them its subcommands, in their order."""
    if not command:
        return sorted(path for path in table if path and " " not in path)
    return [path.removeprefix(f"{command} ") for path in table if path.startswith(f"{command} ")]


def _path(plain: Sequence[str], subcommands: Sequence[str]) -> str:
    """The words of the command on the line; `dlcli sweep digits` is `sweep start`."""
    if plain[1:2] and plain[1] in subcommands:
        return f"{plain[0]} {plain[1]}"
    return "sweep start" if plain[0] == "sweep" else plain[0]


def _flags(entry: Entry) -> list[str]:
    return ["--help", *(name for name in entry.options if name.startswith("--"))]


def _option_values(option: str, entry: Entry, words: Sequence[str], current: str) -> Iterable[str]:
    """What may follow an option; nothing where the shell knows better (folders), or nobody does."""
    value = entry.options.get(option) or ""
    if "RUN" in value:
        return _runs(words, current, checkpoints="CHECKPOINT" in value)
    if option == "--sweep":
        return _sweeps(words)
    return value.split("|") if "|" in value else ()


# --------------------------------------------------------------------------------------------------------------- runs


def _runs(words: Sequence[str], current: str, *, checkpoints: bool) -> list[str]:
    from dlcli.runs import find

    outputs = find.outputs_folder(_value_of("--outputs", words))
    name, slash, _ = current.rpartition("/")
    if slash and (seeds := sorted(path.name for path in find.find_run(name, outputs).path.glob("seed-*"))):
        return [f"{name}/{seed}" for seed in seeds]
    if checkpoints and slash:
        steps = find.checkpoint_steps(find.find_run(name, outputs))
        return [f"{name}/{which}" for which in ("best", "last", *(path.name for path in steps))]
    every = find.all_runs(outputs)
    found = list(islice(filter(find.checkpoint_steps, every) if checkpoints else every, MOST_RUNS))
    if current[:1].isdigit():
        return [run.folder_name for run in found]
    return [*(["latest"] if found else []), *(run.name for run in found)]


def _removed(words: Sequence[str]) -> list[str]:
    """The runs in the bin, for `runs restore`."""
    from dlcli.runs import facts, find

    found = facts.binned_runs(find.outputs_folder(_value_of("--outputs", words)))[:MOST_RUNS]
    return [*(["latest"] if found else []), *(run.name for run in found), *(run.folder_name for run in found)]


def _sweeps(words: Sequence[str]) -> list[str]:
    from dlcli.runs import facts, find
    from dlcli.runs import folder as runs

    outputs = find.outputs_folder(_value_of("--outputs", words))
    return [folder.name for folder in facts.folders(outputs / runs.SWEEPS)]


def _value_of(option: str, words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option and following:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


# ----------------------------------------------------------------------------------------------------------- overrides


def _settings(words: Sequence[str], rest: list[str], current: str, *, experiments: bool) -> Iterator[str]:
    search = folders.search_path(_value_of("--config-dir", words))
    sign = "~" if current.startswith("~") else current[: len(current) - len(current.lstrip("+"))]
    body = current[len(sign) :]
    group, equals, _ = body.partition("=")
    if equals:
        yield from (f"{sign}{group}={value}" for value in _values(group, search, rest))
        return
    if experiments and not sign and not any("=" not in word for word in rest):
        yield from folders.options("experiment", search)
    if "." in body:
        yield from (f"{sign}{key}=" for key in _keys(body.partition(".")[0], search, rest))
        return
    groups = [group for group in folders.groups(search) if group != "experiment"]
    yield from (f"{sign}{group}=" for group in groups)
    for key in _root_keys(search, rest):
        head, dot, _ = key.partition(".")
        if head not in groups:
            yield f"{sign}{head}." if dot else f"{sign}{key}="


def _values(key: str, search: Sequence[Path], rest: list[str]) -> list[str]:
    """The options of a group; of a key the values in its comment (`# auto | fp32 | bf16`), or true and false."""
    if options := folders.options(key, search):
        return list(options)
    group = key.partition(".")[0]
    places = [(path, group) for path in _files(group, search, rest)] + [(p, "") for p in _root_files(search, rest)]
    found = [line for path, prefix in places for line in _scan(path, prefix) if line[0] == key]
    listed = (_CHOICES.match(comment) for _, _, comment in found)
    if choices := next((re.split(r"\s*\|\s*", match[0]) for match in listed if match), None):
        return choices
    return ["true", "false"] if {value for _, value, _ in found} & {"true", "false"} else []


def _names_key(rest: list[str], words: Sequence[str]) -> bool:
    """Whether the key that `config why` asks for is on the line already."""
    experiments = folders.options("experiment", folders.search_path(_value_of("--config-dir", words)))
    return any("=" not in word and word not in experiments and not word.endswith((".yaml", ".yml")) for word in rest)


def _asked_keys(settings: Iterable[str]) -> Iterator[str]:
    """The keys as `config why` takes them: `trainer.epochs`; `model` itself, and `model.` for what is in it."""
    for word in settings:
        yield word.removesuffix("=")
        if word.removesuffix("=") in folders.GROUPS:
            yield f"{word[:-1]}."


def _keys(group: str, search: Sequence[Path], rest: list[str]) -> list[str]:
    """Dotted keys of a group, of the option that the line and the experiment choose, else of all its options."""
    keys = {key for path in _files(group, search, rest) for key, _ in scan(path, group)}
    return sorted(keys | {key for key in _root_keys(search, rest) if key.startswith(f"{group}.")})


def _files(group: str, search: Sequence[Path], rest: list[str]) -> list[Path]:
    options = folders.options(group, search)
    chosen = _chosen(group, search, rest)
    return [options[chosen]] if chosen in options else list(options.values())


def _chosen(group: str, search: Sequence[Path], rest: list[str]) -> str | None:
    for word in reversed(rest):
        if word.startswith(f"{group}="):
            return word.partition("=")[2]
    default = re.compile(rf"^\s*-\s*(?:override\s+)?/?{re.escape(group)}(?:@[\w.]+)?\s*:\s*([\w./-]+)", re.MULTILINE)
    for path in _root_files(search, rest):
        if found := default.search(path.read_text(encoding="utf-8", errors="replace")):
            return found[1]
    return None


def _root_files(search: Sequence[Path], rest: list[str]) -> list[Path]:
    """The experiment on the line, if there is one, then train.yaml."""
    experiments = folders.options("experiment", search)
    chosen = [experiments[word] for word in rest if word in experiments][:1]
    return chosen + [conf / "train.yaml" for conf in search if (conf / "train.yaml").is_file()][:1]


def _root_keys(search: Sequence[Path], rest: list[str]) -> list[str]:
    keys = (key for path in _root_files(search, rest) for key, _ in scan(path, ""))
    return [key for key in dict.fromkeys(keys) if key.partition(".")[0] not in ("defaults", "hydra")]


_LINE = re.compile(r"^( *)([A-Za-z_][\w-]*)\s*:(?:\s+([^#]*))?(?:#\s*(.*))?$")
_CHOICES = re.compile(r"[\w.:-]+(?:\s*\|\s*[\w.:-]+)+")


def scan(path: Path, prefix: str) -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every plain `key: value` line of a YAML file, by its indentation alone."""
    for key, value, _ in _scan(path, prefix):
        yield key, value


def _scan(path: Path, prefix: str) -> Iterator[tuple[str, str, str]]:
    """The same with the comment after the value."""
    open_keys: list[tuple[int, str]] = [(-1, prefix)] if prefix else []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not (match := _LINE.match(line)):
            continue
        depth, key, value = len(match[1]), match[2], (match[3] or "").strip()
        while open_keys and open_keys[-1][0] >= depth:
            open_keys.pop()
        dotted = ".".join([*(name for _, name in open_keys), key])
        if value and not key.startswith("_"):
            yield dotted, value, match[4] or ""
        elif not value:
            open_keys.append((depth, key))


# -------------------------------------------------------------------------------------------------------- the scripts

# `=` is in bash's COMP_WORDBREAKS, so that bash sees `model=re` as three words: the line is split here instead, and
# the part before the last `=` is cut from the candidates again. Typer's own script does not work there.
BASH = r"""
_dlcli() { local line="${COMP_LINE:0:COMP_POINT}" IFS=$' \t\n' cur out; local -a words
  read -ra words <<<"$line"; [[ $line == *[[:space:]] ]] && words+=("")
  cur="${words[${#words[@]}-1]}"
  out=$(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]}-1)) _DLCLI_COMPLETE=complete_bash "$1" 2>/dev/null)
  IFS=$'\n'; COMPREPLY=($out)
  if [[ $cur == *=* && $COMP_WORDBREAKS == *=* ]]; then
    local pre="${cur%"${cur##*=}"}"; COMPREPLY=("${COMPREPLY[@]#"$pre"}"); fi
  [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace; return 0; }
complete -o default -F _dlcli dlcli
"""
ZSH = r"""
#compdef dlcli
_dlcli() {
  local -a found open
  found=("${(@f)$(COMP_WORDS="${words[1,CURRENT]}" COMP_CWORD=$((CURRENT-1)) _DLCLI_COMPLETE=complete_zsh $words[1] \
    2>/dev/null)}")
  open=(${(M)found:#*[=./]})
  found=(${found:#*[=./]})
  (( $#open )) && compadd -S '' -a open
  (( $#found )) && compadd -a found
  (( $#open + $#found )) || _files
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _dlcli dlcli
"""
FISH = r"""
function _dlcli_complete
  set -l words (commandline -opc) (commandline -ct)
  set -lx COMP_WORDS (string join ' ' -- $words)
  set -lx COMP_CWORD (math (count $words) - 1)
  set -lx _DLCLI_COMPLETE complete_fish
  command $words[1] 2>/dev/null
end
complete -c dlcli -f -a '(_dlcli_complete)'
"""
INSTALL = {
    "bash": "echo 'eval \"$(dlcli completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(dlcli completion zsh)\"' >> ~/.zshrc",
    "fish": "dlcli completion fish > ~/.config/fish/completions/dlcli.fish",
}
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def script(shell: str) -> str:
    """The script that makes <TAB> work in a shell; the first line says how to keep it."""
    body = SCRIPTS[shell].lstrip("\n")
    first = "#compdef dlcli\n" if body.startswith("#compdef") else ""
    return f"{first}# to keep it: {INSTALL[shell]}\n{body.removeprefix(first)}"
