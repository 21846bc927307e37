"""What runtimes need to know of the machine that they compute on."""

from __future__ import annotations

import os
import subprocess

from inference.errors import SettingsError


def cpu_name() -> str:
    """Return how the processors of this machine are called where sizes are remembered by device."""
    return f"cpu-{os.cpu_count()}"


def gpu_memory_mib() -> list[int]:
    """Return the memory of each GPU that this process sees, in its order.

    Raises:
        SettingsError: the driver's tool does not say.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        sizes: list[int] = []
        for one in visible.split(",") if visible else [None]:
            only = ["-i", one.strip()] if one else []
            # the driver's own tool; every argument is ours or the operator's
            output = subprocess.run([*command, *only], capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
            sizes.extend(int(line) for line in output.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SettingsError(
            f"gpu_memory_share needs nvidia-smi to tell the GPU's memory ({error}): install it or unset this",
            field="workers.gpu_memory_share",
        ) from error
    return sizes
