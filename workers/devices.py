"""GPU set-up of a worker process: before TensorFlow is used for the first time."""

from __future__ import annotations

from inference.logs import get_logger
from inference.models.runtimes import prepare_devices
from inference.settings import Settings

log = get_logger(__name__)


def prepare_gpus(settings: Settings) -> None:
    """Let this process take GPU memory only as the settings allow.

    Which GPU it is pinned to was decided by whoever started it, through `CUDA_VISIBLE_DEVICES`;
    `gpus = "none"` hides them all.
    """
    of_workers = settings.workers
    devices = prepare_devices(use_gpus=of_workers.gpus != "none", gpu_memory_share=of_workers.gpu_memory_share)
    log.info("worker.devices", gpus=devices or "none")
