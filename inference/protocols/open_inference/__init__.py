"""The Open Inference Protocol (v2) over HTTP, with the binary tensor data extension.

https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md; errors are worded
like Triton's.
"""

from inference.protocols.open_inference.answers import InferAnswer, infer_answer
from inference.protocols.open_inference.descriptions import model_metadata, server_metadata
from inference.protocols.open_inference.requests import InferRequest, infer_request, read_body

__all__ = [
    "InferAnswer",
    "InferRequest",
    "infer_answer",
    "infer_request",
    "model_metadata",
    "read_body",
    "server_metadata",
]
