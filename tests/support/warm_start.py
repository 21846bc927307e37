"""Starts commands and workers from a process that has imported what they need: most of what a start of Python costs.

A template process forks once for each start. The child is a process of its own with its own arguments, environment,
folder and exit code. One template has imported the libraries, and none of Forecache's own code. Code (`-c`) and scripts
start from it: they may look at imports, or change something before one. Modules (`-m`) start from a second template,
itself forked from the first one, that has imported most of Forecache too, and those that use TensorFlow from a third.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, NoReturn

#: what the processes of Forecache import; one that is not installed is left out
LIBRARIES = (
    "numpy", "pyarrow.compute", "pyarrow.dataset", "pyarrow.fs", "pyarrow.parquet", "pandas", "onnxruntime", "orjson",
    "structlog.dev", "yaml", "pydantic_settings", "typer", "rich.console", "redis.asyncio", "redbeat", "croniter",
    "celery.bin.worker", "celery.apps.worker", "celery.apps.beat", "celery.backends.redis", "celery.worker.consumer",
    "celery.concurrency.solo", "celery.concurrency.thread", "kombu.transport.redis", "prometheus_client", "psutil",
    "fastapi", "uvicorn.protocols.http.httptools_impl", "httpx", "tornado.web", "flower.app", "flower.views",
)  # fmt: skip
#: what most of them import of Forecache. Workers' modules are left out: each kind connects signals of its own
OURS = (
    "inference.batch", "inference.deployment", "inference.economics", "inference.models", "inference.serving",
    "inference.streams", "app.api.application", "app.api.server", "app.cli", "app.local.up",
)  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]
#: an interpreter or an import reads these; a child whose own differ from the template's is started as usual
_READ_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "TZ", "OMP_", "OPENBLAS_", "MLFLOW_", "OTEL_")
_ENOUGH = 1 << 20


class WarmProcess:
    """A process that the template started, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: Sequence[str], pid: int, status: int) -> None:
        self.args = list(arguments)
        self.pid = pid
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """Return the exit code, -N after signal N; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(os.read(self._status, 100))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_python(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: int,
    stderr: int,
    new_session: bool = False,
    with_tensorflow: bool = False,
) -> WarmProcess | subprocess.Popen[bytes]:
    """Start `python -P ARGUMENTS`; `stdout` and `stderr` are open files' numbers.

    `with_tensorflow`: the module will use it. The first such process of the tests takes five seconds longer.
    """
    if not _is_like_ours(env):
        return subprocess.Popen(
            [sys.executable, "-P", *arguments], cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=stdout,
            stderr=stderr, start_new_session=new_session,
        )  # fmt: skip
    with_ours = arguments[0] == "-m" and env.get("PYTHONPATH") == str(_ROOT)
    template = _template((*OURS, "tensorflow") if with_ours and with_tensorflow else OURS if with_ours else ())
    return template.start(arguments, cwd=cwd, env=env, outputs=(stdout, stderr), new_session=new_session)


def run_python(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float, with_tensorflow: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `python -P ARGUMENTS` to its end and return what it printed, as `subprocess.run` does."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        outputs = {"stdout": out.fileno(), "stderr": err.fileno()}
        process = start_python(arguments, cwd=cwd, env=env, **outputs, with_tensorflow=with_tensorflow)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as late:
            process.kill()
            process.wait()
            raise subprocess.TimeoutExpired(list(arguments), timeout_s, _text_of(out), _text_of(err)) from late
        return subprocess.CompletedProcess(list(arguments), code, _text_of(out), _text_of(err))


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").replace("\r\n", "\n")


def _is_like_ours(env: Mapping[str, str]) -> bool:
    """Whether a child may be forked: on Linux, for an interpreter that starts as the template did."""
    if sys.platform != "linux":
        return False
    of_template = _template_environment()
    return all(
        env.get(name) == of_template.get(name)
        for name in {*env, *of_template}
        if name.startswith(_READ_AT_START) and name != "PYTHONPATH"
    )


@cache
def _template_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": ""}


@cache
def _template(more: tuple[str, ...]) -> _Template:
    return _Template(partial(_fork_template, more) if more else _start_template)


def _start_template(channel: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", __file__], env=_template_environment(), cwd="/", stdin=subprocess.DEVNULL,
        stdout=channel,
    )  # fmt: skip


def _fork_template(more: Sequence[str], channel: int) -> WarmProcess:
    own = {**_template_environment(), "PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return _template(()).start([__file__, *more], cwd=Path("/"), env=own, outputs=(channel, 2))


class _Template:
    """The process that forks, and the socket on which it is asked to: its standard output."""

    def __init__(self, start: Callable[[int], WarmProcess | subprocess.Popen[bytes]]) -> None:
        self._lock = threading.Lock()
        self._channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = start(its.fileno())
        atexit.register(self.stop)

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        outputs: tuple[int, int],
        new_session: bool = False,
    ) -> WarmProcess:
        what = {"arguments": [os.fspath(one) for one in arguments], "cwd": str(cwd), "env": dict(env)}
        asked = json.dumps({**what, "new_session": new_session}).encode()
        reading, writing = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._channel, [asked], [*outputs, writing])
                pid = int(self._channel.recv(100))
        finally:
            os.close(writing)
        return WarmProcess(what["arguments"], pid, reading)

    def stop(self) -> None:
        self._channel.close()
        self._process.wait(30)


# --- in the template ---


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        with contextlib.suppress(Exception):  # a child that needs the module shows the error
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _serve(channel: socket.socket) -> None:
    """Fork for each request until the other side closes; tell how each child ended."""
    running: dict[int, int] = {}
    templates: set[int] = set()
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(waker)
    while True:
        ready, _, _ = select.select([channel, woken], [], [])
        if woken in ready:
            os.read(woken, 1000)
            _tell_ended(running)
        if channel in ready:
            asked, files, _, _ = socket.recv_fds(channel, _ENOUGH, 3)
            if not asked:  # the tests are over, or were killed: nothing of theirs stays. Other templates see it too
                for pid in running.keys() - templates:
                    os.kill(pid, signal.SIGKILL)
                return
            pid = os.fork()
            if not pid:
                for number in (woken, waker, channel.fileno(), files[2], *running.values()):
                    os.close(number)
                _become(json.loads(asked), files[:2])
            running[pid] = files[2]
            if json.loads(asked)["arguments"][0] == __file__:
                templates.add(pid)
            for file in files[:2]:
                os.close(file)
            channel.send(str(pid).encode())


def _tell_ended(running: dict[int, int]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(BrokenPipeError), os.fdopen(running.pop(pid), "wb") as told:
                told.write(str(os.waitstatus_to_exitcode(status)).encode())


def _become(asked: dict[str, Any], outputs: list[int]) -> NoReturn:
    """Be the process that was asked for, as if Python had just started with its arguments."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked["new_session"]:
        os.setsid()
    for number, file in enumerate(outputs, start=1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    time.tzset()
    sys.path[:0] = [one for one in asked["env"].get("PYTHONPATH", "").split(os.pathsep) if one]
    importlib.invalidate_caches()
    code = 1
    try:
        code = _run(asked["arguments"])
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        with contextlib.suppress(Exception):
            threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does at its end
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str]) -> int:
    sys.orig_argv = [sys.executable, "-P", *arguments]
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, int) or stop.code is None:
            return stop.code or 0
        sys.stderr.write(f"{stop.code}\n")
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 0


if __name__ == "__main__":
    with socket.socket(fileno=os.dup(1)) as its_channel, Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 1)
        _import([*LIBRARIES, *sys.argv[1:]])
        _serve(its_channel)
