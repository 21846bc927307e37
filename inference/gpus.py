"""Reads the load of this process's GPUs from NVIDIA's library (NVML), if it is installed, and names their locks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from inference.host_locks import lock_file


@dataclass(frozen=True)
class GpuUse:
    """One GPU and its use by all processes. Memory in bytes; `busy_share`: of the last second, 0 to 1."""

    index: int
    name: str
    memory_used: int
    memory_total: int
    busy_share: float


def lock_of_gpu(device: str) -> Path | None:
    """Return the lock that real-time workers of this host share while they compute on this process's GPU.

    `device`: a `Runtime.device`. Returns None for processors, and for an engine elsewhere.
    """
    if device.startswith(("cpu-", "remote ")):
        return None
    first, _, _ = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")
    return lock_file(f"gpu-{first.strip().replace('/', '_')}")


def gpu_use() -> tuple[GpuUse, ...]:
    """Return the GPUs that `CUDA_VISIBLE_DEVICES` allows this process; empty without NVML or a GPU."""
    nvml = _nvml()
    if nvml is None:
        return ()
    try:
        found = tuple(_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError:  # the driver went away; a heartbeat must not depend on it
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    wanted = {int(part) for part in visible.split(",") if part.strip().isdecimal()}
    return tuple(gpu for gpu in found if gpu.index in wanted)


@cache
def _nvml() -> Any:
    """Return the initialised NVML binding; None if there is none."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _read(nvml: Any, index: int) -> GpuUse:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    name = nvml.nvmlDeviceGetName(device)
    busy = nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
    return GpuUse(index, name if isinstance(name, str) else name.decode(), int(memory.used), int(memory.total), busy)
