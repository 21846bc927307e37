"""This machine: its GPUs as TensorFlow would see them, its clock, and its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from app.cli.doctor.findings import Check, Finding, error, not_checked, ok, warning
from inference.settings import WorkerSettings, variables_unread

#: clocks that are kept in time differ by milliseconds
MOST_OFFSET_S = 0.5


class Gpus(NamedTuple):
    """What there is: NVIDIA devices by index, `CUDA_VISIBLE_DEVICES` (None: unset), and TensorFlow's build.

    `obstacle`: why the installed TensorFlow cannot use them; None when it can, or is not installed.
    """

    devices: tuple[int, ...]
    visible: str | None
    obstacle: str | None


def look_at_gpus(devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ) -> Gpus:
    """Return the GPUs of this machine, without loading TensorFlow or a driver."""
    found = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*"))
    indexes = tuple(sorted(int(index) for index in found if index.isdecimal()))
    return Gpus(indexes, environment.get("CUDA_VISIBLE_DEVICES"), _obstacle() if indexes else None)


def check_gpus(workers: WorkerSettings, gpus: Gpus) -> Finding:
    """Return whether workers on this machine would compute where the settings want them to."""
    subject, wanted = "GPU", workers.gpus
    names = ", ".join(map(str, gpus.devices))
    if wanted == "none":
        return ok(Check.MACHINE, subject, "not used: [workers] gpus is none")
    if isinstance(wanted, list):
        absent = sorted(set(wanted) - set(gpus.devices))
        if absent:
            detail = f"[workers] gpus names {absent[0]}, but this machine has {names or 'no NVIDIA device'}"
            return error(Check.MACHINE, subject, detail, 'list what is there, or set gpus = "auto"')
    if not gpus.devices:
        return ok(Check.MACHINE, subject, "no NVIDIA device: models run on the CPU")
    if wanted == "auto" and gpus.visible is not None and not _names_any(gpus.visible):
        detail = f"NVIDIA device {names}, hidden by CUDA_VISIBLE_DEVICES={gpus.visible!r}"
        return warning(Check.MACHINE, subject, detail, "unset CUDA_VISIBLE_DEVICES")
    if gpus.obstacle:
        detail = f"NVIDIA device {names}, but {gpus.obstacle}"
        return warning(Check.MACHINE, subject, detail, "pip install 'forecache[gpu]'")
    shown = "" if gpus.visible is None else f", of which CUDA_VISIBLE_DEVICES shows {gpus.visible}"
    return ok(Check.MACHINE, subject, f"NVIDIA device {names}{shown}")


def check_clock(offset_s: float | None) -> Finding:
    """Return whether this machine and Redis agree; `offset_s`: how far Redis is ahead, None when it is not known."""
    if offset_s is None:
        return not_checked(Check.MACHINE, "clock")
    detail = f"{abs(offset_s):.3f} s {'behind' if offset_s > 0 else 'ahead of'} Redis"
    if abs(offset_s) > MOST_OFFSET_S:
        fix = "keep the clocks of both machines in time (NTP): schedules and ages go by them"
        return warning(Check.MACHINE, "clock", detail, fix)
    return ok(Check.MACHINE, "clock", detail)


def check_environment(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return a warning for each environment variable that looks like a setting and is none."""
    return [
        warning(Check.MACHINE, "environment", f"{name} is no setting, and nothing reads it", f"call it {meant}")
        for name, meant in variables_unread(environment)
    ]


def _names_any(visible: str) -> bool:
    # CUDA stops at the first that does not exist, such as -1
    return visible.split(",")[0].strip() not in ("", "-1")


def _obstacle() -> str | None:
    """Return what keeps TensorFlow on the CPU, as far as files tell: importing it takes seconds."""
    spec = find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        return None
    facts = Path(spec.submodule_search_locations[0], "python", "platform", "build_info.py")
    if facts.is_file() and "('is_cuda_build', False)" in facts.read_text(encoding="utf-8"):
        return "TensorFlow's build is for the CPU only"
    # the wheels of `tensorflow[and-cuda]`, else libraries of the system
    wheels = find_spec("nvidia") is not None and find_spec("nvidia.cudnn") is not None
    if not wheels and find_library("cudnn") is None:
        return "CUDA's libraries are not installed, so TensorFlow computes on the CPU"
    return None
