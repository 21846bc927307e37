"""doctor: folders, versions and contracts of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.cli.doctor import models
from app.cli.doctor.findings import Status
from app.cli.doctor.models import StoredModel, check_model
from inference.features import FeatureContract
from inference.models import VersionRecord
from inference.schema import DType, Signature, TensorSpec
from inference.settings import ModelSettings
from inference.store import Pointer

CONTRACT = {"features": [{"name": "distance", "dtype": "float32"}, {"name": "time", "dtype": "float32"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with versions 1 and 2 that fit the records below."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "saved_model.pb").touch()
    (tmp_path / "features.json").write_text(json.dumps(CONTRACT))
    return tmp_path


def ready(version: int) -> VersionRecord:
    signature = Signature((TensorSpec("x", DType.FLOAT32, (2,)),), (TensorSpec("y", DType.FLOAT32),))
    return VersionRecord(
        version=version, state="ready", signature=signature, contract=FeatureContract.from_json(CONTRACT),
        fingerprint="f", inspected_at=0.0,
    )  # fmt: skip


def known(*records: VersionRecord, active: int | None = None, held: frozenset[int] = frozenset()) -> StoredModel:
    return StoredModel({record.version: record for record in records}, Pointer(None, None, active, held))


def wrong(folder: Path, what: StoredModel | None, **model: Any) -> dict[str, tuple[Status, str]]:
    settings = ModelSettings.model_validate({"path": str(folder), **model})
    found = check_model("delay", settings, folder, what)
    return {one.subject: (one.status, one.detail) for one in found if one.status is not Status.OK}


def test_a_model_that_is_loaded_and_answers_has_nothing_wrong(folder: Path) -> None:
    assert wrong(folder, known(ready(1), ready(2), active=2)) == {}


def test_a_missing_folder_is_one_error(tmp_path: Path) -> None:
    (only,) = wrong(tmp_path / "gone", None).values()
    assert only[0] is Status.ERROR
    assert "does not exist" in only[1]


def test_a_version_without_a_saved_model_is_worse_when_there_is_no_other(folder: Path) -> None:
    (folder / "2" / "saved_model.pb").unlink()
    assert wrong(folder, known(ready(1), active=1), versions="latest")["delay"][0] is Status.WARNING
    assert wrong(folder, known(ready(1), active=1), versions=[2])["delay"][0] is Status.ERROR


def test_models_beside_the_versions_whose_names_are_no_number_are_named_in_one_line(folder: Path) -> None:
    for name in ("v0.1", "1.0", "0", "backup", ".3.copying", "notes2"):
        (folder / name).mkdir()
        if name != "notes2":
            (folder / name / "saved_model.pb").touch()
    (folder / "v4" / "1").mkdir(parents=True)
    found = check_model("delay", ModelSettings(path=folder), folder, known(ready(1), ready(2), active=2))
    (only,) = (one for one in found if one.status is not Status.OK)
    assert (only.subject, only.status) == ("delay", Status.WARNING)
    assert only.detail.startswith("0, 1.0, v0.1, v4: a model, but no version")
    assert "the next free number is 3" in only.detail


def test_a_format_whose_library_is_not_here_is_told_with_its_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    found = check_model("delay", ModelSettings(path=folder), folder, None)[0]
    assert found.status is Status.OK
    assert "TensorFlow SavedModel (not to be loaded here: workers need forecache[tensorflow])" in found.detail


def test_a_refused_version_is_told_with_its_reason(folder: Path) -> None:
    refused = VersionRecord.refused(2, "it fails on its warm-up row", inspected_at=0.0)
    assert wrong(folder, known(ready(1), refused, active=1)) == {
        "delay, version 2": (Status.WARNING, "refused: it fails on its warm-up row")
    }


def test_a_model_that_no_worker_has_loaded_does_not_answer(folder: Path) -> None:
    found = wrong(folder, known())
    assert found["delay, what answers"][0] is Status.ERROR
    assert found["delay, contract"][1] == "not checked: no worker has loaded the model"


def test_a_new_version_that_no_worker_has_tried_is_told_of_unless_it_is_held(folder: Path) -> None:
    assert "no worker has tried it" in wrong(folder, known(ready(1), active=1))["delay, what answers"][1]
    assert wrong(folder, known(ready(1), active=1, held=frozenset({2}))) == {}


def test_the_version_that_answers_must_be_in_the_folder(folder: Path) -> None:
    assert wrong(folder, known(ready(3), active=3)) == {
        "delay, what answers": (Status.ERROR, "version 3 answers, but it is no longer in the folder"),
        "delay, contract": (Status.WARNING, "not checked: version 3 is not in the folder"),
    }


def test_a_contract_that_was_changed_since_it_was_loaded_is_an_error(folder: Path) -> None:
    swapped = {"features": CONTRACT["features"][::-1]}
    (folder / "features.json").write_text(json.dumps(swapped))
    status, detail = wrong(folder, known(ready(2), active=2))["delay, contract"]
    assert status is Status.ERROR
    assert "is not what version 2 was loaded with" in detail
    (folder / "features.json").write_text("{")
    assert "is not valid JSON" in wrong(folder, known(ready(2), active=2))["delay, contract"][1]


def test_without_redis_only_the_folder_is_looked_at(folder: Path) -> None:
    assert {detail for _, detail in wrong(folder, None).values()} == {"not checked: no Redis"}
