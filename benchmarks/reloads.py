"""Memory of a worker that loads one new version after the other: what is unloaded must be gone."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import psutil
import structlog
from rig.dataset import make_dataset
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

from inference.deployment import Deployment
from inference.models import ModelHost

#: what the first loads leave behind once (thread pools, allocators' reserves) is not counted
WARM_UP = 10
ROWS = 1000


def main() -> None:
    """Load and unload versions in this very process, as a worker does, and print how much memory stays taken."""
    options = _options()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with temporary_folder() as folder:
        dataset = make_dataset(folder, ROWS)
        with Stack(folder, dataset) as stack:
            sizes = reload_again_and_again(stack.deployment, dataset.model, options.reloads)
    first, last = sizes[WARM_UP], sizes[-1]
    figures: dict[str, Any] = {
        "reloads": options.reloads,
        "mib_after_warm_up": first,
        "mib_at_end": last,
        "ratio_growth": last / first,
    }
    rows = [(f"after {WARM_UP} reloads", f"{first:.0f}"), (f"after {len(sizes) - 1} reloads", f"{last:.0f}")]
    print_report("A worker's memory over reloads", ["", "MiB"], rows, figures, as_json=options.json)


def reload_again_and_again(deployment: Deployment, model_folder: Path, reloads: int) -> list[float]:
    """Return the resident memory in MiB after each reload, that of the first load first."""
    now = 0.0
    host = ModelHost(deployment.settings, deployment.registry, monotonic=lambda: now)
    host.start()
    version = max(host.versions()[MODEL])
    sizes = [_resident_mib()]
    for _ in range(WARM_UP + reloads):
        shutil.move(model_folder / str(version), model_folder / str(version + 1))
        version += 1
        host.load(MODEL, version)
        deployment.registry.activate(MODEL, version)
        now += 10
        host.unload_idle(MODEL, keep=(), idle_s=1)
        sizes.append(_resident_mib())
    return sizes


def _resident_mib() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
