"""Clients of the Open Inference Protocol with packages of their own: Triton's with its old gRPC, MLServer's codecs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from tests.support.mlserver import REQUIREMENT
from tests.support.peers import peer_python, run_peer
from tests.support.plain_onnx import tensor, write_onnx
from tests.support.ports import free_port
from tests.support.stack import Stack
from tests.support.triton_models import write_simple

# their environments are made the first time
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

#: it pins a gRPC of 2024
TRITON = "tritonclient[grpc]==2.60.0"

TRITONS_CLIENT = """
import json, queue, sys
import grpc, numpy as np, tritonclient.grpc as triton

numbers, ones = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)

def pair():
    sent = [triton.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    return [one.set_data_from_numpy(values) for one, values in zip(sent, (numbers, ones))]

with triton.InferenceServerClient(sys.argv[1]) as client:
    sums = client.infer("simple", pair(), compression_algorithm="gzip").as_numpy("OUTPUT0").ravel().tolist()
    done = queue.Queue()
    client.start_stream(lambda result, error: done.put(result if error is None else error))
    for n in range(10):
        client.async_stream_infer("simple", pair(), request_id=str(n))
    ids = [done.get(timeout=30).get_response().id for _ in range(10)]
    client.stop_stream()
    found = {
        "grpc": grpc.__version__, "ready": client.is_model_ready("simple"), "sums": sums, "ids": ids,
        "config": client.get_model_config("simple", as_json=True)["config"]["name"],
        "index": [one.name for one in client.get_model_repository_index().models],
        "statistics": len(client.get_inference_statistics("simple").model_stats),
    }
print(json.dumps(found))
"""

MLSERVERS_CODECS = """
import json, sys, urllib.request
import grpc, numpy as np, pandas as pd
from mlserver.codecs import NumpyCodec, PandasCodec, StringCodec
from mlserver.grpc import dataplane_pb2_grpc
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.types import InferenceRequest, InferenceResponse

http, address = sys.argv[1:3]

def infer(request):
    sent = request.model_dump_json().encode()
    with urllib.request.urlopen(f"{http}/v2/models/shop/infer", sent) as response:
        return InferenceResponse.model_validate_json(response.read())

frame = pd.DataFrame({"price": [0.1, None, 3.0], "count": [1, 2, 3], "colour": ["red", "grün", ""]})
frame["colour"] = frame["colour"].astype(object)  # the codec does not know pandas 3's own type of texts

request = PandasCodec.encode_request(frame, use_bytes=False)
by_rest = PandasCodec.decode_response(infer(request))

by_name = InferenceRequest(inputs=[
    NumpyCodec.encode_input("price", np.float32([0.1, 2])), NumpyCodec.encode_input("count", np.float32([1, 2])),
    StringCodec.encode_input("colour", ["red", "blue"], use_bytes=False),
])
total, colour = infer(by_name).outputs

with grpc.insecure_channel(address) as channel:
    stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel)
    message = ModelInferRequestConverter.from_types(PandasCodec.encode_request(frame.dropna()), model_name="shop")
    answer = ModelInferResponseConverter.to_types(stub.ModelInfer(message))
    by_grpc = PandasCodec.decode_response(answer)

def shown(found):
    texts = [one.decode() if isinstance(one, bytes) else one for one in found["same"]]
    return [[None if one != one else round(float(one), 3) for one in found["total"]], texts]

print(json.dumps({
    "rest": shown(by_rest), "grpc": shown(by_grpc),
    "arrays": [NumpyCodec.decode_output(total).ravel().tolist(), StringCodec.decode_output(colour)],
}))
"""


def write_shop(folder: Path) -> None:
    """Write a version of columns: price and count [rows] float32 → their total; colour [rows] text → the same."""
    nodes = [helper.make_node("Add", ["price", "count"], ["total"]), helper.make_node("Identity", ["colour"], ["same"])]
    inputs = [tensor("price"), tensor("count"), tensor("colour", dtype=TensorProto.STRING)]
    write_onnx(folder, nodes, inputs, [tensor("total"), tensor("same", dtype=TensorProto.STRING)])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("clients")
    write_simple(folder / "simple" / "1")
    write_shop(folder / "shop" / "1")
    models = "".join(
        f'[models.{name}]\npath = "{name}"\nrealtime = {{ timeout_ms = 10000 }}\n' for name in ("simple", "shop")
    )
    with Stack(folder, f"[grpc]\nport = {free_port()}\n{models}") as running:
        running.start("realtime", "api")
        running.wait_ready()
        yield running


def test_tritons_client_with_the_grpc_that_it_pins(stack: Stack) -> None:
    found = json.loads(run_peer(peer_python(TRITON), TRITONS_CLIENT, f"127.0.0.1:{stack.settings.grpc.port}"))
    assert found.pop("grpc") < "1.71"  # older than any that the extra takes
    assert found == {
        "ready": True, "sums": list(range(1, 17)), "ids": [str(n) for n in range(10)], "config": "simple",
        "index": ["simple", "shop"], "statistics": 1,
    }  # fmt: skip


def test_mlservers_codecs_write_frames_arrays_and_texts(stack: Stack) -> None:
    http, address = f"http://127.0.0.1:{stack.api_port}", f"127.0.0.1:{stack.settings.grpc.port}"
    found = json.loads(run_peer(peer_python(REQUIREMENT), MLSERVERS_CODECS, http, address))
    assert found == {
        "rest": [[1.1, None, 6.0], ["red", "grün", ""]],
        "grpc": [[1.1, 6.0], ["red", ""]],
        "arrays": [[pytest.approx(1.1), 4.0], ["red", "blue"]],
    }  # fmt: skip
