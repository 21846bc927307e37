"""Asks whether a pinned library has a known vulnerability: `make audit`, which `make lint` calls.

Fails when one has. Where no vulnerability service answers, as behind a mirror of the package index, it says that
nothing was audited, and does not fail: style and types can be checked without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"


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
    unsafe = [one for one in known if one["vulns"]]
    for one in unsafe:
        fixes = ", ".join(sorted({fix for each in one["vulns"] for fix in each["fix_versions"]})) or "none yet"
        print(
            f"audit: {one['name']} {one['version']}: {', '.join(each['id'] for each in one['vulns'])}; fixed in {fixes}"
        )
    if not known:
        print(f"audit: NOT DONE, the service knows none of the {len(found)} pinned libraries (a mirror answers for it)")
    else:
        print(
            f"audit: {len(known)} of {len(found)} pinned libraries looked up, {len(unsafe)} with known vulnerabilities"
        )
    return 1 if unsafe else 0


if __name__ == "__main__":
    sys.exit(main())
