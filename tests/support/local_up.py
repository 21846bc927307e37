"""Runs the supervisor over stand-in programs, in a process of its own so that it can be killed.

`python local_up.py FOLDER KIND…`: keeps the programs named: `redis`, the embedded one of FOLDER, or stand-ins that
stay (`steady`), die at once (`flapping`), die and leave a child that holds their pipe (`leaving`), print without end
(`flooding`), or ignore SIGTERM for a short or a long grace (`stubborn`, `busy`).
Each stand-in writes its pid to FOLDER/NAME.pid on every start.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

from app.local import embedded_redis
from app.local.embedded_redis import private_folder
from app.local.lock import hold_lock
from app.local.programs import Program, redis_program
from app.local.up import run_programs
from inference.errors import ForecacheError

_BODY = """
import os, pathlib, sys, time
pathlib.Path({folder!r}, {name!r} + ".pid").write_text(str(os.getpid()))
print("hello from", {name!r}, "é")
{more}
"""


def stand_in(folder: Path, name: str, more: str, **options: object) -> Program:
    """A program that writes its pid, says hello and then does `more`."""
    code = _BODY.format(folder=str(folder), name=name, more=more)
    return Program(name, [sys.executable, "-c", code], **options)  # type: ignore[arg-type]


def _main(folder: Path, kinds: list[str]) -> None:
    private_folder(folder)
    programs = []
    with ExitStack() as on_exit:
        on_exit.enter_context(hold_lock(folder / "up.lock"))
        if "redis" in kinds:
            redis = embedded_redis.prepare(folder)
            on_exit.callback(redis.withdraw)
            programs.append(redis_program(redis))
        if "steady" in kinds:
            programs.append(stand_in(folder, "steady", "time.sleep(600)"))
        if "flapping" in kinds:
            programs.append(stand_in(folder, "flapping", "sys.stderr.write('last words'); sys.exit(3)"))
        if "leaving" in kinds:
            orphan = "import subprocess; print('orphan', subprocess.Popen(['sleep', '60']).pid)"
            programs.append(stand_in(folder, "leaving", f"{orphan}; sys.exit(3)"))
        if "flooding" in kinds:
            programs.append(stand_in(folder, "flooding", "while True: print('x' * 200_000); print('y' * 70)"))
        ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)"
        if "stubborn" in kinds:
            programs.append(stand_in(folder, "stubborn", ignores, grace_s=1.0))
        if "busy" in kinds:
            programs.append(stand_in(folder, "busy", ignores, grace_s=600.0))
        run_programs(programs, [("started", "info")])


if __name__ == "__main__":
    warnings.simplefilter("error")  # as in the tests' own process
    try:
        _main(Path(sys.argv[1]), sys.argv[2:])
    except ForecacheError as error:
        sys.exit(error.message)
