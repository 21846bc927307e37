"""Asks an MLflow registry for versions, and downloads them. Imports MLflow late: that takes a second and 70 MB.

MLflow's own variables hold its credentials and those of its artifact stores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inference.errors import ForecacheError, ModelError, ModelUnavailable, SettingsError
from inference.models.mlflow_flavors import make_version
from inference.redaction import remember_secret
from inference.settings.registered import RegisteredModel
from inference.storage import reason_of

#: names the registered version in its folder
ORIGIN_FILE = ".mlflow.json"
#: for an answer, and the first time for the import of MLflow too
_PATIENCE_S = 20.0
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AWS_SIGV4_SECRET", "DATABRICKS_TOKEN")
_ALWAYS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
#: MLflow itself waits for two minutes, asks eight times, and logs each of them
_ASKING = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
_DOWNLOADING = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
#: what the operator has set counts more
_GIVEN = {name: os.environ[name] for name in {**_ALWAYS, **_ASKING} if name in os.environ}
_LOGIN_FIX = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the workers' environment"
)
_LAST_BYTES = 4096


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model. `created_at`: epoch milliseconds; None if the registry was not asked.

    A model that is deleted and registered again has versions of the same numbers.
    """

    name: str
    version: int
    created_at: int | None = None


def is_installed() -> bool:
    """Whether this environment has MLflow's client."""
    return find_spec("mlflow") is not None


