"""BentoML: `bentoml serve bentoml_server:Bench` with BENCH_MODEL set.

POST /predict {"rows": [{"entity_id": …, "features": […]}]}.
"""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Bench:
    """One model behind BentoML's adaptive batching. Plain objects: pydantic models are a tenth slower."""

    def __init__(self) -> None:
        import tensorflow as tf

        self._tensor = lambda rows: tf.constant(rows, dtype=tf.float32)
        self._model = tf.saved_model.load(f"{os.environ['BENCH_MODEL']}/1")
        self._signature = self._model.signatures["serving_default"]
        (self._input,) = self._signature.structured_input_signature[1]
        self._signature(**{self._input: self._tensor(np.zeros((1, 32)))})

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a prediction for each row; a client sends a list of one."""
        inputs = np.array([row["features"] for row in rows], dtype=np.float32)
        (output,) = self._signature(**{self._input: self._tensor(inputs)}).values()
        predictions = output.numpy()[:, 0].tolist()
        return [
            {"entity_id": row["entity_id"], "prediction": prediction}
            for row, prediction in zip(rows, predictions, strict=True)
        ]
