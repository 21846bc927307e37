"""Which release of Forecache runs."""

from __future__ import annotations


def installed_release() -> str | None:
    """Return the installed version, such as `1.2.0`; None when it runs from its sources."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and `--help` need not wait

    try:
        return version("forecache")
    except PackageNotFoundError:
        return None
