"""Downloads a version from an MLflow registry: `python -P -m workers.download NAME VERSION FOLDER`.

Runs as a process of its own, so that its caller can end it. Prints a line of JSON: the version's `status`, what was
`said` about it and `created_at` (epoch milliseconds); or what MLflow `raised` with its `code` and `http_status`; or the
`missing` module. `MLFLOW_TRACKING_URI` and `MLFLOW_REGISTRY_URI` name the servers.

Imports neither Forecache nor pandas, which took half of the processor time of a download.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str]) -> int:
    """Download one version; returns the exit status."""
    os.nice(10)  # requests go first
    # MLflow imports pandas only if it can, for data sets: 0.4 s of processor and 40 MB
    sys.modules["pandas"] = None  # type: ignore[assignment]
    name, version, folder = argv
    try:
        told = _download(name, version, folder)
    except ModuleNotFoundError as error:
        told = {"missing": error.name or str(error)}
    except Exception as error:  # noqa: BLE001 - stores of artifacts raise the errors of their own libraries
        status = getattr(error, "get_http_status_code", lambda: 0)()
        told = {"raised": str(error), "code": str(getattr(error, "error_code", "")), "http_status": status}
    print(f"\n{json.dumps(told)}")  # noqa: T201 - its caller reads the line
    return 0


def _download(name: str, version: str, folder: str) -> dict[str, Any]:
    from mlflow.artifacts import download_artifacts
    from mlflow.tracking import MlflowClient

    servers = {"tracking_uri": os.environ["MLFLOW_TRACKING_URI"], "registry_uri": os.environ["MLFLOW_REGISTRY_URI"]}
    found = MlflowClient(**servers).get_model_version(name, version)
    if found.status == "READY":
        download_artifacts(f"models:/{name}/{version}", dst_path=folder, **servers)
    return {"status": found.status, "said": found.status_message, "created_at": found.creation_timestamp}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
