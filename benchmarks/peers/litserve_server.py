"""LitServe: `litserve_server.py MODEL PORT`. POST /predict {"entity_id": …, "features": […]}."""

import sys

import litserve
import numpy as np

Row = tuple[str, list[float]]
Batch = tuple[tuple[str, ...], np.ndarray]


class Bench(litserve.LitAPI):
    """One model; what waits when the worker is free makes up the next batch, and nothing waits for more."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the name is LitServe's
        """Load and warm the model in the worker's process."""
        import tensorflow as tf

        self._tensor = lambda rows: tf.constant(rows, dtype=tf.float32)
        self._model = tf.saved_model.load(f"{sys.argv[1]}/1")
        self._signature = self._model.signatures["serving_default"]
        (self._input,) = self._signature.structured_input_signature[1]
        self.predict(((), np.zeros((1, 32), dtype=np.float32)))

    def decode_request(self, request):
        """Return whose features they are, and the features."""
        return request["entity_id"], request["features"]

    def batch(self, inputs: list[Row]) -> Batch:
        """Return the rows as one array."""
        ids, rows = zip(*inputs, strict=True)
        return ids, np.array(rows, dtype=np.float32)

    def predict(self, batch: Batch) -> tuple[tuple[str, ...], list[float]]:
        """Return a prediction for each row."""
        ids, rows = batch
        (output,) = self._signature(**{self._input: self._tensor(rows)}).values()
        return ids, output.numpy()[:, 0].tolist()

    def unbatch(self, output: tuple[tuple[str, ...], list[float]]) -> list[tuple[str, float]]:
        """Give each row its own again."""
        return list(zip(*output, strict=True))

    def encode_response(self, output):
        """Return the answer's body."""
        return {"entity_id": output[0], "prediction": output[1]}


if __name__ == "__main__":
    server = litserve.LitServer(Bench(max_batch_size=64, batch_timeout=0), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
