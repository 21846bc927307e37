"""Refuses SavedModels whose graph opens files, or whose inputs are not dense.

A graph is a program. `ReadFile` answers a request with a file of the worker, `WriteFile` replaces one. Only the
variables of a model and its files under `assets` belong to it.

`tf.saved_model.save` splits a ragged or sparse argument `r` into the inputs `r`, `r_1` (and `r_2`). A signature shows
only these. The function that it calls still knows the argument.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.framework import types_pb2, variable_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2, struct_pb2
from tensorflow.python.saved_model import loader_impl

from inference.errors import ModelError

#: operations that open files, run Python, or hold a graph that cannot be checked; old names begin with Experimental
_FORBIDDEN = re.compile(
    r"(Experimental)?("
    r"ReadFile|WriteFile|MatchingFiles|MatchingFilesDataset|RecordInput|Skipgram|GenerateVocabRemapping"
    r"|(WholeFile|TextLine|FixedLengthRecord|TFRecord|LMDB)Reader(V\d)?"
    r"|(TextLine|FixedLengthRecord|TFRecord|CSV|LMDB|Sql)Dataset(V\d)?"
    r"|(Cache|Save|Load)Dataset(V\d)?|DatasetToTFRecord|\w*Snapshot\w*|DistributedSave|DataService\w*|RegisterDataset(V\d)?"
    r"|LoadAndRemapMatrix|CreateSummary(File|Db)Writer|FileSystemSetConfiguration"
    r"|Debug(Identity|Nan|Numeric)\w*|(Eager)?PyFunc|PyFuncStateless"
    r"|DatasetFromGraph|DeserializeIterator|MlirPassthroughOp"
    r")"
)
#: operations on checkpoints: only the load may run them
_WRITES_CHECKPOINTS = frozenset({"Save", "SaveSlices", "SaveV2", "MergeV2Checkpoints"})
_READS_CHECKPOINTS = frozenset({"Restore", "RestoreSlice", "RestoreV2"})
#: operations that read the file in their second input
_READS_ASSET = frozenset({"InitializeTableFromTextFile", "InitializeTableFromTextFileV2", "InitializeTRTResource"})
#: attributes that name a file → their values without one
_FILE_ATTRIBUTES = {
    "vocab_file": re.compile(r"$"),
    "descriptor_source": re.compile(r"$|local://|bytes://"),
    "output_stream": re.compile(r"(?!file:)"),
}
_ASSETS = "saved_model_assets"
_KINDS = {
    struct_pb2.TypeSpecProto.RAGGED_TENSOR_SPEC: "ragged",
    struct_pb2.TypeSpecProto.SPARSE_TENSOR_SPEC: "sparse",
}


def check_opens_no_files(folder: Path) -> None:
    """Refuse the SavedModel in a folder if its graph opens a file that is not the model's.

    Raises:
        ModelError: names the operation or the file, and how to allow it.
    """
    try:
        # the loader's own function takes the same one of several files
        model = loader_impl.parse_saved_model(str(folder))
    except Exception as error:
        raise ModelError(
            f"{folder} cannot be loaded as a SavedModel: {' '.join(str(error).split())[:200]}", field="path"
        ) from error
    for meta_graph in model.meta_graphs:
        found = next(_foreign_files(meta_graph), None)
        if found is not None:
            raise ModelError(
                f"{folder}: its graph {found}, which lets a model read or write files of this machine: export it "
                "without that, or set allow_code = true under the model's settings if you trust who wrote it",
                field="allow_code",
            )


def _foreign_files(meta_graph: Any) -> Iterator[str]:
    """Yield in words what a graph does with files that are not the model's."""
    graph = _Graph(meta_graph)
    for node in graph.all_nodes():
        for name in [node.op, *_named_functions(node)]:
            if _FORBIDDEN.fullmatch(name):
                yield f"holds {name}"
        for name, harmless in _FILE_ATTRIBUTES.items():
            if name in node.attr and not harmless.match(node.attr[name].s.decode(errors="replace")):
                yield f"holds {node.op} with a file as {name}"
    for asset in _asset_definitions(meta_graph):
        path = PurePosixPath(asset.filename)
        if path.is_absolute() or ".." in path.parts:
            yield f"has the asset {asset.filename!r}, outside of its folder"
    serving, restoring = {node.op for node in graph.serving()}, {node.op for node in graph.restoring()}
    for op in sorted(serving & (_WRITES_CHECKPOINTS | _READS_CHECKPOINTS) | restoring & _WRITES_CHECKPOINTS):
        yield f"runs {op} where it is not saved or restored"
    yield from (f"runs {op} with a file that is no asset" for op in graph.initialised_elsewhere())


