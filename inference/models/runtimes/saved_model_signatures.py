"""Reads what the signatures of a SavedModel declare: methods, and names, dtypes and shapes of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import types_pb2

from inference.models.runtimes.saved_model_checks import read_graph
from inference.schema import Block, GraphSignature, GraphTensor


def graph_signatures(folder: Path) -> dict[str, GraphSignature]:
    """Return the signatures of the SavedModel in a folder by name, those of its loader aside."""
    declared = read_graph(folder).signature_def
    return {name: _signature(declared[name]) for name in sorted(declared) if not name.startswith("__")}


def _signature(declared: Any) -> GraphSignature:
    inputs, outputs = _tensors(declared.inputs, declared.defaults), _tensors(declared.outputs, {})
    return GraphSignature(declared.method_name, inputs, outputs)


def defaults_of(folder: Path) -> dict[str, Block]:
    """Return the values of inputs that a request may leave out, by signature."""
    declared = read_graph(folder).signature_def
    return {
        name: {key: tf.make_ndarray(value) for key, value in declared[name].defaults.items()}
        for name in declared
        if declared[name].defaults
    }


def _tensors(declared: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[GraphTensor, ...]:
    # ordered by name: the order of the protobuf map differs between processes
    return tuple(_tensor(name, declared[name], optional=name in defaults) for name in sorted(declared))


def _tensor(name: str, info: Any, *, optional: bool) -> GraphTensor:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return GraphTensor(name, types_pb2.DataType.Name(info.dtype), shape, info.name, optional)
