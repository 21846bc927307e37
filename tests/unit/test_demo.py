"""The demo's folder and its screen."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from app.demo import show
from app.demo.data import MODEL, NEWCOMERS, DemoFolder, click_probability, generate_users, known_entity, write_folder
from app.demo.screen import Screen
from app.local.ports import LOOPBACK, free_port, free_port_from
from inference.errors import SettingsError
from inference.settings import load_settings


@pytest.fixture
def folder(tmp_path: Path) -> DemoFolder:
    made = DemoFolder(tmp_path)
    write_folder(made, entities=1000, api_port=8001, dashboard_port=5556)
    return made


def test_the_settings_that_users_copy_load_and_every_line_of_a_model_is_explained(folder: DemoFolder) -> None:
    settings = load_settings(folder.settings)
    assert (settings.api.port, settings.dashboard.port) == (8001, 5556)
    assert settings.models[MODEL].batch.rows_per_chunk == 100
    lines = folder.settings.read_text().partition("[models.ctr]")[2].splitlines()
    assert [line for line in lines if "=" in line and "#" not in line] == []


def test_the_newcomers_are_in_the_features_and_not_in_what_runs_score(folder: DemoFolder) -> None:
    source, features = pd.read_parquet(folder.source), pd.read_parquet(folder.features)
    assert len(source) == 1000
    assert source["user_id"].iloc[-1] == known_entity(999)
    newcomers = set(features["user_id"]) - set(source["user_id"])
    assert len(newcomers) == NEWCOMERS == len(features) - len(source)


def test_the_same_users_every_time_and_chances_as_of_clicks() -> None:
    ids = [f"u{i}" for i in range(5000)]
    first, again = (generate_users(ids, np.random.default_rng(1)) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    chances = click_probability(first)
    assert chances.between(0, 1).all()
    assert 0.02 < chances.mean() < 0.2


def screen(*, is_terminal: bool) -> tuple[Screen, io.StringIO]:
    stream = io.StringIO()
    return Screen(Console(file=stream, force_terminal=is_terminal, width=100, highlight=False)), stream


def test_steps_are_numbered_plain_lines_in_a_pipe_and_waiting_leaves_none() -> None:
    shown, stream = screen(is_terminal=False)
    shown.step("the table", "1,000 users [1/2]")
    with shown.waiting("a run") as advance:
        advance(1, 2)
    shown.step("a run", "done")
    shown.more("because " + "long " * 40)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == [" 1 the table      1,000 users [1/2]", " 2 a run          done"]
    assert len(lines) == 3, "a line was wrapped"


def test_a_terminal_sees_rows_and_rate_while_it_waits() -> None:
    shown, stream = screen(is_terminal=True)
    with shown.waiting("a run") as advance:
        for done in (0, 500, 1000):
            advance(done, 1000)
    assert "a run" in stream.getvalue()
    assert "1,000/1,000 rows" in stream.getvalue()


def test_a_taken_port_gives_the_next_free_one() -> None:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, free_port()))
        taken = holder.getsockname()[1]
        assert taken < free_port_from(taken) <= taken + 100
    assert free_port_from(taken) == taken


def test_a_missing_extra_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "find_spec", lambda name: None if name == "tensorflow" else object())
    with pytest.raises(SettingsError, match=r"needs tensorflow: pip install 'forecache\[tensorflow\]'"):
        show.run_demo(entities=100, once=True, keep=False)
