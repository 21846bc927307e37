"""doctor: a model of a registry, by what the workers keep in Redis and by what the registry says here."""

from __future__ import annotations

from typing import Any

import pytest

from app.cli.doctor import registered
from app.cli.doctor.findings import Status
from app.cli.doctor.models import StoredModel
from app.cli.doctor.registered import check_registered, check_registry
from inference.errors import ModelError, ModelUnavailable
from inference.features import FeatureContract
from inference.models import VersionRecord
from inference.models.mlflow_client import MlflowRegistry, RegisteredVersion
from inference.models.registry import RegistryChoice
from inference.schema import DType, Signature, TensorSpec
from inference.settings import Settings
from inference.settings.registered import RegisteredModel
from inference.store import Labels, Pointer

CHAMPION = RegisteredModel("delay", alias="champion")
SETTINGS = Settings.model_validate({"mlflow": {"tracking_uri": "http://u:tr0ub4dor3@mlflow:5000"}})


def known(active: int | None, *, refused: int | None = None, **pointer: Any) -> StoredModel:
    y = Signature((), (TensorSpec("y", DType.FLOAT32),))
    records = {
        version: VersionRecord(
            version=version, state="ready", signature=y, contract=FeatureContract(()), fingerprint="f", inspected_at=0.0
        )
        for version in (1, 2)
    }
    if refused is not None:
        records[refused] = VersionRecord.refused(refused, "has no MLmodel", inspected_at=0.0)
    held = pointer.pop("held", frozenset())
    return StoredModel(records, Pointer(None, None, active, held, **pointer))


@pytest.mark.parametrize(
    ("choice", "stored", "status", "words"),
    [
        (2, known(2), Status.OK, "version 2 answers"),
        (None, known(2), Status.OK, "version 2 answers"),
        (None, known(None), Status.ERROR, "no worker has fetched models:/delay@champion yet"),
        (2, known(None, refused=2), Status.ERROR, "version 2 was refused: has no MLmodel"),
        (3, known(2, refused=3), Status.WARNING, "not version 3, which models:/delay@champion names: has no MLmodel"),
        (2, known(1, held=frozenset({2})), Status.WARNING, "a rollback holds that one"),
        (2, known(1, labels=Labels({"stable": 1})), Status.WARNING, "labels decide: stable is 1"),
        (2, known(1), Status.WARNING, "it waits for other workers"),
        (2, None, Status.WARNING, "no Redis"),
    ],
)
def test_what_answers_is_compared_with_what_the_registry_named(
    choice: int | None, stored: StoredModel | None, status: Status, words: str
) -> None:
    last = None if choice is None else RegistryChoice(str(CHAMPION), choice)
    (finding,) = check_registered("delay", CHAMPION, last, stored)
    assert finding.status is status
    assert words in finding.detail


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (RegisteredVersion("delay", 3), Status.OK, "models:/delay@champion is version 3"),
        (ModelError("alias champion not found"), Status.ERROR, "alias champion not found"),
        (ModelUnavailable("does not answer"), Status.WARNING, "does not answer"),
        (TimeoutError(), Status.WARNING, "the MLflow registry at http://***@mlflow:5000 gave no answer within"),
    ],
)
def test_the_registry_is_asked(monkeypatch: pytest.MonkeyPatch, answer: Any, status: Status, words: str) -> None:
    monkeypatch.setattr(registered, "is_installed", lambda: True)
    monkeypatch.setattr(registered, "at_once", lambda calls, within_s: dict.fromkeys(calls, answer))
    (finding,) = check_registry(SETTINGS, "delay", CHAMPION)
    assert (finding.status, words in finding.detail) == (status, True)


def test_without_mlflow_here_the_check_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registered, "is_installed", lambda: False)
    monkeypatch.setattr(MlflowRegistry, "find", lambda *_: pytest.fail("asked"))
    (finding,) = check_registry(SETTINGS, "delay", CHAMPION)
    assert (finding.status, "not installed" in finding.detail) == (Status.WARNING, True)
