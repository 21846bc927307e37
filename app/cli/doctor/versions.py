"""Which versions are installed. Read from their metadata: nothing is imported for it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable

from packaging.requirements import Requirement

from app.cli.doctor.findings import Check, Finding, error, ok
from inference.models.formats import FORMATS
from inference.stored_data import installed_release

#: distribution → installed version, None when it is not there
Installed = Callable[[str], str | None]

#: shown even when they are as required
_SHOWN = ("celery", "redis")
#: what loads models: shown when it is installed
_RUNTIMES = frozenset(one.extra for one in FORMATS if one.extra)


def check_versions(
    installed: Installed | None = None,
    requirements: Iterable[str] | None = None,
    *,
    python: str = platform.python_version(),
    release: str | None = installed_release(),
) -> list[Finding]:
    """Return a line for Python, for Forecache, for each of the main libraries, and for each that does not fit.

    `requirements`: as a package's metadata spells them; None for Forecache's own.
    """
    find = installed or _installed
    lines = [ok(Check.VERSIONS, "python", python)]
    lines.append(ok(Check.VERSIONS, "forecache", release or "run from its sources"))
    for requirement in map(Requirement, _own_requirements() if requirements is None else requirements):
        lines.extend(_check(requirement, find(requirement.name)))
    return lines


def _check(requirement: Requirement, found: str | None) -> list[Finding]:
    """Return no line, or one; of extras, those that load models count, where they are installed."""
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


def _own_requirements() -> list[str]:
    from importlib.metadata import PackageNotFoundError, requires

    try:
        return requires("forecache") or []
    except PackageNotFoundError:  # run from its sources: nobody promised anything
        return []
