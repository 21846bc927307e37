"""The `forecache` command within the test's own process: starting another costs a second."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from app.cli import main


def forecache_here(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder. Only for commands that open no deployment: `run_cli` runs those.

    They configure logging, which would stay so for all later tests.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORECACHE_")}
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", ["forecache", *arguments]),
        mock.patch.dict(os.environ, kept, clear=True),
        mock.patch("inference.logs.configure_logging", side_effect=AssertionError("run this command by run_cli")),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())
