"""CPU time of processes: what other work on the machine hardly changes, unlike rates."""

from __future__ import annotations

import psutil


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU time that a process and its children have used so far, with all their threads."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))
