"""Help, examples and completion of every command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from app.cli import EXAMPLES, app
from inference.settings.processes import Scope
from tests.support.stack import run_cli

ROOT: Any = typer.main.get_command(app)


def all_commands(group: Any = ROOT, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, (*above, name))
        else:
            yield (*above, name)


COMMANDS = list(all_commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_ends_in_examples_and_is_plain_in_a_pipe(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0
    assert "\x1b" not in shown.output
    _, _, examples = shown.output.partition("Examples:")
    told = [line.strip() for line in examples.strip().splitlines()]
    assert 1 <= len(told) <= 3
    assert told == list(EXAMPLES[" ".join(words)])


@pytest.mark.parametrize("example", [(words, line) for words, lines in EXAMPLES.items() for line in lines], ids=str)
def test_every_example_is_a_command_that_can_be_typed(example: tuple[str, str]) -> None:
    words, line = example
    typed = shlex.split(line.partition(" | ")[0])
    typed = typed[typed.index("forecache") + 1 :]
    assert typed[: len(words.split())] == words.split()
    command = ROOT
    for word in words.split():
        command = command.commands[word]
    # raises for an option that does not exist, or an argument that is missing
    command.make_context(words, typed[len(words.split()) :])


def test_no_example_is_left_of_a_command_that_is_gone() -> None:
    assert set(EXAMPLES) == {" ".join(words) for words in COMMANDS}


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["doctr"], "Did you mean 'doctor'?"),
        (["batch", "rollbak"], "Did you mean 'rollback'?"),
        (["predict", "a", "--modle", "m"], "Possible options: --model"),
        (["hits", "--window"], "requires an argument"),
    ],
)
def test_a_slip_is_wrong_usage_and_names_the_nearest(typed: list[str], told: str) -> None:
    done = CliRunner().invoke(app, typed)
    assert done.exit_code == 2
    assert told in done.output


def test_commands_whose_output_is_data_print_json_too() -> None:
    without = {"init", "up", "demo", "api", "dashboard", "listen"}  # these do something and tell of it
    for words in COMMANDS:
        shown = CliRunner().invoke(app, [*words, "--help"]).output
        assert ("--json" in shown) or words[0] in without, words


# --- completion ---


def run(folder: Path, *typed: str, **environment: str) -> str:
    """What the command prints in a folder."""
    done = run_cli(folder, *typed, environment=environment)
    assert done.stderr == ""
    return done.stdout


def complete(folder: Path, *words: str) -> list[str]:
    line = {"COMP_WORDS": " ".join(["forecache", *words]), "COMP_CWORD": str(len(words))}
    return run(folder, _FORECACHE_COMPLETE="complete_bash", **line).split()


def test_commands_and_models_are_completed(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text('[models.delay]\npath = "m"\n[models.price]\npath = "p"\n')
    assert complete(tmp_path, "do") == ["doctor"]
    assert complete(tmp_path, "predict", "a", "--model", "d") == ["delay"]
    assert complete(tmp_path, "models", "show", "") == ["delay", "price"]


def test_where_the_settings_are_wrong_nothing_is_completed_and_nothing_said(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text("[nonsense")
    assert complete(tmp_path, "hits", "") == []


def test_the_completion_script_can_be_shown(tmp_path: Path) -> None:
    # which shell runs is found among the parent processes; here it is named instead
    script = run(tmp_path, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete -o default -F _forecache_completion forecache" in script


def test_the_help_of_keys_names_every_scope() -> None:
    shown = CliRunner().invoke(app, ["keys", "new", "--help"], env={"COLUMNS": "120"}).output
    assert [one.value for one in Scope if one.value not in shown] == []
