"""Whatever a client sends is decoded, or refused as its mistake: nothing else may come out of the decoders."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.errors import BadInput
from inference.protocols.json_documents import parse
from inference.protocols.open_inference_requests import infer_request, read_body
from inference.protocols.tensorflow_examples import read_examples
from inference.protocols.tensorflow_serving import read_document, tensors_of
from inference.protocols.tensors import check_named, check_tensors, pack
from inference.schema import DType, GraphSignature, Signature, TensorSpec

few = settings(max_examples=30)

SIGNATURES = [
    Signature((TensorSpec("x", dtype, shape),), (TensorSpec("y", DType.FLOAT32),))
    for dtype in (DType.FLOAT32, DType.INT8, DType.BOOL, DType.STRING)
    for shape in ((), (2,), (-1, -1))
] + [Signature((TensorSpec("x", DType.FLOAT16), TensorSpec("z", DType.STRING)), ())]

SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.just({"b64": "YQ=="})
    | st.just({"b64": "?"})
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xz"), inner, max_size=2)
)


@few
@pytest.mark.parametrize("signature", SIGNATURES)
@given(document=st.dictionaries(st.sampled_from(["instances", "inputs", "signature_name"]), VALUES))
def test_a_predict_request_gives_tensors_or_a_refusal(signature: Signature, document: dict[str, Any]) -> None:
    with suppress(BadInput):
        declared = GraphSignature.of_rows(signature).inputs
        tensors, _ = tensors_of(read_document(json.dumps(document).encode()), declared)
        check_named(tensors, declared)
        assert pack(tensors)


@given(document=st.dictionaries(st.sampled_from(["examples", "context", "signature_name"]), VALUES))
def test_an_examples_request_gives_examples_or_a_refusal(document: dict[str, Any]) -> None:
    with suppress(BadInput):
        assert all(isinstance(one, bytes) for one in read_examples(read_document(json.dumps(document).encode())))


INPUT = st.fixed_dictionaries(
    {"name": st.just("x") | VALUES},
    optional={
        "shape": st.lists(st.integers(0, 3) | st.just(2**62), max_size=3) | VALUES,
        "datatype": st.sampled_from(["FP32", "INT8", "BOOL", "BYTES"]) | VALUES,
        "data": VALUES,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 9) | VALUES}) | VALUES,
    },
)


@few
@pytest.mark.parametrize("signature", SIGNATURES)
@given(
    document=st.fixed_dictionaries(
        {"inputs": st.lists(INPUT, max_size=3) | VALUES},
        optional={"outputs": VALUES, "id": VALUES, "parameters": VALUES},
    ),
    data=st.binary(max_size=9),
)
@example(document={"inputs": [{"name": "x", "shape": [1, 0, 2**62], "datatype": "FP32", "data": []}]}, data=b"")
def test_an_infer_request_gives_tensors_or_a_refusal(
    signature: Signature, document: dict[str, Any], data: bytes
) -> None:
    head = json.dumps(document).encode()
    with suppress(BadInput):
        asked = infer_request("m", *read_body(head + data, str(len(head))), signature)
        check_tensors(asked.tensors, signature.inputs)
        assert pack(asked.tensors)


@given(body=st.binary() | st.text(alphabet='[]{},:"\\ud8N0aInfinity-. ').map(str.encode))
@example(body=b'["\\ud800", NaN]')
@example(body=b"[NaN, " + b"9" * 5000 + b"]")
def test_any_bytes_are_json_or_a_refusal(body: bytes) -> None:
    with suppress(BadInput):
        json.dumps(parse(body), ensure_ascii=False).encode()