class MlflowRegistry:
    """The registry of one MLflow server. `uri`: the server's address; may hold a password."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        #: the questions without an answer yet
        self._asked: dict[RegisteredModel, Future[RegisteredVersion]] = {}

    def find(self, of: RegisteredModel) -> RegisteredVersion:
        """Return the version that a path names: that of its alias, the fixed one, or the newest one that is ready.

        Raises:
            ModelError: the registry has no such model, alias or version, or refuses the credentials.
            ModelUnavailable: it does not answer in time.
            SettingsError: MLflow's client is not installed.
        """
        # its own timeout does not end an answer that comes byte by byte
        answer = self._asked.get(of) or Future()
        if of not in self._asked:
            self._asked[of] = answer
            threading.Thread(target=self._ask, args=(of, answer), name="mlflow", daemon=True).start()
        try:
            return answer.result(_PATIENCE_S)
        except TimeoutError:
            raise ModelUnavailable(
                f"the MLflow registry at {self.uri} has not answered for {of} within {_PATIENCE_S:g} s"
            ) from None

    def _ask(self, of: RegisteredModel, answer: Future[RegisteredVersion]) -> None:
        try:
            found = self._find(of)
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self._asked.pop(of, None)
            answer.set_exception(error)
        else:
            self._asked.pop(of, None)
            answer.set_result(found)

    def _find(self, of: RegisteredModel) -> RegisteredVersion:
        with _explained(str(of), self.uri):
            client = _client(self.uri)
            if of.alias is not None:
                found = client.get_model_version_by_alias(of.name, of.alias)
            elif of.version is not None:
                found = client.get_model_version(of.name, str(of.version))
            else:
                found = _newest(client, of)
            return RegisteredVersion(of.name, int(found.version), int(found.creation_timestamp))

    def download(self, wanted: RegisteredVersion, folder: Path, *, timeout_s: float) -> None:
        """Download a version into a new version folder, in a process of its own, which ends after `timeout_s`.

        Raises:
            ModelError: the registry has no such version, or it is none that can be served.
            ModelUnavailable: the registry or the store of its artifacts did not answer, or not in time.
            SettingsError: MLflow's client is not installed.
        """
        if not is_installed():
            raise _not_installed()
        _remember_secrets(self.uri)
        what = str(RegisteredModel(wanted.name, version=wanted.version))
        raw = folder.with_name(f"{folder.name}.raw")
        with _explained(what, self.uri):
            told = self._download_apart(wanted, raw, timeout_s)
        if told["status"] != "READY":
            said = told["said"] or "its registration has not ended"
            raise ModelUnavailable(f"{what} is not ready in the registry ({told['status']}): {said}")
        make_version(raw, folder, what)
        origin = RegisteredVersion(wanted.name, wanted.version, int(told["created_at"]))
        (folder / ORIGIN_FILE).write_text(json.dumps(asdict(origin)))

    def _download_apart(self, wanted: RegisteredVersion, folder: Path, timeout_s: float) -> dict[str, Any]:
        """Return the last line of `workers.download`.

        Raises:
            _RaisedApart, ModuleNotFoundError: MLflow raised it in that process.
            ModelUnavailable: the process did not end in time.
        """
        # -P: Python must not import a user's workers.py of the working directory
        command = [sys.executable, "-P", "-m", "workers.download", wanted.name, str(wanted.version), str(folder)]
        servers = {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_REGISTRY_URI": _registry(self.uri)}
        environment = {**os.environ, **_ALWAYS, **_DOWNLOADING, **_GIVEN, **servers, "CUDA_VISIBLE_DEVICES": "-1"}
        try:
            done = subprocess.run(  # noqa: S603 - our own module; the arguments are the operator's
                command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise ModelUnavailable(
                f"version {wanted.version} of {wanted.name} was not downloaded from MLflow within {timeout_s:g} s: "
                "raise load_timeout under [workers] if it needs that long"
            ) from None
        if done.returncode:
            said = done.stderr[-_LAST_BYTES:].decode(errors="replace").strip().splitlines()
            raise ModelError(said[-1] if said else f"the download ended with {done.returncode}")
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if "missing" in told:
            raise ModuleNotFoundError(told["missing"], name=told["missing"])
        if "raised" in told:
            raise _RaisedApart(told["raised"], told["code"], told["http_status"])
        return told


class _RaisedApart(Exception):
    """Raised when MLflow has raised in another process; has what `_translated` reads of its errors."""

    def __init__(self, text: str, error_code: str, http_status: int) -> None:
        super().__init__(text)
        self.error_code = error_code
        self._http_status = http_status

    def get_http_status_code(self) -> int:
        return self._http_status


def read_origin(folder: Path) -> RegisteredVersion | None:
    """Return the registered version in a folder; None if the folder is not a complete download."""
    try:
        return RegisteredVersion(**json.loads((folder / ORIGIN_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _newest(client: Any, of: RegisteredModel) -> Any:
    quote = '"' if "'" in of.name else "'"
    by_number = ["version_number DESC"]
    found = client.search_model_versions(f"name={quote}{of.name}{quote}", max_results=100, order_by=by_number)
    ready = [one for one in found if one.status == "READY"]
    if not ready:
        client.get_registered_model(of.name)  # raises if there is none
        raise ModelError(f"{of} has no version that is ready in the registry: register one", field="path")
    return max(ready, key=lambda one: int(one.version))


@cache
def _client(uri: str) -> Any:
    if not is_installed():
        raise _not_installed()
    for name, value in {**_ALWAYS, **_ASKING}.items():
        os.environ.setdefault(name, value)
    _remember_secrets(uri)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=_registry(uri))


def _remember_secrets(uri: str) -> None:
    for name in _SECRETS:
        remember_secret(os.environ.get(name, ""))
    remember_secret(uri)


def _registry(uri: str) -> str:
    return os.environ.get("MLFLOW_REGISTRY_URI") or uri


def _not_installed() -> SettingsError:
    return SettingsError(
        "a path models:/… needs mlflow: pip install 'forecache[mlflow]' where workers run", field="path"
    )


@contextmanager
def _explained(what: str, uri: str) -> Iterator[None]:
    """Translate what MLflow raises, in one line without credentials."""
    try:
        yield
    except ForecacheError:
        raise
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{what}: the store of its artifacts, or of the registry, needs {error.name}: pip install it where workers "
            "run",
            field="path",
        ) from error
    except Exception as error:  # stores of artifacts raise the errors of their own libraries
        raise _translated(error, what, uri) from error


def _translated(error: Exception, what: str, uri: str) -> ForecacheError:
    status = getattr(error, "get_http_status_code", lambda: 0)()
    code = str(getattr(error, "error_code", ""))
    reason = reason_of(error)
    answered = re.search(r"failed with error code (\d+)", reason)
    status = int(answered[1]) if answered else status
    if status in (401, 403) or code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ModelError(f"the MLflow registry at {uri} refuses {what} ({status}): {_LOGIN_FIX}", field="path")
    is_absent = code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND") or "not found" in reason
    if is_absent and not answered:
        return ModelError(
            f"{what}: the MLflow registry at {uri} says: {reason.removeprefix(code + ': ')}", field="path"
        )
    if "failed with exception" in str(error):  # the innermost of the errors that it quotes says why
        innermost = re.split(r"failed with exception |Caused by \w+\(|: ", str(error))[-1]
        reason = re.sub(r"""["']\)+$""", "", innermost).strip("\"'")
    return ModelUnavailable(f"the MLflow registry at {uri} does not answer for {what}: {reason}")
