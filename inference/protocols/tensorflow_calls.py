"""What a call of TensorFlow Serving's protocol takes and gives, on arrays: predict, classify and regress.

TensorFlow Serving gives a SavedModel the tensors of a request, whatever their shapes, and lets the graph decide. The
other formats have no graph that could: their tensors must have the declared shapes, but for a last dimension of 1.
Error texts follow classifier.cc, regressor.cc and predict_util.cc of tensorflow/serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inference.errors import BadInput, cut
from inference.protocols.tensorflow_errors import type_name
from inference.protocols.tensors import check_rows, check_tensors, most_rows, objects, shape_text
from inference.schema import Block, DType, GraphSignature, GraphTensor, Signature, TensorSpec

DEFAULT_SIGNATURE = "serving_default"
#: the protocol's tensor names for models that classify or regress
INPUTS, CLASSES, SCORES, OUTPUTS = "inputs", "classes", "scores", "outputs"


@dataclass(frozen=True)
class Prepared:
    """Tensors of a call, as the worker gets them.

    `splits`: whether their rows may be computed apart. `widened`: a last dimension of 1 was added to some.
    """

    tensors: Block
    splits: bool = True
    widened: bool = False


@dataclass(frozen=True)
class SignatureCall:
    """A way to call a model. `declared`: what the signature takes and gives.

    `name`: the signature for the worker; None for a format without signatures. `rows`: the shapes that such a model
    takes and gives; None if a graph decides.
    """

    name: str | None
    declared: GraphSignature
    rows: Signature | None = None

    def prepare(self, tensors: Block) -> Prepared:
        """Return the tensors as the worker gets them. They have the declared names and dtypes.

        Raises:
            BadInput: there are too many rows, or the shapes are not those of a model without a graph.
        """
        if self.rows is None:
            check_rows(most_rows(tensors) or 1)
            is_whole = len(tensors) == len(self.declared.inputs)  # a value of the model's own has other rows
            return Prepared(tensors, is_whole and self.declared.has_rows and _same_rows(tensors))
        columns = {spec.name: _as_column(tensors[spec.name], spec) for spec in self.rows.inputs}
        check_tensors(columns, self.rows.inputs)
        return Prepared(columns, widened=any(columns[name].ndim > tensors[name].ndim for name in columns))

    def finish(self, outputs: Block, prepared: Prepared) -> Block:
        """Return the outputs as the caller gets them: without a last dimension of 1, if the inputs lacked theirs."""
        if self.rows is None or not prepared.widened:
            return outputs
        return {name: values[..., 0] if name in self.rows.columns else values for name, values in outputs.items()}


def _same_rows(tensors: Block) -> bool:
    return all(values.ndim for values in tensors.values()) and len(set(map(len, tensors.values()))) == 1


def _as_column(values: npt.NDArray[np.generic], spec: TensorSpec) -> npt.NDArray[np.generic]:
    return values[..., None] if spec.shape[-1:] == (1,) and values.ndim == len(spec.shape) else values


def check_classify(signature: GraphSignature) -> None:
    """Check that a signature classifies examples.

    Raises:
        BadInput: it does not.
    """
    if len(signature.inputs) != 1:
        raise BadInput("Expected one input Tensor.")
    names = [tensor.name for tensor in signature.outputs]
    if len(names) not in (1, 2):
        raise BadInput(f"Expected one or two output Tensors, found {len(names)}")
    _check_examples(signature.inputs[0], "classification")
    if not {CLASSES, SCORES} & set(names):
        raise BadInput(
            f'Expected classification signature outputs to contain at least one of "{CLASSES}" or "{SCORES}". '
            f"Signature was: {cut(', '.join(names))}"
        )


def check_regress(signature: GraphSignature) -> None:
    """Check that a signature regresses examples.

    Raises:
        BadInput: it does not.
    """
    if len(signature.inputs) != 1:
        raise BadInput("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise BadInput("Expected one output Tensor.")
    _check_examples(signature.inputs[0], "regression")
    if signature.outputs[0].name != OUTPUTS:
        raise BadInput(f"No regression outputs found in SignatureDef: {signature.outputs[0].name}")


def _check_examples(only: GraphTensor, kind: str) -> None:
    if only.name != INPUTS:
        raise BadInput(f"No {kind} inputs found in SignatureDef: {only.name}")
    if only.element is not DType.STRING:
        name = only.dtype if only.element is None else type_name(only.element)
        raise BadInput(f"Expects arg[0] to be {name} but string is provided")


def example_tensors(examples: Sequence[bytes]) -> Block:
    """Return the input of a signature that classifies or regresses: serialized `tf.train.Example`s, one a row."""
    return {INPUTS: objects(examples)}


def classifications(outputs: Block, examples: int) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float32]]:
    """Return label and score of each class, [examples, classes] each: "" and 0 for those that the model does not give.

    Raises:
        BadInput: the outputs have other shapes or types.
    """
    labels, scores = outputs.get(CLASSES), outputs.get(SCORES)
    for name, values, wanted in ((CLASSES, labels, "DT_STRING"), (SCORES, scores, "DT_FLOAT")):
        if values is not None:
            _check_classes(name, values, wanted, examples)
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise BadInput(
            f"Tensors class and score should match in dim_size(1). Got {labels.shape[1]} vs. {scores.shape[1]}"
        )
    if labels is None:
        labels = np.full(() if scores is None else scores.shape, "", dtype=object)
    return labels, np.zeros(labels.shape, np.float32) if scores is None else scores


def _check_classes(name: str, values: npt.NDArray[np.generic], wanted: str, examples: int) -> None:
    if values.ndim != 2:
        raise BadInput(f"Expected Tensor shape: [batch_size num_classes] but got {shape_text(values.shape)}")
    if _graph_dtype(values) != wanted:
        raise BadInput(f"Expected {name} Tensor of {wanted}. Got: {_graph_dtype(values)}")
    if len(values) != examples:
        raise BadInput(f"Expected {name} output batch size of {examples}. Got: {len(values)}")


def regressions(outputs: Block, examples: int) -> npt.NDArray[np.float32]:
    """Return the number of each example.

    Raises:
        BadInput: the output has another shape or type.
    """
    values = outputs[OUTPUTS]
    if not (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)):
        raise BadInput(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{shape_text(values.shape)}"
        )
    if len(values) != examples:
        raise BadInput(f"Input batch size did not match output batch size: {examples} vs. {len(values)}")
    if _graph_dtype(values) != "DT_FLOAT":
        raise BadInput(f"Expected output Tensor of DT_FLOAT.  Got: {_graph_dtype(values)}")
    return values.reshape(-1)


def _graph_dtype(values: npt.NDArray[np.generic]) -> str:
    element = DType.STRING if values.dtype.kind == "O" else DType(values.dtype.name)
    return GraphTensor.of_rows(TensorSpec("", element)).dtype
