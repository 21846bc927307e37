"""Triton's model configuration extension: what a model takes and gives, in the words of its `config.pbtxt`.

Specification: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_configuration.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from inference.protocols.open_inference import datatype
from inference.protocols.tensors import MAX_TENSOR_ROWS
from inference.schema import DType, Signature, TensorSpec

#: sizes of the dimension that holds the colours of an image
_CHANNELS = (1, 3)


def model_config(
    model: str,
    platform: str,
    versions: Iterable[int],
    signature: Signature,
    *,
    micro_batch: int,
    label_file: str = "",
) -> dict[str, Any]:
    """Return the body that describes a model's configuration. `micro_batch`: most rows of one call of the model.

    `platform`: engine and format, such as `onnxruntime_onnx`. `label_file`: of the outputs' classes; "" for none.
    """
    return {
        "name": model,
        "platform": platform,
        "backend": platform.partition("_")[0],
        "version_policy": {"specific": {"versions": list(versions)}},
        "max_batch_size": MAX_TENSOR_ROWS,
        "input": [{**_tensor(spec), "format": _format(spec.shape)} for spec in signature.inputs],
        "output": [{**_tensor(spec), "label_filename": label_file} for spec in signature.model_outputs],
        "dynamic_batching": {"preferred_batch_size": [micro_batch]},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """Describe a tensor without its rows. One value a row has a dimension of 1 that the model does not see."""
    kind = "STRING" if spec.dtype is DType.STRING else datatype(spec.dtype)
    described = {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape) or [1]}
    return described if spec.shape else described | {"reshape": {"shape": []}}


def _format(shape: Sequence[int]) -> str:
    """Return which dimension of an image holds its colours, as far as its shape tells: Triton's image client asks."""
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return "FORMAT_NHWC"
    return "FORMAT_NCHW" if len(shape) == 3 and shape[0] in _CHANNELS else "FORMAT_NONE"
