"""Bounds the memory, the time and the files of a load, in this process or in one that is started for it.

A file of 1.5 KB can ask for 13 GB. Resident memory decides, not address space: CUDA reserves hundreds of gigabytes of
addresses that it never fills.
"""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from inference.errors import ModelError
from inference.logs import get_logger
from inference.models.versions import bytes_on_disk
from inference.processors import Processors, is_starved, usable_processors
from inference.settings import WorkerSettings

log = get_logger(__name__)

_GIB = 1 << 30
#: TensorFlow with Keras takes 0.8 GB for a model of one neuron; builds for GPUs take more
_LEAST_BYTES = 3 * _GIB
#: a library alone may take so much, even on a small machine
_LIBRARY_BYTES = 3 * _GIB // 2
#: a compressed forest of trees takes 8 times the size of its file, and twice that while it is unpacked
_BYTES_PER_FILE_BYTE = 16
#: stacks of threads and arenas count as data, though most of them stay empty
_EMPTY_DATA_BYTES = _GIB + (64 << 20) * (os.cpu_count() or 1)
#: CUDA's libraries map so much more, at most
_GPU_DATA_BYTES = 16 * _GIB if Path("/dev/nvidiactl").exists() else 0
_OPEN_FILES = 4096
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_STATM = Path("/proc/self/statm")
_DATA_FIELD = 5
#: the process ends so much later if the load lets no other thread log the reason
_SILENT_AFTER_S = 5.0
_STDERR = 2
#: the words of libraries that get no memory
_NO_MEMORY = re.compile(r"alloc|into memory|out of memory|\bOOM\b|MemoryError|start new thread", re.IGNORECASE)
_OF_GPU = re.compile(r"cuda|gpu", re.IGNORECASE)
#: a process fills about 2 GB a second with zeros, so it exceeds its limit by a tenth of that
_LOOK_EVERY_S = 0.05
#: the record of a model with ten thousand inputs takes 1 MB
_MOST_ANSWER_BYTES = 32 << 20
_LAST_BYTES = 64 << 10
_LONGEST_LINE = 2_000