class _Graph:
    """The nodes and functions of one graph, and which of them run."""

    def __init__(self, meta_graph: Any) -> None:
        self._meta_graph = meta_graph
        self._nodes = {node.name: node for node in meta_graph.graph_def.node}
        self._functions = {one.signature.name: one for one in meta_graph.graph_def.library.function}
        self._objects = meta_graph.object_graph_def
        #: TensorFlow 2 wrote it: the loader runs the functions of the objects, and never the graph itself
        self._has_objects = meta_graph.HasField("object_graph_def")

    def all_nodes(self) -> Iterator[Any]:
        """Yield each node of the graph and of its functions."""
        yield from self._nodes.values()
        for function in self._functions.values():
            yield from function.node_def

    def serving(self) -> Iterator[Any]:
        """Yield each node that a load or a prediction may run, without those that restore variables."""
        signatures = self._meta_graph.signature_def.values()
        names = [tensor.name for signature in signatures for tensor in signature.outputs.values()]
        for collection in self._meta_graph.collection_def.values():
            names.extend([*collection.node_list.value, *_initializers(collection.bytes_list.value)])
        return self._reached(names, self._objects.concrete_functions)

    def restoring(self) -> Iterator[Any]:
        """Yield each node that may run when variables are restored."""
        return self._reached([self._meta_graph.saver_def.restore_op_name], ())

    def initialised_elsewhere(self) -> Iterator[str]:
        """Yield the operations that fill a table from a file that may be no asset."""
        reads_asset = {name for name in self._functions if self._reads_asset(name)}
        for name in reads_asset:
            function = self._functions[name]
            arguments = {one.name for one in function.signature.input_arg}
            yield from _fed_by_others(function.node_def, arguments, reads_asset)
        for name in reads_asset & set(self._objects.concrete_functions):
            bound = [self._objects.nodes[one] for one in self._objects.concrete_functions[name].bound_inputs]
            arguments = self._functions[name].signature.input_arg
            if len(bound) != len(arguments) or any(self._may_name_a_file(one) for one in bound):
                yield name
        if not self._has_objects:
            assets = {tensor.tensor_info.name.partition(":")[0] for tensor in _asset_definitions(self._meta_graph)}
            yield from _fed_by_others(self._nodes.values(), assets, reads_asset)

    def _may_name_a_file(self, bound: Any) -> bool:
        """Tell whether a bound input of a function is text, and no asset."""
        kind = bound.WhichOneof("kind")
        if kind == "constant":
            constant = self._nodes.get(bound.constant.operation)
            return constant is None or constant.attr["dtype"].type == types_pb2.DT_STRING
        return kind not in ("asset", "resource")

    def _reads_asset(self, function: str) -> bool:
        return any(node.op in _READS_ASSET for node in self._reached((), [function]))

    def _reached(self, tensors: Iterable[str], functions: Iterable[str]) -> Iterator[Any]:
        """Yield the nodes that these tensors need, and the nodes of all functions that are called."""
        nodes, calls = list(tensors), list(functions)
        seen: set[str] = set()
        while nodes or calls:
            inner: list[Any] = []
            if nodes:
                name = nodes.pop().lstrip("^").partition(":")[0]
                node = self._nodes.get(name)
                if node is None or name in seen:
                    continue
                seen.add(name)
                nodes.extend(node.input)
                inner = [node]
            else:
                function = calls.pop()
                if function not in self._functions or f"{function}()" in seen:
                    continue
                seen.add(f"{function}()")
                inner = list(self._functions[function].node_def)
            for each in inner:
                calls.extend([each.op, *_named_functions(each)])
                yield each


