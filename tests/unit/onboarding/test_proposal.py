"""What is written can be read back, whatever columns and folders are called."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.features import Feature, FeatureContract
from inference.onboarding.key_columns import Guess
from inference.onboarding.proposal import (
    Ages,
    Proposal,
    ages_for,
    render_contract,
    render_model,
    render_settings,
    spelled,
)
from inference.schema import DType
from inference.settings import load_settings

#: whatever Unicode a name may hold, control characters and quotes more often than chance would bring them
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("\x00\n\r\t\x7f\x85\"\\'#é😀")), min_size=1)


def proposal(text: str, *, event: str | None = None) -> Proposal:
    return Proposal(
        model="delay",
        path=text,
        features=text,
        entity_column=Guess(text, text),
        event_time_column=Guess(event, text),
        matched=text,
        schedule="0 3 * * *",
        ages=Ages(ttl_h=27, keep_h=168),
    )


@given(TEXT, st.one_of(st.none(), TEXT))
def test_settings_read_back_as_they_were_decided(text: str, event: str | None) -> None:
    model = tomllib.loads(render_settings(proposal(text, event=event)))["models"]["delay"]
    assert (model["path"], model["features"], model["entity_column"]) == (text, text, text)
    assert model.get("event_time_column") == event


@given(st.lists(TEXT, min_size=1, unique=True))
def test_a_contract_reads_back_as_it_was_matched(names: list[str]) -> None:
    contract = FeatureContract(tuple(Feature(name, DType.FLOAT32) for name in names))
    assert FeatureContract.from_json(json.loads(render_contract(contract))) == contract


def test_settings_load_and_hold_what_the_comments_promise(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text(render_settings(proposal("models/delay", event="updated_at")))
    name, model = load_settings(tmp_path / "forecache.toml").model()
    assert (name, model.entity_column, model.event_time_column) == ("delay", "models/delay", "updated_at")
    assert (model.batch.schedule, model.batch.ttl, model.batch.keep) == ("0 3 * * *", 27 * 3600, 168 * 3600)


def test_what_is_commented_out_would_load_as_well(tmp_path: Path) -> None:
    lines = render_settings(proposal("m")).splitlines()
    offered = [line.removeprefix("#") if line.startswith(("#[", "#")) and line[1:2].strip() else line for line in lines]
    (tmp_path / "forecache.toml").write_text("\n".join(offered))
    settings = load_settings(tmp_path / "forecache.toml")
    assert (settings.api.port, settings.dashboard.port) == (8000, 5555)
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.model()[1].event_time_column == "updated_at"


def test_every_line_fits_a_screen() -> None:
    long = proposal(", ".join(f"column_{number}" for number in range(60)))
    values = ("path =", "features =", "entity_column =")
    assert max(len(line) for line in render_model(long).splitlines() if not line.startswith(values)) <= 120


@pytest.mark.parametrize(
    ("schedule", "ttl_h", "keep_h"),
    [("30s", 24, 168), ("0 3 * * *", 27, 168), ("0 3 * * 1-5", 80, 240), ("7d", 185, 555), ("*/5 * * * *", 24, 168)],
)
def test_predictions_outlive_the_longest_pause_between_runs(schedule: str, ttl_h: int, keep_h: int) -> None:
    ages = ages_for(schedule, 1_795_000_000)
    assert (ages.ttl_h, ages.keep_h) == (ttl_h, keep_h)


@pytest.mark.parametrize(
    ("path", "text"),
    [("/a/b/m", "m"), ("/a/b/c/d", "c/d"), ("/a/x", "/a/x"), ("/a/b/~m", "/a/b/~m"), ("/a/bc", "/a/bc")],
)
def test_paths_inside_the_folder_are_relative(path: str, text: str) -> None:
    assert spelled(Path(path), Path("/a/b")) == text
