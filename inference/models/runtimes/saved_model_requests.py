"""Reads the warm-up requests that a SavedModel brings along, as TensorFlow Serving's clients record them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from inference.errors import ModelError
from inference.schema import Block

REQUESTS_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
#: TensorFlow Serving's own limit
MOST_REQUESTS = 1_000
#: a thousand requests of a small picture each
_MOST_BYTES = 256 << 20
#: the input of signatures that classify or regress
_EXAMPLES = "inputs"

_TENSOR_FILE = "tensorflow/core/framework/tensor.proto"
_PACKAGE = "forecache.warm_up"
#: the fields of TensorFlow Serving's messages that matter here: the package with all of them needs one version of
#: TensorFlow. Message → fields as (name, number, type). Examples stay serialized, as the model takes them
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "ModelSpec": [("signature_name", 3, "string")],
    "Input": [("key", 1, "string"), ("value", 2, ".tensorflow.TensorProto")],
    "PredictRequest": [("model_spec", 1, "ModelSpec"), ("inputs", 2, "repeated Input")],
    "PredictLog": [("request", 1, "PredictRequest")],
    "Examples": [("examples", 1, "repeated bytes"), ("context", 2, "bytes")],
    "ExamplesInput": [("example_list", 1, "Examples"), ("example_list_with_context", 2, "Examples")],
    "ExamplesRequest": [("model_spec", 1, "ModelSpec"), ("input", 2, "ExamplesInput")],
    "ExamplesLog": [("request", 1, "ExamplesRequest")],
    "PredictionLog": [
        ("classify_log", 2, "ExamplesLog"), ("regress_log", 3, "ExamplesLog"), ("predict_log", 6, "PredictLog"),
    ],
}  # fmt: skip


def read_requests(folder: Path) -> Iterator[tuple[str, Block]]:
    """Yield the signature's name ("" for the default one) and the inputs of each request, in order.

    Reads `assets.extra/tf_serving_warmup_requests`, a TFRecord file of `tensorflow.serving.PredictionLog`, if there is
    one: requests to predict, and requests with examples to classify or regress.

    Raises:
        ModelError: the file is damaged, or holds something else.
    """
    file = folder / REQUESTS_FILE
    if not file.is_file():
        return
    if file.stat().st_size > _MOST_BYTES:
        raise ModelError(f"{file} is larger than {_MOST_BYTES >> 20} MiB: leave fewer or smaller requests there")
    try:
        for record in tf.data.TFRecordDataset(str(file)).take(MOST_REQUESTS).as_numpy_iterator():
            log = _prediction_log().FromString(record)
            if log.HasField("predict_log"):
                request = log.predict_log.request
                inputs = {each.key: tf.make_ndarray(each.value) for each in request.inputs}
                yield request.model_spec.signature_name, inputs
            for kind in ("classify_log", "regress_log"):
                request = getattr(log, kind).request
                if examples := _examples(request.input):
                    yield request.model_spec.signature_name, {_EXAMPLES: np.array(examples, dtype=object)}
    except (tf.errors.OpError, DecodeError, TypeError) as error:
        raise ModelError(f"{file} cannot be read as warm-up requests: {' '.join(str(error).split())[:200]}") from error


def _examples(given: Any) -> list[bytes]:
    """Return the serialized examples of a request, each behind the context that they share."""
    context = given.example_list_with_context.context
    # Protocol Buffers read two adjacent messages of one type as one
    return [*given.example_list.examples, *(context + one for one in given.example_list_with_context.examples)]


@cache
def _prediction_log() -> Any:
    """Return the class of a `PredictionLog`."""
    declared = descriptor_pb2.FileDescriptorProto(
        name="forecache/warm_up.proto", package=_PACKAGE, dependency=[_TENSOR_FILE], syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = declared.message_type.add(name=name)
        for field, number, kind in fields:
            message.field.append(_field(field, number, kind))
    pool = descriptor_pool.Default()
    pool.Add(declared)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.PredictionLog"))


def _field(name: str, number: int, kind: str) -> descriptor_pb2.FieldDescriptorProto:
    repeated, _, kind = kind.rpartition(" ")
    field = descriptor_pb2.FieldDescriptorProto(name=name, number=number)
    field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
    if kind in ("string", "bytes"):
        field.type = field.TYPE_STRING if kind == "string" else field.TYPE_BYTES
    else:
        field.type = field.TYPE_MESSAGE
        field.type_name = kind if kind.startswith(".") else f".{_PACKAGE}.{kind}"
    return field
