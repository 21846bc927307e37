"""TensorFlow Serving's messages over gRPC: what a request asks for, and the message that answers it.

Follows `predict_util.cc`, `multi_inference.cc` and `get_model_metadata_impl.cc` of tensorflow/serving.
`tensorflow_calls.py` has the rules of the calls themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inference.errors import BadInput, Unsupported, cut
from inference.protocols.messages import message_class
from inference.protocols.tensor_messages import DATA_TYPES, tensor_of, write_tensor
from inference.protocols.tensorflow_calls import DEFAULT_SIGNATURE, classifications, regressions
from inference.protocols.tensorflow_errors import type_name
from inference.protocols.tensorflow_serving import Method, ModelUrl, VersionStatus
from inference.protocols.tensors import check_rows
from inference.schema import Block, DType, GraphSignature, GraphTensor

SERVING = "tensorflow.serving"
METHODS = {Method.CLASSIFY: "tensorflow/serving/classify", Method.REGRESS: "tensorflow/serving/regress"}
_SIGNATURE_DEF = "signature_def"
#: TensorFlow's code of an error of no other kind
_UNKNOWN = 2


def model_of(request: Any, method: Method) -> ModelUrl:
    """Return the model, and the version or label, that a request or a task names.

    Raises:
        BadInput: it names no model.
    """
    if not request.HasField("model_spec"):
        raise BadInput("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise BadInput("Found ModelSpec with an empty model name.")
    label = spec.version_label if spec.WhichOneof("version_choice") == "version_label" else None
    # version 0 means the active one, as in OpenVINO Model Server
    return ModelUrl(spec.name, method, spec.version.value or None, label)


def signature_of(request: Any) -> str:
    """Return the signature name of a request or a task."""
    return str(request.model_spec.signature_name) or DEFAULT_SIGNATURE


def bytes_of_elements(request: Any) -> int:
    """Return the size of the tensors of a `PredictRequest` that have single elements, which take time to convert."""
    return sum(0 if one.tensor_content else one.ByteSize() for one in request.inputs.values())


def predict_tensors(request: Any, inputs: Sequence[GraphTensor]) -> Block:
    """Return the tensors of a `PredictRequest`, in any shapes.

    Raises:
        BadInput: names or types are not those of `inputs`, or a tensor is malformed; TensorFlow Serving's words.
    """
    sent, known = request.inputs, {one.name: one for one in inputs}
    required = {one.name for one in inputs if not one.optional}
    if len(sent) > len(known) or (len(sent) < len(known) and not required <= sent.keys()):
        raise _other_inputs(set(sent), set(known), required)
    tensors: Block = {}
    for number, name in enumerate(sorted(sent)):
        if name not in known:
            raise BadInput(
                f"input tensor alias not found in signature: {cut(name)}. "
                f"Inputs expected to be in the set {_set(known)}."
            )
        tensors[name] = tensor_of(sent[name], name)
        element, found = known[name].element, tensors[name]
        if element is None or found.dtype != element.numpy:
            raise BadInput(f"Expects arg[{number}] to be {_type_in(known[name])} but {_type_of(found)} is provided")
    return tensors


def _other_inputs(sent: set[str], known: set[str], required: set[str]) -> BadInput:
    return BadInput(
        f"input size does not match signature: {len(sent)}!={len(known)} len({_set(sent)}) != len({_set(known)}). "
        f"Sent extra: {_set(sent - known)}. Missing but required: {_set(required - sent)}."
    )


def _set(names: Iterable[str]) -> str:
    return f"{{{cut(','.join(sorted(names)))}}}"


def _type_in(declared: GraphTensor) -> str:
    if declared.element is None:
        return declared.dtype.removeprefix("DT_").lower()
    return type_name(declared.element)


def _type_of(values: Any) -> str:
    return type_name(DType.STRING if values.dtype.kind == "O" else DType(values.dtype.name))


def wanted_outputs(request: Any, outputs: Sequence[GraphTensor]) -> list[str]:
    """Return the names of the outputs that a `PredictRequest` wants: all, if it names none.

    Raises:
        BadInput: the signature has no such output, the request names one twice, or no message here can hold it.
    """
    known = {one.name: one for one in outputs}
    wanted = list(request.output_filter) or list(known)
    for place, name in enumerate(wanted):
        if name not in known:
            raise BadInput(
                f"output tensor alias not found in signature: {cut(name)} "
                f"Outputs expected to be in the set {_set(known)}."
            )
        if name in wanted[:place]:
            raise BadInput(f"duplicate output tensor alias: {cut(name)}")
        if known[name].element is None:
            raise BadInput(f"output {cut(name)} has the type {_type_in(known[name])}, which is not supported")
    return wanted


def predict_response(path: ModelUrl, version: int, signature: str, outputs: Block, wanted: Iterable[str]) -> Any:
    """Return the `PredictResponse` with these outputs."""
    response = message_class(f"{SERVING}.PredictResponse")()
    write_spec(response, path, version, signature)
    for name in wanted:
        write_tensor(response.outputs[name], outputs[name])
    return response


def write_spec(response: Any, path: ModelUrl, version: int, signature: str) -> None:
    """Write the model, version and signature that computed an answer into it."""
    response.model_spec.name = path.model
    response.model_spec.version.value = version
    response.model_spec.signature_name = signature


def read_examples(request: Any) -> list[bytes]:
    """Return the serialized `tf.train.Example`s of a request's input. A common context precedes each of them.

    Raises:
        BadInput: there are none, or too many.
    """
    kind = request.input.WhichOneof("kind")
    given = getattr(request.input, kind) if kind else None
    if given is None or not given.examples:
        raise BadInput("Input is empty.")
    check_rows(len(given.examples))
    context = given.context if kind == "example_list_with_context" else b""
    # Protocol Buffers read two adjacent messages of one type as one
    return [context + example for example in given.examples] if context else list(given.examples)


def write_classifications(result: Any, outputs: Block, examples: int) -> None:
    """Write label and score of each class of each example into a `ClassificationResult`.

    Raises:
        BadInput: the outputs are no classes; see `classifications`.
    """
    for labels, scores in zip(*classifications(outputs, examples), strict=True):
        one = result.classifications.add()
        for label, score in zip(labels, scores, strict=True):
            one.classes.add(label=label if isinstance(label, str) else label.decode("utf-8", "replace"), score=score)


def write_regressions(result: Any, outputs: Block, examples: int) -> None:
    """Write the number of each example into a `RegressionResult`.

    Raises:
        BadInput: the outputs are no numbers of examples; see `regressions`.
    """
    for value in regressions(outputs, examples):
        result.regressions.add(value=value)


def tasks_of(request: Any) -> list[tuple[ModelUrl, str]]:
    """Return what each task of a `MultiInferenceRequest` asks for, and its signature. All have one model and version.

    Raises:
        BadInput: there are none, or they do not fit each other.
        Unsupported: a method is neither classify nor regress.
    """
    by_method = {text: method for method, text in METHODS.items()}
    tasks: dict[str, ModelUrl] = {}
    for task in request.tasks:
        method = by_method.get(task.method_name)
        path, signature = model_of(task, method or Method.PREDICT), signature_of(task)
        first = next(iter(tasks.values()), path)
        if path.model != first.model:
            raise BadInput("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if (path.version, path.label) != (first.version, first.label):
            raise BadInput("All ModelSpecs in a MultiInferenceRequest must access the same version.")
        if signature in tasks:
            raise BadInput(f"Duplicate evaluation of signature: {cut(signature)}")
        if method is None:
            raise Unsupported(f"Unsupported signature method_name: {cut(task.method_name)}")
        tasks[signature] = path
    if not tasks:
        raise BadInput("Inference request must have at least one task")
    return [(path, signature) for signature, path in tasks.items()]


def check_metadata_fields(request: Any) -> None:
    """Check that a `GetModelMetadataRequest` asks for what there is.

    Raises:
        BadInput: it asks for nothing, or for something else.
    """
    if not request.metadata_field:
        raise BadInput("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != _SIGNATURE_DEF:
            raise BadInput(f"Metadata field {cut(field)} is not supported")


def metadata_response(path: ModelUrl, version: int, signatures: Mapping[str, GraphSignature]) -> Any:
    """Return the `GetModelMetadataResponse` that describes the signatures of a version."""
    response = message_class(f"{SERVING}.GetModelMetadataResponse")()
    write_spec(response, path, version, "")
    definitions = message_class(f"{SERVING}.SignatureDefMap")()
    for name, signature in signatures.items():
        definition = definitions.signature_def[name]
        definition.method_name = signature.method
        for field, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
            for tensor in tensors:
                _write_info(getattr(definition, field)[tensor.name], tensor)
    response.metadata[_SIGNATURE_DEF].Pack(definitions)
    return response


def _write_info(info: Any, tensor: GraphTensor) -> None:
    info.name, info.dtype = tensor.node, DATA_TYPES.get(tensor.dtype, 0)
    info.tensor_shape.unknown_rank = tensor.shape is None
    for size in tensor.shape or ():
        info.tensor_shape.dim.add(size=size)


def status_response(versions: Iterable[VersionStatus]) -> Any:
    """Return the `GetModelStatusResponse` with the states of versions."""
    response = message_class(f"{SERVING}.GetModelStatusResponse")()
    for one in versions:
        added = response.model_version_status.add(version=one.version)
        added.state = added.State.Value(one.state)
        added.status.error_code, added.status.error_message = _UNKNOWN if one.error else 0, one.error
    return response
