"""Paths that name a model of a registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.errors import SettingsError
from inference.settings import Settings, load_settings
from inference.settings.registered import RegisteredModel, read_registered


@pytest.mark.parametrize(
    ("path", "registered"),
    [
        ("models:/delay@champion", RegisteredModel("delay", alias="champion")),
        ("models:/delay/3", RegisteredModel("delay", version=3)),
        ("models:/delay", RegisteredModel("delay")),
        ("models:/delay/latest", RegisteredModel("delay")),
        ("models:/flight delay @champion", RegisteredModel("flight delay ", alias="champion")),
        ("models:/main.ml.delay@champion", RegisteredModel("main.ml.delay", alias="champion")),
        ("models:/it's@home@champion", RegisteredModel("it's@home", alias="champion")),
        ("models/delay", None),
        ("/srv/models:/delay", None),
    ],
)
def test_a_path_of_settings_names_a_model_of_a_registry(path: str, registered: RegisteredModel | None) -> None:
    settings = Settings.model_validate({"models": {"m": {"path": path}}})
    assert settings.models["m"].registered == registered


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("models:/delay/Production", "stage, which MLflow has replaced by aliases"),
        ("models:/delay/v3", "no version by a number"),
        ("models:/delay/0", "no version by a number"),
        ("models:/team/delay/3", "a slash too many"),
        ("models:/delay@", "no model of a registry"),
        ("models:/@champion", "no model of a registry"),
        ("models:", "no model of a registry"),
    ],
)
def test_another_form_is_refused_with_the_right_ones(tmp_path: Path, path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_registered(path)
    (tmp_path / "forecache.toml").write_text(f'[models.m]\npath = "{path}"\n')
    with pytest.raises(SettingsError, match=words):
        load_settings(tmp_path / "forecache.toml")


def test_versions_of_a_registry_are_named_in_the_path_alone() -> None:
    with pytest.raises(ValueError, match=r"name the version in path, as in models:/delay/3"):
        Settings.model_validate({"models": {"m": {"path": "models:/delay@champion", "versions": [1, 2]}}})


def test_the_server_is_that_of_the_settings_then_of_mlflows_variable_then_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Settings().mlflow_uri == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert Settings().mlflow_uri == "http://mlflow:5000"
    given = Settings.model_validate({"mlflow": {"tracking_uri": "https://u:tr0ub4dor&3@host"}})
    assert given.mlflow_uri == "https://u:tr0ub4dor&3@host"
    assert "tr0ub4dor" not in repr(given)


def test_versions_of_a_registry_have_a_folder_for_each_model(tmp_path: Path) -> None:
    models = {"a": {"path": "models:/delay@x"}, "b": {"path": "models:/delay@y"}, "c": {"path": "models/c"}}
    settings = Settings.of_folder(tmp_path, models=models)
    folders = [settings.model_folder(name) for name in models]
    assert folders == [tmp_path / ".forecache/mlflow/a", tmp_path / ".forecache/mlflow/b", tmp_path / "models/c"]
