"""TensorFlow SavedModels, called by signature. Only this file and those that it imports import tensorflow."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.errors import BadInput, ModelError, PredictionFailed
from inference.features import FeatureContract
from inference.logs import get_logger
from inference.models.runtimes.runtime import (
    LoadOptions,
    NoRows,
    SavedSignature,
    as_served,
    cpu_name,
    failed_call,
    gpu_memory_mib,
    row_spec,
    telling_line,
    without_startup_notes,
)
from inference.protocols.tensors import as_text, most_rows, objects, wrong_shape
from inference.schema import Block, DType, GraphSignature, GraphTensor, Signature, TensorSpec, rows_in

# the library reads it when it is loaded: errors only, not pages of notes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

# these import tensorflow
from inference.models.runtimes.saved_model_checks import check_dense, check_opens_no_files
from inference.models.runtimes.saved_model_requests import REQUESTS_FILE, read_requests
from inference.models.runtimes.saved_model_signatures import defaults_of, graph_signatures

log = get_logger(__name__)

_DEFAULT_SIGNATURE = "serving_default"


def load(file: Path, options: LoadOptions, _: FeatureContract | None) -> TensorFlowRuntime:
    """Load the SavedModel whose graph is in `file`, and answer its own warm-up requests."""
    prepare_gpus(options.gpu_memory_share)
    runtime = TensorFlowRuntime(file.parent, options)
    _warm_up_with_own_requests(runtime, file.parent)
    return runtime


def signatures(folder: Path, options: LoadOptions) -> dict[str, SavedSignature]:
    """Return all signatures of the SavedModel in a folder that compute rows, by name.

    Raises:
        ModelError: it cannot be loaded.
    """
    model, declared = _load(folder, options), graph_signatures(folder)
    found = {}
    for name in _names(model):
        function = model.signatures[name]
        try:
            inputs, outputs = _specs(function, declared[name], folder, name)
        except ModelError:
            continue  # it computes no rows
        signature = Signature.of_model(inputs.values(), outputs.values())
        found[name] = SavedSignature(signature, _reads_examples(function) and len(inputs) == 1)
    return found


class TensorFlowRuntime:
    """A SavedModel in memory. Calls the signature directly: one row takes 0.5 ms, with Keras' `predict` 80 ms."""

    def __init__(self, folder: Path, options: LoadOptions) -> None:
        # the signatures have weak references to their variables: the model must live as long as they
        self._model = _load(folder, options)
        self.signature_name = _serving_signature(self._model, folder, options.signature)
        declared = graph_signatures(folder)
        #: what each signature declares, by name
        self.signatures = {name: declared[name] for name in _names(self._model)}
        self._defaults = defaults_of(folder)
        self._functions = {name: _Function(self._model.signatures[name]) for name in self.signatures}
        self._own = self._functions[self.signature_name]
        self.without_rows: str | None = None
        self._inputs: dict[str, TensorSpec] = {}
        self._outputs: dict[str, TensorSpec] = {}
        own = declared[self.signature_name]
        try:
            function = self._model.signatures[self.signature_name]
            self._inputs, self._outputs = _specs(function, own, folder, self.signature_name)
        except NoRows as error:
            if any(one.element is None for one in (*own.inputs, *own.outputs)):
                raise
            self.without_rows = error.message
        #: whether its own signature has answered requests that came with the model
        self.has_answered = False
        self.device = device()
        self.signature = Signature.of_model(self._inputs.values(), self._outputs.values())

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name in the model's own shapes, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised, or gave another number of rows.
            ModelOutOfMemory: so many rows do not fit into the device's memory.
        """
        rows = rows_in(inputs)
        try:
            # `convert_to_tensor` takes twice as long: 21 µs against 12
            tensors = self._own(
                {name: tf.constant(inputs[name], _tf_dtype(spec.dtype)) for name, spec in self._inputs.items()}
            )
        except _FAILURES as error:
            raise _failure(error, rows) from error
        return {spec.name: as_served(tensors[spec.name].numpy(), spec, rows) for spec in self._outputs.values()}

    def call(self, signature: str, tensors: Block) -> Block:
        """Return the outputs of a signature by name. The graph decides which shapes it takes, and gives.

        Text of the outputs is `str`, or `bytes` if it is not UTF-8.

        Raises:
            BadInput: the graph does not take these tensors, whose shapes are not those that it declares; or it cannot
                parse the examples in them.
            PredictionFailed: the model raised.
            ModelOutOfMemory: the tensors do not fit into the device's memory.
        """
        declared = self.signatures[signature]
        tensors = self._defaults.get(signature, {}) | tensors
        try:
            given = {
                one.name: tf.convert_to_tensor(tensors[one.name], _tf_dtype(one.element)) for one in declared.inputs
            }
            outputs = self._functions[signature](given)
        except _FAILURES as error:
            raise _refusal(declared, tensors, error) or _failure(error, most_rows(tensors)) from error
        return {one.name: _as_array(outputs[one.name], one) for one in declared.outputs}


class _Function:
    """A signature's function of tensors by name."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._order = list(function.function_type.parameters)

    def __call__(self, tensors: dict[str, Any]) -> Any:
        # like a call of the signature, but without `inspect`, which binds the arguments and takes as long as a small
        # model (164 µs a call against 89)
        function = self._function
        flat = function.inference_fn.call_flat(*(tensors[name] for name in self._order), *function.captured_inputs)
        return function.function_type.pack_output(flat)


