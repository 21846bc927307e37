"""Asks whether a pinned library has a known vulnerability: `make audit`, which `make lint` calls.

Says which advisories it heard of and about which pins nobody could tell. Fails when a pin has one. Where no
vulnerability service answers, as behind a mirror of the package index, it says that nothing was audited, and does not
fail: style and types can be checked without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
#: pins that are named one by one
_MOST_NAMED = 10


def main() -> int:
    """Audit the pins and return the exit code."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(PINS), "--no-deps", "--disable-pip"]
    done = subprocess.run(  # noqa: S603 - our own arguments
        [*command, "--progress-spinner", "off", "--format", "json"], capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"audit: NOT DONE, no vulnerability service answers: {last[:200]}")
        return 0
    known = [one for one in found if "vulns" in one]
    if not known:
        print(f"audit: NOT DONE, the service knows none of the {len(found)} pinned libraries (a mirror answers for it)")
        return 0
    advisories = [(one, each) for one in known for each in one["vulns"]]
    for one, each in advisories:
        fixes = ", ".join(sorted(each["fix_versions"])) or "none yet"
        print(f"audit: {one['name']} {one['version']}: {_ids(each)}; fixed in {fixes}")
    unknown = [one["name"] for one in found if "vulns" not in one]
    print(
        f"audit: {len(known)} of {len(found)} pinned libraries looked up in the index's advisories, "
        f"{len(advisories)} of which concern them{_named(unknown)}"
    )
    return 1 if advisories else 0


def _ids(advisory: dict[str, Any]) -> str:
    return " = ".join([advisory["id"], *advisory.get("aliases", ())])


def _named(unknown: list[str]) -> str:
    if not unknown:
        return ""
    more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
    return f"; NOT LOOKED UP, the index does not know them: {', '.join(unknown[:_MOST_NAMED])}{more}"


if __name__ == "__main__":
    sys.exit(main())
