"""TensorFlow Serving's REST protocol: `json_tensor.cc` and `http_rest_api_handler.cc` of tensorflow/serving."""

from inference.protocols.tensorflow_serving.answers import (
    classify_answer,
    predict_answer,
    regress_answer,
)
from inference.protocols.tensorflow_serving.descriptions import VersionStatus, metadata, status
from inference.protocols.tensorflow_serving.examples import (
    check_classify,
    check_regress,
    example_tensors,
    read_examples,
)
from inference.protocols.tensorflow_serving.paths import Method, ModelUrl, methods_of, parse_path
from inference.protocols.tensorflow_serving.requests import (
    read_document,
    signature_of,
    tensors_of,
)

__all__ = [
    "Method",
    "ModelUrl",
    "VersionStatus",
    "check_classify",
    "check_regress",
    "classify_answer",
    "example_tensors",
    "metadata",
    "methods_of",
    "parse_path",
    "predict_answer",
    "read_document",
    "read_examples",
    "regress_answer",
    "signature_of",
    "status",
    "tensors_of",
]
