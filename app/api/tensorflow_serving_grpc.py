"""TensorFlow Serving's PredictionService and ModelService. `inference/protocols/tensorflow_grpc.py` has their rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.api.grpc_calls import Answer, GrpcCall
from app.api.request_bodies import beside_loop
from app.api.servables import compute_signature, ready_record, signature_call, version_states, without_label
from inference.protocols import tensorflow_calls as calls
from inference.protocols import tensorflow_grpc as protocol
from inference.protocols.messages import message_class
from inference.protocols.tensorflow_examples import unknown_signature as unknown_for_examples
from inference.protocols.tensorflow_grpc import SERVING
from inference.protocols.tensorflow_serving import Method, ModelUrl, unknown_signature
from inference.serving import Outputs


async def _predict(client: GrpcCall, request: Any) -> Any:
    path = await without_label(protocol.model_of(request, Method.PREDICT), client.process)
    name = protocol.signature_of(request)
    call = await signature_call(path, client.process, name, unknown_signature)
    size = protocol.bytes_of_elements(request)
    tensors = await beside_loop(size, protocol.predict_tensors, request, call.declared.inputs)
    wanted = protocol.wanted_outputs(request, call.declared.outputs)
    outputs = await compute_signature(path, call, tensors, client.ask)
    return protocol.predict_response(path, outputs.version, name, outputs.tensors, wanted)


async def _classify(client: GrpcCall, request: Any) -> Any:
    path = await without_label(protocol.model_of(request, Method.CLASSIFY), client.process)
    return await _examples(client, request, path, message_class(f"{SERVING}.ClassificationResponse")())


async def _regress(client: GrpcCall, request: Any) -> Any:
    path = await without_label(protocol.model_of(request, Method.REGRESS), client.process)
    return await _examples(client, request, path, message_class(f"{SERVING}.RegressionResponse")())


async def _examples(client: GrpcCall, request: Any, path: ModelUrl, response: Any) -> Any:
    name, examples = protocol.signature_of(request), protocol.read_examples(request)
    outputs = await _results(client, path, name, examples, response.result)
    protocol.write_spec(response, path, outputs.version, name)
    return response


async def _multi_inference(client: GrpcCall, request: Any) -> Any:
    response = message_class(f"{SERVING}.MultiInferenceResponse")()
    examples, version = protocol.read_examples(request), None
    for named, name in protocol.tasks_of(request):
        path = await without_label(named, client.process)
        # the version that the first task got computes all
        path = path if version is None else replace(path, version=version)
        added = response.results.add()
        classify = path.method is Method.CLASSIFY
        result = added.classification_result if classify else added.regression_result
        version = (await _results(client, path, name, examples, result)).version
        protocol.write_spec(added, path, version, name)
    return response


async def _results(client: GrpcCall, path: ModelUrl, name: str, examples: list[bytes], result: Any) -> Outputs:
    """Compute examples, and write what the model says of them into `result`."""
    call = await signature_call(path, client.process, name, unknown_for_examples)
    classify = path.method is Method.CLASSIFY
    (calls.check_classify if classify else calls.check_regress)(call.declared)
    outputs = await compute_signature(path, call, calls.example_tensors(examples), client.ask)
    (protocol.write_classifications if classify else protocol.write_regressions)(result, outputs.tensors, len(examples))
    return outputs


async def _metadata(client: GrpcCall, request: Any) -> Any:
    protocol.check_metadata_fields(request)
    path = await without_label(protocol.model_of(request, Method.METADATA), client.process)
    record = await ready_record(path, client.process)
    return protocol.metadata_response(path, record.version, record.all_signatures())


async def _status(client: GrpcCall, request: Any) -> Any:
    path = await without_label(protocol.model_of(request, Method.STATUS), client.process)
    return protocol.status_response(await version_states(path, client.process))


#: service → its methods
SERVICES: dict[str, dict[str, Answer]] = {
    f"{SERVING}.PredictionService": {
        "Predict": _predict,
        "Classify": _classify,
        "Regress": _regress,
        "MultiInference": _multi_inference,
        "GetModelMetadata": _metadata,
    },
    f"{SERVING}.ModelService": {"GetModelStatus": _status},
}
