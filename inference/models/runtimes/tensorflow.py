"""TensorFlow SavedModels, called by signature. The only file that imports tensorflow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from inference.errors import ModelError, ModelOutOfMemory, PredictionFailed
from inference.features import FeatureContract
from inference.logs import get_logger
from inference.models.runtimes.runtime import (
    LoadOptions,
    SavedSignature,
    as_served,
    cpu_name,
    gpu_memory_mib,
    row_spec,
    telling_line,
)
from inference.schema import Block, DType, Signature, TensorSpec, rows_in

# the library reads it when it is loaded: errors only, not pages of notes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

# this imports tensorflow
from inference.models.runtimes.saved_model_checks import check_dense, check_opens_no_files

log = get_logger(__name__)

_DEFAULT_SIGNATURE = "serving_default"
REQUESTS_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
#: TensorFlow Serving's own limit
MOST_REQUESTS = 1_000
#: a thousand requests of a small picture each
_MOST_BYTES = 256 << 20

_TENSOR_FILE = "tensorflow/core/framework/tensor.proto"
_PACKAGE = "forecache.warm_up"
#: the fields of TensorFlow Serving's messages that matter here: the package with all of them needs one version of
#: TensorFlow. Message → fields as (name, number, type)
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "ModelSpec": [("signature_name", 3, "string")],
    "Input": [("key", 1, "string"), ("value", 2, ".tensorflow.TensorProto")],
    "PredictRequest": [("model_spec", 1, "ModelSpec"), ("inputs", 2, "repeated Input")],
    "PredictLog": [("request", 1, "PredictRequest")],
    "PredictionLog": [("predict_log", 6, "PredictLog")],
}


def load(file: Path, options: LoadOptions, _: FeatureContract | None) -> TensorFlowRuntime:
    """Load the SavedModel whose graph is in `file`, and answer its own warm-up requests."""
    prepare_gpus(options.gpu_memory_share)
    runtime = TensorFlowRuntime(file.parent, options)
    _warm_up_with_own_requests(runtime, file.parent)
    return runtime


def signatures(folder: Path, options: LoadOptions) -> dict[str, SavedSignature]:
    """Return all signatures of the SavedModel in a folder that can be served, by name.

    Raises:
        ModelError: it cannot be loaded.
    """
    model = _load(folder, options)
    found = {}
    for name in _names(model):
        function = model.signatures[name]
        try:
            inputs, outputs = _specs(function, folder, name)
        except ModelError:
            continue  # it cannot be served
        signature = Signature.of_model(inputs.values(), outputs.values())
        found[name] = SavedSignature(signature, _reads_examples(function) and len(inputs) == 1)
    return found


class TensorFlowRuntime:
    """A SavedModel in memory. Calls the signature directly: one row takes 0.5 ms, with Keras' `predict` 80 ms."""

    def __init__(self, folder: Path, options: LoadOptions) -> None:
        # the signature has weak references to its variables: the model must live as long as it
        self._model = _load(folder, options)
        self.signature_name = _serving_signature(self._model, folder, options.signature)
        self._function = self._model.signatures[self.signature_name]
        self._inputs, self._outputs = _specs(self._function, folder, self.signature_name)
        self._order = list(self._function.function_type.parameters)
        self.device = device()
        self.signature = Signature.of_model(self._inputs.values(), self._outputs.values())

    @property
    def input_names(self) -> set[str]:
        """The names of the inputs."""
        return set(self._inputs)

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name in the model's own shapes, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised, or gave another number of rows.
            ModelOutOfMemory: so many rows do not fit into the device's memory.
        """
        rows = rows_in(inputs)
        try:
            tensors = self._call(
                {name: tf.convert_to_tensor(inputs[name], dtype=_tf_dtype(spec)) for name, spec in self._inputs.items()}
            )
        except tf.errors.ResourceExhaustedError as error:
            raise ModelOutOfMemory(f"{rows} rows do not fit into memory: {telling_line(error)}") from error
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise PredictionFailed(f"the model failed: {telling_line(error)}") from error
        return {spec.name: as_served(tensors[spec.name].numpy(), spec, rows) for spec in self._outputs.values()}

    def _call(self, tensors: dict[str, Any]) -> Any:
        # like a call of the signature, but without `inspect`, which binds the arguments and takes as long as a small
        # model (164 µs a call against 89)
        function = self._function
        flat = function.inference_fn.call_flat(*(tensors[name] for name in self._order), *function.captured_inputs)
        return function.function_type.pack_output(flat)


def _warm_up_with_own_requests(runtime: TensorFlowRuntime, folder: Path) -> None:
    """Answer the model's own warm-up requests, as TensorFlow Serving does.

    Raises:
        ModelError: the model cannot answer one of them, so the version must not be served.
    """
    answered = 0
    for number, (signature, inputs) in enumerate(read_requests(folder), start=1):
        if (signature or _DEFAULT_SIGNATURE) != runtime.signature_name:
            continue
        where = f"{folder / REQUESTS_FILE}: request {number}"
        missing = runtime.input_names - inputs.keys()
        if missing:
            raise ModelError(f"{where} has no input {min(missing)!r}", field=min(missing))
        try:
            runtime.predict(inputs)
        except PredictionFailed as error:
            raise ModelError(f"{where} fails: {error.message}") from error
        answered += 1
    if answered:
        log.info("model.warm_up_requests", folder=str(folder), answered=answered)


@cache
def prepare_gpus(gpu_memory_share: float | None) -> None:
    """Set how much of each GPU's memory TensorFlow takes. Only the first call has an effect.

    Must run before any other use of TensorFlow's devices.
    """
    gpus = tf.config.list_physical_devices("GPU")
    sizes = gpu_memory_mib() if gpus and gpu_memory_share is not None else []
    for index, gpu in enumerate(gpus):
        if gpu_memory_share is None:
            tf.config.experimental.set_memory_growth(gpu, True)
        else:
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=int(sizes[index] * gpu_memory_share))
            tf.config.set_logical_device_configuration(gpu, [limit])


def device() -> str:
    """Return the name of TensorFlow's first GPU, else of the processors."""
    for gpu in tf.config.get_visible_devices("GPU"):
        return str(tf.config.experimental.get_device_details(gpu).get("device_name", "gpu"))
    return cpu_name()


