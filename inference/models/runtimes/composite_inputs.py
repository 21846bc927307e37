"""Finds ragged and sparse tensors among a SavedModel's inputs, of which a signature shows only the parts.

`tf.saved_model.save` takes the argument `r` apart into the inputs `r`, `r_1` (and `r_2`). The function that the
signature calls still says what they were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2, struct_pb2

from inference.errors import ModelError

_KINDS = {
    struct_pb2.TypeSpecProto.RAGGED_TENSOR_SPEC: "ragged",
    struct_pb2.TypeSpecProto.SPARSE_TENSOR_SPEC: "sparse",
}


def check_dense(folder: Path, signature: str, inputs: Collection[str]) -> None:
    """Refuse a signature whose inputs are parts of a ragged or sparse tensor.

    Raises:
        ModelError: names the parts, and the fix.
    """
    parts = {name: [name, *(f"{name}_{n}" for n in (1, 2) if f"{name}_{n}" in inputs)] for name in inputs}
    composite = {name: found for name, found in parts.items() if len(found) > 1}
    if not composite:
        return
    kind = next(_kinds_of_arguments(_graph(folder), signature), None)
    if kind:
        name, found = next(iter(composite.items()))
        told = f"{', '.join(map(repr, found[:-1]))} and {found[-1]!r}"
        raise ModelError(
            f"{folder}: {told} are the parts of a {kind} tensor: export a function of dense, padded tensors", field=name
        )


def _graph(folder: Path) -> Any:
    model, binary = saved_model_pb2.SavedModel(), folder / "saved_model.pb"
    if binary.is_file():
        model.ParseFromString(binary.read_bytes())
    else:
        text_format.Parse((folder / "saved_model.pbtxt").read_text(encoding="utf-8"), model)
    return model.meta_graphs[0]


def _kinds_of_arguments(graph: Any, signature: str) -> Iterator[str]:
    """Give "ragged" or "sparse" for each such argument of the functions behind a signature."""
    outputs = {tensor.name.partition(":")[0] for tensor in graph.signature_def[signature].outputs.values()}
    library = {function.signature.name: function for function in graph.graph_def.library.function}
    wrappers = _called(node for node in graph.graph_def.node if node.name in outputs)
    for wrapper in wrappers & library.keys():
        for name in _called(library[wrapper].node_def):
            declared = graph.object_graph_def.concrete_functions.get(name)
            if declared is not None:
                yield from _kinds_in(declared.canonicalized_input_signature)


def _called(nodes: Any) -> set[str]:
    return {node.attr["f"].func.name for node in nodes if "f" in node.attr}


def _kinds_in(value: Any) -> Iterator[str]:
    """Give the kinds of a `StructuredValue`, however deep they are."""
    which = value.WhichOneof("kind")
    if which == "type_spec_value" and value.type_spec_value.type_spec_class in _KINDS:
        yield _KINDS[value.type_spec_value.type_spec_class]
    elif which in ("list_value", "tuple_value"):
        for one in getattr(value, which).values:
            yield from _kinds_in(one)
    elif which == "dict_value":
        for one in value.dict_value.fields.values():
            yield from _kinds_in(one)
