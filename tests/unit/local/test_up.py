"""What `forecache up` must find installed: the libraries of the models at hand, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.local import up
from inference.errors import SettingsError
from inference.settings import ModelSettings, Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A deployment of one ONNX model whose first version was a SavedModel."""
    for version, name in (("1", "saved_model.pb"), ("2", "m.onnx")):
        (tmp_path / version).mkdir()
        (tmp_path / version / name).touch()
    return Settings(models={"m": ModelSettings(path=tmp_path)})


def absent(*names: str):
    return lambda name: None if name in names else object()


@pytest.mark.parametrize("kind", ["batch", "realtime"])
def test_a_worker_needs_the_library_of_the_newest_version(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(up, "find_spec", absent("onnxruntime"))
    with pytest.raises(SettingsError, match=rf"{kind} needs onnxruntime: pip install 'forecache\[onnx\]'"):
        up._require_installed(frozenset({kind, "api"}), settings)


def test_what_loads_no_model_needs_no_library(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "find_spec", absent("onnxruntime", "tensorflow"))
    up._require_installed(frozenset({"api", "beat", "maintenance"}), settings)


def test_tensorflow_is_not_needed_for_other_formats_nor_for_a_folder_that_is_not_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "find_spec", absent("tensorflow"))
    gone = Settings(models={**settings.models, "gone": ModelSettings(path=Path("/nowhere"))})
    up._require_installed(frozenset({"batch", "realtime"}), gone)