@dataclass(frozen=True)
class LoadLimits:
    """The limits of one load of one version. Its process may write no file over `memory_bytes` either."""

    memory_bytes: int
    timeout_s: float

    @classmethod
    def of(cls, workers: WorkerSettings, folder: Path) -> LoadLimits:
        """Return the limits of the settings. Memory depends by default on the files in `folder` and the machine."""
        memory_bytes = workers.load_memory
        if memory_bytes is None:
            wanted = _LEAST_BYTES + _BYTES_PER_FILE_BYTE * bytes_on_disk(folder)
            memory_bytes = min(wanted, max(machine_memory() // 2, _LIBRARY_BYTES))
        return cls(memory_bytes, workers.load_timeout)

    @property
    def memory(self) -> str:
        """The limit of memory, for messages."""
        return f"{self.memory_bytes / _GIB:.1f} GiB"

    def too_much_memory(self, what: str) -> str:
        """Return the error of a load that takes more memory, with the fix."""
        return (
            f"{what} takes more than {self.memory} of memory, which is the limit for loading a model: raise "
            "load_memory under [workers] if the model really needs that much"
        )

    def too_long(self, what: str) -> str:
        """Return the error of a load that takes longer, with the fix."""
        return (
            f"{what} could not be loaded within {self.timeout_s:g} s: raise load_timeout under [workers] if the model "
            "really needs that long"
        )


def machine_memory() -> int:
    """Return the memory of this machine, or of this process's container, in bytes."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _CGROUP_LIMITS:
        try:
            text = file.read_text().strip()
        except OSError:  # no cgroup of that kind
            continue
        found += [int(text)] if text.isdecimal() else []  # "max": no limit
    return min(found)


def limit_process(pid: int, limits: LoadLimits) -> None:
    """Have the kernel bound the files, the processor time and the data of a child process.

    The kernel does not bound resident memory: the parent must watch `resident_bytes`.
    """
    if sys.platform != "linux":  # no other system can set the limits of another process
        return
    bounds = {
        resource.RLIMIT_CORE: 0,  # a crash would write all its memory to disk
        resource.RLIMIT_FSIZE: limits.memory_bytes,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        # it must not outlive its parent by more than this
        resource.RLIMIT_CPU: int(limits.timeout_s * (os.cpu_count() or 1)) + 1,
        # most libraries then fail by themselves, and say where they lack memory
        resource.RLIMIT_DATA: limits.memory_bytes + _EMPTY_DATA_BYTES,
    }
    for which, most in bounds.items():
        _, hard = resource.prlimit(pid, which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.prlimit(pid, which, (most, most))


@contextmanager
def bounded_growth(limits: LoadLimits | None) -> Iterator[None]:
    """Bound the growth of this process's data while the block runs; None for no bound.

    A library then fails to allocate, and the version is refused. If it crashes instead, the load stays in the model's
    `UnfinishedLoads`. Only Linux has this bound.
    """
    if limits is None or sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _data_bytes() + limits.memory_bytes + _EMPTY_DATA_BYTES + _GPU_DATA_BYTES
    bounds = [one for one in (most, soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def bounded_time(limits: LoadLimits, what: str) -> Iterator[None]:
    """End this process with status 1 if the block takes too long: nothing else stops a library.

    The log says that `what` took too long. If the block lets no other thread run, stderr has a traceback instead.
    """
    late = threading.Timer(limits.timeout_s, _end_process, [limits.too_long(what)])
    late.daemon = True
    late.start()
    faulthandler.dump_traceback_later(limits.timeout_s + _SILENT_AFTER_S, exit=True, file=_STDERR)
    try:
        yield
    finally:
        late.cancel()
        faulthandler.cancel_dump_traceback_later()


def _end_process(reason: str) -> None:
    log.critical("model.load_ends_its_process", error=reason)
    os._exit(1)


def with_fix(reason: str, said: str, limits: LoadLimits | None = None) -> str:
    """Return the reason of a failed load, with the setting to raise if the library's words show a lack of memory.

    `limits`: None for those that the parent has set for this process.
    """
    memory_bytes = limits.memory_bytes if limits else _data_bound()
    if memory_bytes is None or not _NO_MEMORY.search(said) or _OF_GPU.search(said):
        return reason
    return (
        f"{reason.rstrip(': ')}; loading a model may take {memory_bytes / _GIB:.1f} GiB: raise load_memory under "
        "[workers] if this one really needs more"
    )


def _data_bound() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if soft == resource.RLIM_INFINITY else soft - _EMPTY_DATA_BYTES


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        if sys.platform == "linux":
            return 0
    # macOS has no /proc
    done = subprocess.run(  # noqa: S603 - the system's own tool, and a number
        ["/bin/ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return int(done.stdout or 0) << 10


def _data_bytes() -> int:
    return int(_STATM.read_text().split()[_DATA_FIELD]) * resource.getpagesize()


def run_model_process(
    module: str,
    *arguments: str,
    what: str,
    limits: LoadLimits,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run one of our modules that load a model, in a process of its own without a GPU. Return its output.

    It gets only the time that other processes leave, and no time on the first processor. If they leave it none, it
    begins again beside them. `environment`: variables in addition to those of this process.

    Raises:
        ModelError: it ended with an error, whose last line is the message, or exceeded a limit.
    """
    # -P: Python must not import a user's workers.py of the working directory
    command = [sys.executable, "-P", "-m", module, *arguments]
    variables = {**os.environ, **(environment or {}), "CUDA_VISIBLE_DEVICES": "-1"}
    with (
        # libraries unpack archives there, and leave them behind if they are killed
        tempfile.TemporaryDirectory(prefix="forecache-") as scratch,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as answer,
        tempfile.TemporaryFile() as complaint,
    ):
        given.write(stdin.encode())

        def start() -> subprocess.Popen[bytes]:
            given.seek(0)
            for file in (answer, complaint):
                file.seek(0)
                file.truncate()
            own = {**variables, "TMPDIR": scratch}
            return subprocess.Popen(  # noqa: S603 - our own module; the arguments are the operator's
                command, stdin=given, stdout=answer, stderr=complaint, env=own
            )

        status = _status_of(start, limits, what, comes_last=True)
        if status is None:
            status = _status_of(start, limits, what, comes_last=False)
        if status:
            raise ModelError(_why_it_ended(status, complaint, what, limits), field="path")
        answer.seek(0)
        output = answer.read(_MOST_ANSWER_BYTES + 1)
    if len(output) > _MOST_ANSWER_BYTES:
        raise ModelError(f"{what} has more inputs and outputs than can be told in {_MOST_ANSWER_BYTES >> 20} MiB")
    return output.decode(errors="replace")


def _status_of(
    start: Callable[[], subprocess.Popen[bytes]], limits: LoadLimits, what: str, *, comes_last: bool
) -> int | None:
    """Start a process, and return its exit status. None if it `comes_last` and other processes leave it no time.

    Raises: see `_wait`.
    """
    process = start()
    try:
        limit_process(process.pid, limits)
        Processors(usable_processors()).send_to_background(process.pid, last=comes_last)
        return process.returncode if _wait(process, limits, what, may_starve=not comes_last) else None
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], limits: LoadLimits, what: str, *, may_starve: bool) -> bool:
    """Wait for the end of a process. Returns False if it gets no processor, and may not wait for one.

    Raises:
        ModelError: it exceeds its limit of memory or time.
    """
    until = time.monotonic() + limits.timeout_s
    while True:
        try:
            process.wait(_LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            if resident_bytes(process.pid) > limits.memory_bytes:
                raise ModelError(limits.too_much_memory(f"loading {what}"), field="path") from None
            if time.monotonic() > until:
                raise ModelError(limits.too_long(what), field="path") from None
            if not may_starve and is_starved(process.pid):
                return False
        else:
            return True


def _why_it_ended(status: int, complaint: IO[bytes], what: str, limits: LoadLimits) -> str:
    complaint.seek(max(0, complaint.seek(0, os.SEEK_END) - _LAST_BYTES))
    said = complaint.read().decode(errors="replace").strip()
    if status < 0:
        # a C++ library that gets no memory ends its process, at best with a message
        return with_fix(f"loading {what} ended its process by {signal.Signals(-status).name}", said, limits)
    return said.splitlines()[-1][:_LONGEST_LINE] if said else f"loading {what} ended with {status}"
