"""Which release of Forecache runs, and which form of data it knows."""

from __future__ import annotations

from inference.errors import UnknownFormat

#: how tables and runs are laid out in Redis. Raised when another release would misread what this one writes
DATA_FORMAT = 1


def unknown_format(what: str, written: int) -> UnknownFormat:
    """Return the error for what another release wrote in another format, with what to do about it."""
    fix = "upgrade this process" if written > DATA_FORMAT else "let a run of this release replace it"
    return UnknownFormat(f"{what} was written in format {written}, and this release knows {DATA_FORMAT}: {fix}")


def installed_release() -> str | None:
    """Return the installed version, such as `1.2.0`; None when it runs from its sources."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and `--help` need not wait

    try:
        return version("forecache")
    except PackageNotFoundError:
        return None
