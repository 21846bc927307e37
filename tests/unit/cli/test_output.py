"""How the command prints."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from app.cli import batch
from app.cli.advise import with_unit
from app.cli.output import cell_text, print_fields, print_json, print_rows, shortened
from inference.outcomes import Outcome


def test_rows_in_a_pipe_are_tab_separated_with_a_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(("id", "value"), [("a b", 1.25), ("c", None)])
    assert capsys.readouterr().out == "id\tvalue\na b\t1.25\nc\t-\n"


def test_no_head_is_cut_off_on_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    heads = ["model", "total", "hit_rate", *(outcome.value for outcome in Outcome)]
    print_rows(heads, [["delay", *[0] * (len(heads) - 1)]])
    out = capsys.readouterr().out
    assert "…" not in out
    assert set("_".join(heads).split("_")) <= set(out.replace("_", " ").split())


def test_rows_whose_heads_fit_are_a_table_and_others_a_line_for_each_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "9")
    print_rows(("four", "five5"), [(1, 2)])
    assert capsys.readouterr().out == "four   1\nfive5  2\n\n"
    monkeypatch.setenv("COLUMNS", "20")
    print_rows(("four", "five5"), [(1, 2)])
    assert capsys.readouterr().out.split("\n")[1].split() == ["four", "five5"]


def test_a_table_has_escape_sequences_on_a_terminal_only_and_none_with_no_color(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_rows(("id",), [("a",)])
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_rows(("id",), [("a",)])
    assert "\x1b" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_rows(("id",), [("a",)])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_a_list_of_runs_has_the_beginning_of_an_error_on_a_terminal_and_all_of_it_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, on_a_terminal: bool
) -> None:
    told = ["run_id", "model", "state", "generation", "kind", "trigger", "created_at", "rows_done", "rows_total",
            "rows_outside", "entities_rule", "forced_by"]  # fmt: skip
    view = {**dict.fromkeys(told), "error": "x" * 500}
    run = SimpleNamespace(model="m", generation=None, to_json=lambda: view)
    table = SimpleNamespace(pointer=lambda: SimpleNamespace(current=None, previous=None))
    deployment = SimpleNamespace(runs=SimpleNamespace(list=lambda model: [run]), predictions=lambda model: table)
    monkeypatch.setattr(batch, "open_deployment", lambda: nullcontext(deployment))
    monkeypatch.setattr("sys.stdout.isatty", lambda: on_a_terminal)
    batch.list_runs(None, as_json=False)
    out = capsys.readouterr().out
    assert (out.count("x"), "…" in out) == ((59, True) if on_a_terminal else (500, False))


@pytest.mark.parametrize(("text", "shown"), [(None, None), ("four", "four"), ("a five", "a…"), ("", "")])
def test_a_shortened_text_ends_with_an_ellipsis_only_when_something_was_cut_off(
    text: str | None, shown: str | None
) -> None:
    assert shortened(text, 4 if text != "a five" else 3) == shown


def test_fields_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"id": "a", "prediction": [1, 2]})
    assert capsys.readouterr().out == "id          a\nprediction  [1, 2]\n"


def test_json_keeps_emoji_and_numbers_whole(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"entity_id": "é🚀", "prediction": 0.1234567890123}
    print_json(data)
    out = capsys.readouterr().out
    assert json.loads(out) == data
    assert "🚀" in out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (0.123456789, "0.123457"),
        (1795471020.25, "1795471020.25"),
        ("x", "x"),
        ({"a": 1}, '{"a": 1}'),
        (3, "3"),
    ],
)
def test_cells_read_well(value: object, text: str) -> None:
    assert cell_text(value) == text


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("hit_rate", 0.8, "80.0%"),
        ("cost_per_day", 120.0013, "120 USD"),
        ("break_even", 0.0, "0 requests per entity and day"),
        ("ttl", "27h", "27h"),
        ("batch_workers", 1, 1),
        ("never_read", None, None),
    ],
)
def test_the_numbers_of_advice_have_units(name: str, value: Any, shown: Any) -> None:
    assert with_unit(name, value, "USD") == shown