def _load(folder: Path, options: LoadOptions) -> Any:
    if not options.allow_code:
        check_opens_no_files(folder)
    try:
        return tf.saved_model.load(str(folder))
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded as a SavedModel: {telling_line(error)}", field="path") from error


def _names(model: Any) -> list[str]:
    return sorted(name for name in getattr(model, "signatures", {}) if not name.startswith("__"))


def _specs(function: Any, folder: Path, name: str) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Return a signature's inputs and outputs by name.

    Raises:
        ModelError: one of them cannot be served, or the outputs have no names.
    """
    if not isinstance(function.structured_outputs, dict) or not function.structured_outputs:
        raise ModelError(f"{folder}: its signature gives no named outputs", field="path")
    # ordered by name: the order of the protobuf map differs between processes
    inputs = dict(sorted(function.structured_input_signature[1].items()))
    outputs = dict(sorted(function.structured_outputs.items()))
    check_dense(folder, name, inputs)
    return (
        {name: _spec(folder, "input", name, tensor) for name, tensor in inputs.items()},
        {name: _spec(folder, "output", name, tensor) for name, tensor in outputs.items()},
    )


def _reads_examples(function: Any) -> bool:
    """Tell whether a signature parses serialized tf.Examples."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return any(node.op.startswith("Parse") and "Example" in node.op for node in nodes)


def _serving_signature(model: Any, folder: Path, wanted: str | None) -> str:
    """Return the name of the signature to serve: the wanted one, else the default one, else the only one."""
    names = _names(model)
    found = ", ".join(names) or "none"
    if wanted is not None:
        if wanted not in names:
            raise ModelError(
                f'{folder} has no signature {wanted!r} (found: {found}): correct "signature" under [models.NAME]',
                field="signature",
            )
        return wanted
    if _DEFAULT_SIGNATURE in names:
        name = _DEFAULT_SIGNATURE
    elif len(names) == 1:
        name = names[0]
    else:
        choose = f'choose one by signature = "{names[0]}" under [models.NAME], or ' if names else ""
        raise ModelError(
            f"{folder} has no signature {_DEFAULT_SIGNATURE!r} (found: {found}): {choose}"
            "export it with model.export(path), or pass signatures= to tf.saved_model.save",
            field="path",
        )
    return name


def _spec(folder: Path, kind: str, name: str, tensor: Any) -> TensorSpec:
    if isinstance(tensor, tf.RaggedTensorSpec | tf.SparseTensorSpec):
        is_ragged = isinstance(tensor, tf.RaggedTensorSpec)
        what, fix = ("ragged", ".to_tensor()") if is_ragged else ("sparse", "tf.sparse.to_dense")
        raise ModelError(f"{folder}: {kind} {name!r} is {what}: export it dense ({fix})", field=name)
    if not isinstance(tensor, tf.TensorSpec) or tensor.shape.rank is None:
        raise ModelError(f"{folder}: {kind} {name!r} is no plain tensor of known rank", field=name)
    return row_spec(folder, kind, name, tensor.dtype.name, tensor.shape.as_list())


def _tf_dtype(spec: TensorSpec) -> Any:
    return tf.string if spec.dtype is DType.STRING else tf.as_dtype(spec.dtype.value)


def read_requests(folder: Path) -> Iterator[tuple[str, Block]]:
    """Yield the signature's name ("" for the default one) and the inputs of each request to predict, in order.

    Reads `assets.extra/tf_serving_warmup_requests`, a TFRecord file of `tensorflow.serving.PredictionLog`, if there is
    one. Leaves out requests to classify or regress.

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
    except (tf.errors.OpError, DecodeError, TypeError) as error:
        raise ModelError(f"{file} cannot be read as warm-up requests: {' '.join(str(error).split())[:200]}") from error


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
    if kind == "string":
        field.type = field.TYPE_STRING
    else:
        field.type = field.TYPE_MESSAGE
        field.type_name = kind if kind.startswith(".") else f".{_PACKAGE}.{kind}"
    return field
