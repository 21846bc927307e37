"""The message classes of the gRPC protocols, from `protos/*.proto`.

`make protos` compiles those files into one descriptor set. The classes live in a descriptor pool of their own:
TensorFlow and its clients register messages of the same names in protobuf's common pool, and a process may load both.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from inference.errors import BadInput

PROTOS = Path(__file__).parent / "protos"
DESCRIPTOR_SET = PROTOS / "messages.binpb"


@cache
def descriptor_pool() -> DescriptorPool:
    """Return the pool with the messages and services of all protocols."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(DESCRIPTOR_SET.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@cache
def message_class(name: str) -> Any:
    """Return the class of a message by its full name, such as `tensorflow.serving.PredictRequest`."""
    return message_factory.GetMessageClass(descriptor_pool().FindMessageTypeByName(name))


@cache
def methods_of(service: str) -> dict[str, tuple[Any, Any]]:
    """Return the classes of request and response of each method of a service, by the method's name."""
    methods = descriptor_pool().FindServiceByName(service).methods
    return {
        one.name: (message_class(one.input_type.full_name), message_class(one.output_type.full_name)) for one in methods
    }


def parse_message(kind: Any, data: bytes) -> Any:
    """Return the message in some bytes.

    Raises:
        BadInput: they are no such message.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise BadInput(f"the bytes are no message {kind.DESCRIPTOR.full_name}") from error
