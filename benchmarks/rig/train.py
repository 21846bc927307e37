"""Export the model and write its answers: `train.py FOLDER ROWS`, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pyarrow.parquet as pq

from inference.models.runtimes import without_startup_notes

with without_startup_notes():
    import tensorflow as tf

    # the runtime asks for devices once, and prints what it did not find
    tf.config.list_logical_devices()

FEATURES = 32


def build_model() -> tf.keras.Model:
    """Return a small dense network; its weights are the same in every run."""
    tf.keras.utils.set_random_seed(7)
    return tf.keras.Sequential(
        [
            tf.keras.layers.Input((FEATURES,), name="features"),
            tf.keras.layers.Dense(64, activation="relu"),
            tf.keras.layers.Dense(32, activation="relu"),
            tf.keras.layers.Dense(1),
        ]
    )


def main(folder: Path, rows: int) -> None:
    """Write `model/1`, `model/features.json`, `model.keras` and `answers-ROWS.npy`."""
    model = build_model()
    if not (folder / "model").exists():
        model.export(folder / "model" / "1", verbose=False)
        contract = [{"name": f"f{number:02d}", "dtype": "float32"} for number in range(FEATURES)]
        (folder / "model" / "features.json").write_text(json.dumps({"features": contract}))
        model.save(folder / "model.keras")
    signature = tf.saved_model.load(folder / "model" / "1").signatures["serving_default"]
    name = next(iter(signature.structured_input_signature[1]))
    answers = []
    for batch in pq.ParquetFile(folder / f"features-{rows}.parquet").iter_batches(batch_size=65_536):
        columns = [batch.column(f"f{number:02d}").to_numpy() for number in range(FEATURES)]
        outputs = signature(**{name: tf.constant(np.stack(columns, axis=1))})
        answers.append(next(iter(outputs.values())).numpy()[:, 0])
    np.save(folder / f"answers-{rows}.npy", np.concatenate(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
