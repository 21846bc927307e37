"""Loads a case's model as a worker does, and says where it was computed and how far its answers are from its library's.

`python -m tests.support.gpu_answers CASE_FOLDER ROWS`, in a process of its own: a library takes a GPU for good. Prints
one JSON object: `device`, `cpu` (what the processors are called), and `worst` (of the differences, relative to 1 + the
answer). `GPU_MEMORY_SHARE`: the setting `[workers] gpu_memory_share`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions
from inference.models.runtimes.runtime import cpu_name
from tests.support.runtimes.cases import answered, asked


def main(folder: Path, rows: int) -> None:
    share = os.environ.get("GPU_MEMORY_SHARE")
    options = LoadOptions(allow_code=True, gpu_memory_share=float(share) if share else None)
    loaded = load_version("m", folder, 1, folder / "1", options=options, warm_up_rows=(1, rows))
    block = loaded.vectoriser.inputs(loaded.vectoriser.features_from_arrow(asked(folder)).block)
    known = len(next(iter(block.values())))
    where = np.resize(np.arange(known), rows)
    outputs = loaded.predict({name: values[where] for name, values in block.items()})
    worst = max(
        float(np.max(np.abs(outputs[name] - wanted[where]) / (1 + np.abs(wanted[where]))))
        for name, wanted in answered(folder).items()
    )
    told = {"device": loaded.runtime.device, "cpu": cpu_name(), "worst": worst}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
