"""Which release of Forecache runs, and which form of data it knows."""

from __future__ import annotations

from inference.errors import UnknownFormat

#: how tables and runs are laid out in Redis. Raised when another release would misread what this one writes
DATA_FORMAT = 1


def check_format(what: str, written: int) -> None:
    """Refuse what another release wrote in a form that this one does not know.

    Raises:
        UnknownFormat: says which of the two to upgrade.
    """
    if written > DATA_FORMAT:
        fix = "upgrade this process"
    elif written < DATA_FORMAT:
        fix = "let a run of this release replace it"
    else:
        return
    raise UnknownFormat(f"{what} was written in format {written}, and this release knows {DATA_FORMAT}: {fix}")


def installed_release() -> str | None:
    """Return the installed version, such as `1.2.0`; None when it runs from its sources."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and `--help` need not wait

    try:
        return version("forecache")
    except PackageNotFoundError:
        return None