_FAILURES = (tf.errors.OpError, ValueError, TypeError)
#: starts of TensorFlow's messages about examples that cannot be parsed; they name features only
_EXAMPLE_FAULTS = ("Name: <unknown>, Feature: ", "Name: <unknown>, Key: ", "Could not parse example input")


def _failure(error: Exception, rows: int) -> PredictionFailed:
    full = isinstance(error, tf.errors.ResourceExhaustedError)
    return failed_call(rows, telling_line(error), out_of_memory=full)


def _refusal(declared: GraphSignature, tensors: Block, error: Exception) -> BadInput | None:
    """Return the fault of the tensors behind a failure; None if they have none."""
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return None
    for one in declared.inputs:
        if one.shape is not None and not one.fits(tensors[one.name].shape):
            return wrong_shape(one.name, tensors[one.name].shape, one.shape)
    line = telling_line(error)
    return BadInput(line) if line.startswith(_EXAMPLE_FAULTS) else None


def _as_array(tensor: Any, declared: GraphTensor) -> npt.NDArray[Any]:
    if not isinstance(tensor, tf.Tensor) or declared.element is None:
        raise BadInput(f"output {declared.name!r} is {declared.dtype}, which no answer can hold", field=declared.name)
    values = np.asarray(tensor.numpy(), declared.element.numpy)
    if declared.element is DType.STRING:
        return objects([as_text(value) for value in values.ravel().tolist()]).reshape(values.shape)
    return values


def _warm_up_with_own_requests(runtime: TensorFlowRuntime, folder: Path) -> None:
    """Answer the model's own warm-up requests, as TensorFlow Serving does.

    Raises:
        ModelError: the model cannot answer one of them, so the version must not be served.
    """
    answered = 0
    for number, (name, inputs) in enumerate(read_requests(folder), start=1):
        signature = name or _DEFAULT_SIGNATURE
        declared = runtime.signatures.get(signature)
        if declared is None:
            continue
        where = f"{folder / REQUESTS_FILE}: request {number}"
        missing = {one.name for one in declared.inputs if not one.optional} - inputs.keys()
        if missing:
            raise ModelError(f"{where} has no input {min(missing)!r}", field=min(missing))
        try:
            runtime.call(signature, inputs)
        except (BadInput, PredictionFailed) as error:
            raise ModelError(f"{where} fails: {error.message}") from error
        runtime.has_answered |= signature == runtime.signature_name
        answered += 1
    if answered:
        log.info("model.warm_up_requests", folder=str(folder), answered=answered)


@cache
def prepare_gpus(gpu_memory_share: float | None) -> None:
    """Set how much of each GPU's memory TensorFlow takes. Only the first call has an effect.

    Must run before any other use of TensorFlow's devices.
    """
    # TensorFlow looks for GPUs here, not when it is imported
    with without_startup_notes():
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


def _specs(
    function: Any, declared: GraphSignature, folder: Path, name: str
) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
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
        {one.name: _spec(folder, "input", one, inputs[one.name]) for one in declared.inputs},
        {one.name: _spec(folder, "output", one, outputs[one.name]) for one in declared.outputs},
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


def _spec(folder: Path, kind: str, declared: GraphTensor, tensor: Any) -> TensorSpec:
    name = declared.name
    if isinstance(tensor, tf.RaggedTensorSpec | tf.SparseTensorSpec):
        is_ragged = isinstance(tensor, tf.RaggedTensorSpec)
        what, fix = ("ragged", ".to_tensor()") if is_ragged else ("sparse", "tf.sparse.to_dense")
        raise ModelError(f"{folder}: {kind} {name!r} is {what}: export it dense ({fix})", field=name)
    # a graph of TensorFlow 1 loses the shapes of its tensors when it is loaded
    if declared.shape is None:
        raise NoRows(f"{folder}: {kind} {name!r} is no plain tensor of known rank", field=name)
    shape = [None if size < 0 else size for size in declared.shape]
    return row_spec(folder, kind, name, tensor.dtype.name, shape)


def _tf_dtype(dtype: DType | None) -> Any:
    return None if dtype is None else tf.string if dtype is DType.STRING else tf.as_dtype(dtype.value)