def _fed_by_others(nodes: Iterable[Any], given: set[str], reads_asset: set[str]) -> Iterator[str]:
    """Yield the operations and function calls that fill a table from an input that is not `given`."""
    by_name = {node.name: node for node in nodes}
    for node in by_name.values():
        if node.op in _READS_ASSET:
            files = [node.input[1]]
        elif not reads_asset.isdisjoint([node.op, *_named_functions(node)]):
            files = [one for one in node.input if not one.startswith("^")]
        else:
            continue
        origins = [_origin(file, by_name) for file in files]
        if any(origin not in given and not _is_resource(by_name.get(origin)) for origin in origins):
            yield node.op


def _origin(tensor: str, nodes: dict[str, Any]) -> str:
    name = tensor.partition(":")[0]
    seen: set[str] = set()
    while name in nodes and nodes[name].op == "Identity" and name not in seen:
        seen.add(name)
        name = nodes[name].input[0].partition(":")[0]
    return name


def _is_resource(node: Any) -> bool:
    return node is not None and (node.op.endswith(("HashTable", "HashTableV2")) or node.op == "VarHandleOp")


def _named_functions(node: Any) -> Iterator[str]:
    """Yield the names of functions in a node's attributes."""
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (one.name for one in value.list.func)


def _initializers(packed: Iterable[bytes]) -> Iterator[str]:
    """Yield the names of the nodes in a collection that initialize variables."""
    for one in packed:
        try:
            yield variable_pb2.VariableDef.FromString(one).initializer_name
        except DecodeError:  # another kind of collection
            continue


def _asset_definitions(meta_graph: Any) -> Iterator[Any]:
    """Yield the loader's assets. Like the loader, reads the collection only if there is no other list."""
    yield from meta_graph.asset_file_def
    if meta_graph.asset_file_def:
        return
    for packed in meta_graph.collection_def[_ASSETS].any_list.value:
        asset = meta_graph_pb2.AssetFileDef()
        packed.Unpack(asset)
        yield asset


def check_dense(folder: Path, signature: str, inputs: Collection[str]) -> None:
    """Refuse a signature whose inputs are the components of a ragged or sparse tensor.

    Raises:
        ModelError: names the components, and the fix.
    """
    components = {name: [name, *(f"{name}_{n}" for n in (1, 2) if f"{name}_{n}" in inputs)] for name in inputs}
    composite = {name: found for name, found in components.items() if len(found) > 1}
    if not composite:
        return
    kind = next(_kinds_of_arguments(read_graph(folder), signature), None)
    if kind:
        name, found = next(iter(composite.items()))
        names = f"{', '.join(map(repr, found[:-1]))} and {found[-1]!r}"
        raise ModelError(
            f"{folder}: {names} are the parts of a {kind} tensor: export a function of dense, padded tensors",
            field=name,
        )


def read_graph(folder: Path) -> Any:
    """Return the first `MetaGraphDef` of the SavedModel in a folder: Forecache serves no other."""
    model, binary = saved_model_pb2.SavedModel(), folder / "saved_model.pb"
    if binary.is_file():
        model.ParseFromString(binary.read_bytes())
    else:
        text_format.Parse((folder / "saved_model.pbtxt").read_text(encoding="utf-8"), model)
    return model.meta_graphs[0]


def _kinds_of_arguments(graph: Any, signature: str) -> Iterator[str]:
    """Yield "ragged" or "sparse" for each such argument of the functions behind a signature."""
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
    """Yield the kinds in a `StructuredValue`, at any depth."""
    which = value.WhichOneof("kind")
    if which == "type_spec_value" and value.type_spec_value.type_spec_class in _KINDS:
        yield _KINDS[value.type_spec_value.type_spec_class]
    elif which in ("list_value", "tuple_value"):
        for one in getattr(value, which).values:
            yield from _kinds_in(one)
    elif which == "dict_value":
        for one in value.dict_value.fields.values():
            yield from _kinds_in(one)
