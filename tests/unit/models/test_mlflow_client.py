"""What MLflow raises, in a line of ours."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from inference.errors import ForecacheError, ModelError, ModelUnavailable, SettingsError
from inference.models import mlflow_client
from inference.models.mlflow_client import MlflowRegistry
from inference.settings.registered import RegisteredModel
from tests.support.waiting import wait_for

URI = "http://user:tr0ub4dor3@mlflow:5000"
CHAMPION = RegisteredModel("delay", alias="champion")


class MlflowError(Exception):
    """Stands for MlflowException: its message begins with its code if a server sent it."""

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message)
        self.error_code = code
        self._status = status

    def get_http_status_code(self) -> int:
        return self._status


class Client:
    """Stands for MLflow's client; each question raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def get_model_version_by_alias(self, name: str, alias: str) -> Any:
        raise self._error


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    def ask(error: Exception) -> ForecacheError:
        monkeypatch.setattr(mlflow_client, "_client", lambda uri: Client(error))
        with pytest.raises(ForecacheError) as raised:
            MlflowRegistry(URI).find(CHAMPION)
        assert "\n" not in raised.value.message
        assert "tr0ub4dor3" not in raised.value.message
        return raised.value

    return ask


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            MlflowError("Registered model alias champion not found.", "INVALID_PARAMETER_VALUE", 400),
            ModelError, "alias champion not found",
        ),
        (
            MlflowError("RESOURCE_DOES_NOT_EXIST: no delay", "RESOURCE_DOES_NOT_EXIST", 404),
            ModelError, "says: no delay",
        ),
        (
            MlflowError("API request to endpoint /x failed with error code 401 != 200. Response body: 'no'", "X", 500),
            ModelError, "(401): set MLFLOW_TRACKING_USERNAME",
        ),
        (MlflowError("PERMISSION_DENIED: no", "PERMISSION_DENIED", 403), ModelError, "refuses models:/delay@champion"),
        (
            MlflowError("API request to endpoint /x failed with error code 404 != 200. Response body: '<'", "X", 500),
            ModelUnavailable, "error code 404",  # no MLflow server at all
        ),
        (
            MlflowError(
                f"API request to {URI}/api failed with exception HTTPConnectionPool(host='mlflow', port=5000): Max "
                'retries exceeded (Caused by NewConnectionError("HTTPConnection(1): [Errno 111] Connection refused"))',
                "INTERNAL_ERROR", 500,
            ),
            ModelUnavailable, "for models:/delay@champion: [Errno 111] Connection refused",
        ),
        (MlflowError("one\ntwo", "INTERNAL_ERROR", 500), ModelUnavailable, "does not answer"),
        (ModuleNotFoundError("No module named 'boto3'", name="boto3"), SettingsError, "needs boto3: pip install it"),
        (OSError(28, "No space left on device"), ModelUnavailable, "No space left"),
    ],
)  # fmt: skip
def test_what_mlflow_raises_is_an_answer_or_an_outage_in_a_line(
    asked: Any, error: Exception, kind: type, words: str
) -> None:
    told = asked(error)
    assert type(told) is kind
    assert words in told.message


def test_an_answer_that_does_not_end_is_an_outage_and_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    questions = []

    class Endless:
        def get_model_version_by_alias(self, name: str, alias: str) -> Any:
            questions.append(name)
            end.wait()
            raise ModelError("too late")

    monkeypatch.setattr(mlflow_client, "_client", lambda uri: Endless())
    monkeypatch.setattr(mlflow_client, "_PATIENCE_S", 0.01)
    registry = MlflowRegistry(URI)
    try:
        for _ in range(3):
            with pytest.raises(ModelUnavailable, match="has not answered for models:/delay@champion"):
                registry.find(CHAMPION)
        wait_for(lambda: questions, "the question")
        assert questions == ["delay"]
    finally:
        end.set()


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_client, "is_installed", lambda: False)
    mlflow_client._client.cache_clear()
    with pytest.raises(SettingsError, match=r"forecache\[mlflow\]"):
        MlflowRegistry("http://127.0.0.1:1").find(CHAMPION)
