"""The loops that one writes without Forecache: numbers in, numbers out, by each library's own call of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
Loop = Callable[[Rows], npt.NDArray[np.floating]]


def saved_model(folder: Path) -> Loop:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures["serving_default"]
    # the signature does not hold what it was loaded with
    serve.kept = loaded
    return lambda x: serve(x=tf.constant(x))["y"].numpy()  # type: ignore[no-any-return]


def keras(folder: Path) -> Loop:
    import keras as library

    model = library.saving.load_model(folder / "model.keras", compile=False)
    return lambda x: np.asarray(model.predict_on_batch(x))


def torch_export(folder: Path) -> Loop:
    import torch
    from torch.export.passes import move_to_device_pass

    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    program = torch.export.load(folder / "model.pt2")
    module = move_to_device_pass(program, on).module() if on.type == "cuda" else program.module()

    def call(x: Rows) -> npt.NDArray[np.floating]:
        with torch.inference_mode():
            return module(torch.from_numpy(x).to(on)).cpu().numpy()  # type: ignore[no-any-return]

    return call


def onnx(folder: Path) -> Loop:
    import onnxruntime as ort

    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in ort.get_available_providers()]
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=providers)
    return lambda x: session.run(None, {"x": x})[0]  # type: ignore[no-any-return]


LOOPS: dict[str, Callable[[Path], Loop]] = {
    "saved_model": saved_model, "keras": keras, "torch_export": torch_export, "onnx": onnx,
}  # fmt: skip
