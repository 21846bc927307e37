"""Ray Serve: `ray_serve_server.py MODEL PORT`. POST / {"entity_id": …, "features": […]}."""

from __future__ import annotations

import signal
import sys
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256, logging_config=LoggingConfig(enable_access_log=False))
class Bench:
    """One model in one replica, behind `serve.batch`."""

    def __init__(self, model: str) -> None:
        import tensorflow as tf

        self._tensor = lambda rows: tf.constant(rows, dtype=tf.float32)
        self._model = tf.saved_model.load(f"{model}/1")
        self._signature = self._model.signatures["serving_default"]
        (self._input,) = self._signature.structured_input_signature[1]
        self._signature(**{self._input: self._tensor(np.zeros((1, 32)))})

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0)
    async def predict(self, rows: list[list[float]]) -> list[float]:
        """Return a prediction for each row."""
        inputs = np.array(rows, dtype=np.float32)
        (output,) = self._signature(**{self._input: self._tensor(inputs)}).values()
        return list(output.numpy()[:, 0].tolist())

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answer one request."""
        body = await request.json()
        return {"entity_id": body["entity_id"], "prediction": await self.predict(body["features"])}


def main(model: str, port: int) -> None:
    """Serve until SIGTERM, then end everything that Ray started."""
    ray.init(include_dashboard=False, logging_level="ERROR", num_cpus=2)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Bench.bind(model))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
