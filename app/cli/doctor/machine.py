"""Checks this machine: installed versions, GPUs, clock, environment variables."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from app.cli.doctor.findings import Check, Finding, error, not_checked, ok, warning
from inference import tracing
from inference.models.formats import FORMATS
from inference.redaction import without_secrets
from inference.settings import ApiSettings, WorkerSettings, variables_unread
from inference.stored_data import installed_release

#: synchronised clocks differ by milliseconds
MOST_OFFSET_S = 0.5
#: of a pod, unless its manifest says otherwise
KUBERNETES_GRACE_S = 30


class Gpus(NamedTuple):
    """The NVIDIA devices by index, and `CUDA_VISIBLE_DEVICES` (None: unset).

    `obstacle`: why the installed TensorFlow cannot use them; None if it can, or is not installed.
    """

    devices: tuple[int, ...]
    visible: str | None
    obstacle: str | None


def find_gpus(devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ) -> Gpus:
    """Return the GPUs of this machine. Loads neither TensorFlow nor a driver."""
    found = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*"))
    indexes = tuple(sorted(int(index) for index in found if index.isdecimal()))
    return Gpus(indexes, environment.get("CUDA_VISIBLE_DEVICES"), _obstacle() if indexes else None)


def check_gpus(workers: WorkerSettings, gpus: Gpus) -> Finding:
    """Check that workers on this machine compute where the settings want it."""
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
    """Compare the clocks of this machine and Redis. `offset_s`: how far Redis is ahead, None if unknown."""
    if offset_s is None:
        return not_checked(Check.MACHINE, "clock")
    detail = f"{abs(offset_s):.3f} s {'behind' if offset_s > 0 else 'ahead of'} Redis"
    if abs(offset_s) > MOST_OFFSET_S:
        fix = "keep the clocks of both machines in time (NTP): schedules and ages go by them"
        return warning(Check.MACHINE, "clock", detail, fix)
    return ok(Check.MACHINE, "clock", detail)


def check_stop(api: ApiSettings) -> Finding:
    """Check that the platform lets the API finish its requests before it kills it."""
    needs_s, gets_s = api.longest_stop_s, api.stop_timeout
    detail = f"a stopping API process takes up to {needs_s:g} s ([api] drain, then open requests)"
    if gets_s is None and needs_s > KUBERNETES_GRACE_S:
        where = f"Kubernetes kills after {KUBERNETES_GRACE_S} s and Docker after 10 s, unless told otherwise"
        fix = "raise it (terminationGracePeriodSeconds, stop_grace_period), and tell it in [api] stop_timeout"
        return warning(Check.MACHINE, "stop", f"{detail}; {where}", fix)
    if gets_s is not None and needs_s > gets_s:
        fix = "raise the platform's grace and [api] stop_timeout, or lower [api] drain"
        return warning(
            Check.MACHINE, "stop", f"{detail}, but [api] stop_timeout says it is killed after {gets_s:g} s", fix
        )
    return ok(Check.MACHINE, "stop", detail)


def check_environment(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return a warning for each environment variable that looks like a setting but is not one."""
    return [
        warning(Check.MACHINE, "environment", f"{name} is not a setting, and nothing reads it", f"call it {meant}")
        for name, meant in variables_unread(environment)
    ]


def check_tracing(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Check that the traces that the environment asks for can be sent from here; no finding if it asks for none."""
    if not tracing.is_wanted(environment):
        return []
    found = tracing.obstacle(environment)
    if found is not None:
        return [warning(Check.MACHINE, "traces", f"not sent: {found[0]}", found[1])]
    place = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return [ok(Check.MACHINE, "traces", f"sent to {without_secrets(place or 'http://localhost:4318')}")]


def _names_any(visible: str) -> bool:
    # CUDA stops at the first device that does not exist, such as -1
    return visible.split(",")[0].strip() not in ("", "-1")


def _obstacle() -> str | None:
    """Return why TensorFlow must use the CPU. Reads only files, since importing TensorFlow takes seconds."""
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


#: distribution → installed version, None if it is not installed
Installed = Callable[[str], str | None]

#: always shown
_SHOWN = ("celery", "redis")
#: extras with libraries that load models: shown if installed
_RUNTIMES = frozenset(one.extra for one in FORMATS if one.extra)


def check_versions(
    installed: Installed | None = None,
    requirements: Iterable[str] | None = None,
    *,
    python: str = platform.python_version(),
    release: str | None = installed_release(),
) -> list[Finding]:
    """Return findings about Python, Forecache, the main libraries, and each library of a wrong version.

    Reads the metadata of packages and imports none. `requirements`: as in metadata, None for those of Forecache.
    """
    find = installed or _installed
    findings = [ok(Check.VERSIONS, "python", python)]
    findings.append(ok(Check.VERSIONS, "forecache", release or "run from its sources"))
    for requirement in map(Requirement, _forecache_requirements() if requirements is None else requirements):
        findings.extend(_check_requirement(requirement, find(requirement.name)))
    return findings


def _check_requirement(requirement: Requirement, found: str | None) -> list[Finding]:
    """Return at most one finding. Of the extras, only installed libraries that load models count."""
    name = requirement.name
    is_runtime = any(_applies(requirement, extra) for extra in _RUNTIMES)
    if not (_applies(requirement, "") or is_runtime):
        return []
    if found is None:
        if is_runtime:
            return []
        return [error(Check.VERSIONS, name, "not installed", f"pip install '{name}{requirement.specifier}'")]
    if not requirement.specifier.contains(found, prereleases=True):
        detail = f"{found} is not {requirement.specifier}"
        return [error(Check.VERSIONS, name, detail, f"pip install '{name}{requirement.specifier}'")]
    return [ok(Check.VERSIONS, name, found)] if is_runtime or name in _SHOWN else []


def _applies(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return extra == ""
    return requirement.marker.evaluate({"extra": extra})


def _installed(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _forecache_requirements() -> list[str]:
    from importlib.metadata import PackageNotFoundError, requires

    try:
        return requires("forecache") or []
    except PackageNotFoundError:  # run from its sources
        return []
