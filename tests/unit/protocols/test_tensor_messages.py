"""Messages of tensors: every type to bytes and back, and the compiled protocols."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from ovmsclient.tfs_compat.protos.tensorflow.core.framework import tensor_pb2

from inference.errors import BadInput
from inference.protocols.messages import DESCRIPTOR_SET, PROTOS, message_class
from inference.protocols.tensor_messages import MAX_TENSOR_BYTES, tensor_of, varints, write_tensor
from inference.schema import DType

NUMBERS = [dtype for dtype in DType if dtype is not DType.STRING]


def message() -> object:
    return message_class("tensorflow.TensorProto")()


def edges(dtype: DType) -> np.ndarray:
    if dtype is DType.BOOL:
        return np.array([[True, False, True]])
    if dtype.is_float:
        return np.array([[0.1, np.inf, np.nan], [-0.0, 1.5, -2.5]], dtype.numpy)
    limits = np.iinfo(dtype.numpy)
    return np.array([[0, 1, 127], [128 % limits.max, limits.min, limits.max]], dtype.numpy)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_type_comes_back_as_it_was(dtype: DType) -> None:
    values, written = edges(dtype), message()
    write_tensor(written, values)
    # clients have TensorFlow's own messages
    theirs = tensor_pb2.TensorProto.FromString(written.SerializeToString())
    found = tensor_of(message_class("tensorflow.TensorProto").FromString(theirs.SerializeToString()), "x")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_the_contents_of_every_type_are_read(dtype: DType) -> None:
    values, written = edges(dtype), message()
    write_tensor(written, values[:, :0])
    written.tensor_content = values.tobytes()
    for dim, size in zip(written.tensor_shape.dim, values.shape, strict=True):
        dim.size = size
    np.testing.assert_array_equal(tensor_of(written, "x"), values)


def test_contents_of_numbers_are_not_copied() -> None:
    written = message()
    write_tensor(written, np.zeros((0, 1), np.float32))
    written.tensor_content, written.tensor_shape.dim[0].size = bytes(4 * 10), 10
    assert not tensor_of(written, "x").flags.owndata


def test_texts_are_text_if_they_can_be() -> None:
    written = message()
    write_tensor(written, np.array([["ü", b"\xff"]], object))
    assert tensor_of(written, "x").tolist() == [["ü", b"\xff"]]


def test_a_scalar_has_a_shape_without_sizes() -> None:
    written = message()
    write_tensor(written, np.array(3.0, np.float32))
    assert written.HasField("tensor_shape")
    assert (tensor_of(written, "x").shape, float(tensor_of(written, "x"))) == ((), 3.0)


@pytest.mark.parametrize(("given", "read"), [([], [0, 0, 0]), ([5, 7], [5, 7, 7]), ([1, 2, 3, 4], [1, 2, 3])])
def test_missing_elements_are_the_last_one_and_more_are_left_out(given: list[int], read: list[int]) -> None:
    written = message()
    write_tensor(written, np.zeros(0, np.int32))
    written.tensor_shape.dim[0].size = 3
    written.int_val.extend(given)
    assert tensor_of(written, "x").tolist() == read


def test_a_short_message_cannot_ask_for_much_memory() -> None:
    written = message()
    write_tensor(written, np.float32([1]))
    written.tensor_shape.dim[0].size = MAX_TENSOR_BYTES
    with pytest.raises(BadInput, match="takes 33554432 bytes: at most 8388608"):
        tensor_of(written, "x")


def test_a_million_numbers_are_written_as_they_are() -> None:
    values, written = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32), message()
    write_tensor(written, values)
    assert np.array_equal(np.array(written.float_val, np.float32), values.ravel())


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63 - 1, -1, -(2**63)])
def test_a_varint_is_as_protobuf_writes_it(value: int) -> None:
    theirs = tensor_pb2.TensorProto(int64_val=[value]).SerializeToString()
    assert theirs[2:] == varints(np.array([value], np.int64))


def test_the_compiled_messages_are_those_of_the_proto_files(tmp_path: Path) -> None:
    built = tmp_path / "messages.binpb"
    files = sorted(file.name for file in PROTOS.glob("*.proto"))
    # in a process of its own, as `make protos` does: protoc is no library
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--include_imports", f"--descriptor_set_out={built}"]
    subprocess.run([*command, *files], cwd=PROTOS, check=True)
    ours, fresh = (FileDescriptorSet.FromString(each.read_bytes()) for each in (DESCRIPTOR_SET, built))
    assert {one.name: one for one in ours.file} == {one.name: one for one in fresh.file}, "run `make protos`"
