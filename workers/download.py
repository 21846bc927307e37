"""Downloads a version from an MLflow registry: `python -P -m workers.download NAME VERSION FOLDER`.

Runs as a process of its own, so that its caller can end it. `MLFLOW_TRACKING_URI` names the server. A version that
cannot be had: one line on stderr, and exit 1, or 3 if a later attempt may succeed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from inference.errors import ForecacheError
from inference.models.mlflow_client import download, exit_status


def main(argv: Sequence[str]) -> int:
    """Download one version; returns the exit status."""
    name, version, folder = argv
    os.nice(10)  # requests go first
    try:
        download(name, int(version), Path(folder), os.environ["MLFLOW_TRACKING_URI"])
    except ForecacheError as error:
        print(" ".join(error.message.split()), file=sys.stderr)  # noqa: T201 - its caller reads the line
        return exit_status(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
