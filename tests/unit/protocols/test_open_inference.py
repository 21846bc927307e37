from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from inference.errors import BadInput
from inference.protocols.open_inference import (
    InferRequest,
    datatype,
    infer_answer,
    model_metadata,
)
from inference.protocols.open_inference_requests import infer_request, read_body
from inference.schema import DType, Signature, TensorSpec

SIGNATURE = Signature.of_model(
    [TensorSpec("x", DType.FLOAT32, (2,)), TensorSpec("t", DType.STRING)],
    [TensorSpec("y", DType.FLOAT32, (1,)), TensorSpec("label", DType.STRING)],
)
X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}
T = {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["ü"]}


def request(document: dict[str, Any], binary: bytes = b"", signature: Signature = SIGNATURE) -> InferRequest:
    head = json.dumps(document).encode()
    return infer_request("m", *read_body(head + binary, str(len(head)) if binary else None), signature)


def refusal(document: dict[str, Any], binary: bytes = b"") -> str:
    with pytest.raises(BadInput) as refused:
        request(document, binary)
    return refused.value.message


def test_json_tensors_come_flat_or_nested() -> None:
    for data in ([1, 2.5], [[1, 2.5]]):
        asked = request({"id": "7", "inputs": [X | {"data": data}, T]})
        assert asked.tensors["x"].tolist() == [[1.0, 2.5]]
        assert asked.tensors["x"].dtype == np.float32
        assert asked.tensors["t"].tolist() == ["ü"]
        assert asked.request_id == "7"
        assert asked.outputs == {"y": False, "label": False}


def binary(name: str, shape: list[int], kind: str, size: int) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": kind, "parameters": {"binary_data_size": size}}


def test_binary_tensors_follow_the_json_in_order() -> None:
    data = struct.pack("<2f", 1, 2.5) + struct.pack("<I", 2) + b"\xff\x00"
    asked = request({"inputs": [binary("x", [1, 2], "FP32", 8), binary("t", [1], "BYTES", 6)]}, data)
    assert asked.tensors["x"].tolist() == [[1.0, 2.5]]
    assert asked.tensors["t"].tolist() == [b"\xff\x00"]
    mixed = request({"inputs": [T, binary("x", [1, 2], "FP32", 8)]}, data[:8])
    assert mixed.tensors["x"].tolist() == [[1.0, 2.5]]


NUMBERS = [dtype for dtype in DType if dtype is not DType.STRING]


@pytest.mark.parametrize("dtype", NUMBERS, ids=datatype)
@pytest.mark.parametrize("as_binary", [True, False], ids=["binary", "json"])
def test_every_datatype_goes_in_and_out(dtype: DType, as_binary: bool) -> None:
    signature = Signature.of_model([TensorSpec("x", dtype, (2,))], [TensorSpec("y", dtype, (2,))])
    values = np.array([[0, 1], [1, 0]]).astype(dtype.numpy)
    if dtype.is_integer:
        values[0, 0] = np.iinfo(dtype.numpy).max
    item = {"name": "x", "shape": [2, 2], "datatype": datatype(dtype)}
    more = {"parameters": {"binary_data_size": values.nbytes}} if as_binary else {"data": values.tolist()}
    outputs = [{"name": "y", "parameters": {"binary_data": as_binary}}]
    asked = request({"inputs": [item | more], "outputs": outputs}, values.tobytes() if as_binary else b"", signature)
    assert (asked.tensors["x"] == values).all()
    answer = infer_answer("m", 1, asked, {"y": asked.tensors["x"]})
    document = json.loads(answer.body[: answer.json_length])
    [output] = document["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype(dtype), [2, 2])
    if as_binary:
        assert output["parameters"] == {"binary_data_size": values.nbytes}
        assert answer.body[answer.json_length :] == values.tobytes()
    else:
        assert answer.json_length is None
        assert output["data"] == values.ravel().tolist()


def test_any_byte_but_zero_is_true() -> None:
    signature = Signature.of_model([TensorSpec("x", DType.BOOL)], [])
    asked = request({"inputs": [binary("x", [3], "BOOL", 3)]}, b"\x00\x01\x07", signature)
    assert asked.tensors["x"].view(np.uint8).tolist() == [0, 1, 1]


def test_the_answer_repeats_the_id_and_says_the_version() -> None:
    outputs = {"y": np.array([[0.5]], np.float32), "label": np.array(["ü"], dtype=object)}
    asked = request({"id": "a", "inputs": [X, T]})
    assert infer_answer("m", 3, asked, outputs).body.decode() == (
        '{"model_name":"m","model_version":"3","id":"a","outputs":['
        '{"name":"y","datatype":"FP32","shape":[1,1],"data":[0.5]},'
        '{"name":"label","datatype":"BYTES","shape":[1],"data":["ü"]}]}'
    )
    assert b'"id"' not in infer_answer("m", 3, request({"inputs": [X, T]}), outputs).body


def test_only_the_outputs_that_are_asked_for_come_and_each_as_it_is_wanted() -> None:
    outputs = {"y": np.array([[np.nan]], np.float32), "label": np.array(["ü"], dtype=object)}
    asked = request(
        {
            "inputs": [X, T],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "label"}, {"name": "y", "parameters": {"binary_data": False}}],
        }
    )
    answer = infer_answer("m", 3, asked, outputs)
    assert answer.body[answer.json_length :] == b"\x02\x00\x00\x00\xc3\xbc"
    assert b'"shape":[1,1],"data":[NaN]' in answer.body
    assert request({"inputs": [X, T], "outputs": [{"name": "y"}]}).outputs == {"y": False}
    assert request({"inputs": [X, T], "parameters": {"binary_data_output": True}}).outputs == {"y": True, "label": True}


@pytest.mark.parametrize(
    ("document", "data", "message"),
    [
        ({}, b"", "the inference request's 'inputs' must be a list of objects"),
        ({"inputs": [1]}, b"", "the inference request's 'inputs' must be a list of objects"),
        ({"inputs": [{}]}, b"", "an input of the inference request has no 'name'"),
        ({"inputs": [X]}, b"", "expected 2 inputs but got 1 inputs for model 'm': t missing"),
        ({"inputs": [X, X]}, b"", "input 'x' already exists in request"),
        ({"inputs": [X | {"name": "z"}]}, b"", "unexpected inference input 'z' for model 'm'"),
        (
            {"inputs": [X | {"datatype": "BOOL"}]},
            b"",
            "inference input 'x' data-type is 'BOOL', but model 'm' expects 'FP32'",
        ),
        (
            {"inputs": [X | {"shape": [1, 3]}]},
            b"",
            "unexpected shape for input 'x' for model 'm'. Expected [-1,2], got [1,3]",
        ),
        ({"inputs": [X | {"shape": [-1, 2]}]}, b"", "input 'x' must have a 'shape', a list of sizes"),
        (
            {"inputs": [X | {"shape": [2, 2]}]},
            b"",
            "unexpected number of elements 2 for input 'x', expecting 4",
        ),
        ({"inputs": [X | {"data": [1, True]}]}, b"", "unable to parse 'data' of input 'x': not all of it is FP32"),
        (
            {"inputs": [X | {"data": None}]},
            b"",
            "input 'x' must have 'data', a list, or 'binary_data_size' in its parameters",
        ),
        (
            {"inputs": [binary("x", [1, 2], "FP32", 8)]},
            b"1234",
            "unexpected size for input 'x', expecting 4 additional bytes",
        ),
        (
            {"inputs": [binary("x", [1, 2], "FP32", 4)]},
            b"1234",
            "unexpected total byte size 4 for input 'x', expecting 8",
        ),
        ({"inputs": [X, T]}, b"1234", "unexpected additional input data for model 'm'"),
        (
            {"inputs": [X | {"parameters": {"binary_data_size": 8}}]},
            b"12345678",
            "input 'x' has both 'data' and 'binary_data_size'",
        ),
        (
            {"inputs": [X, binary("t", [1], "BYTES", 3)]},
            b"\x01\x00\x00",
            "unable to parse the bytes of input 't': a length is cut off",
        ),
        (
            {"inputs": [binary("x", [1, 2], "FP32", -1)]},
            b"",
            "input 'x': 'binary_data_size' must be a number of bytes",
        ),
        (
            {"inputs": [X | {"parameters": {"shared_memory_region": "r"}}]},
            b"",
            "input 'x': the shared memory extensions are not supported",
        ),
        ({"inputs": [X | {"parameters": 1}]}, b"", "'parameters' must be an object"),
        ({"inputs": [X, T], "outputs": [{"name": "z"}]}, b"", "unexpected inference output 'z' for model 'm'"),
        (
            {"inputs": [X, T], "outputs": [{"name": "y", "parameters": {"classification": -1}}]},
            b"",
            "output 'y': 'classification' must be a number of classes",
        ),
        (
            {"inputs": [X, T], "outputs": [{"name": "label", "parameters": {"classification": 3}}]},
            b"",
            "output 'label' has no classes: its datatype is BYTES",
        ),
        (
            {"inputs": [X, T], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
            b"",
            "output 'y': the shared memory extensions are not supported",
        ),
        (
            {"inputs": [X, T], "parameters": {"timeout": "soon"}},
            b"",
            "parameter 'timeout' must be a number of microseconds",
        ),
        ({"inputs": [X, T], "id": 7}, b"", "the inference request's 'id' must be a string"),
        (
            {"inputs": [X, T], "parameters": {"binary_data_output": 1}},
            b"",
            "parameter 'binary_data_output' must be true or false",
        ),
    ],
)
def test_a_mistake_names_the_tensor_and_what_was_expected(document: dict[str, Any], data: bytes, message: str) -> None:
    # most of these requests lack 't', too
    assert refusal(document, data).partition("; expected 2 inputs")[0].partition("; inputs for")[0] == message


@pytest.mark.parametrize("length", ["3", "-1", "x", "", "9" * 5000])
def test_a_length_beyond_the_body_is_refused(length: str) -> None:
    with pytest.raises(BadInput, match="is no length within the body's 2"):
        read_body(b"{}", length)


def test_a_request_that_is_no_object_is_refused() -> None:
    with pytest.raises(BadInput, match="no JSON object"):
        read_body(b"[]", None)


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(2))))
def test_floats_come_back_from_json_to_the_last_bit(values: np.ndarray) -> None:
    signature = Signature.of_model(SIGNATURE.inputs[:1], [TensorSpec("y", DType.FLOAT32, (2,))])
    asked = InferRequest(None, {}, {"y": False})
    [output] = read_body(infer_answer("m", 1, asked, {"y": values}).body, None)[0]["outputs"]
    body = {"inputs": [X | {"shape": list(values.shape), "data": output["data"]}]}
    back = infer_request("m", body, memoryview(b""), signature).tensors["x"]
    np.testing.assert_array_equal(back, values)


def test_metadata_lists_versions_as_text_and_the_models_own_shapes() -> None:
    assert model_metadata("m", [1, 2], "tensorflow_savedmodel", SIGNATURE) == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "tensorflow_savedmodel",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "t", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 1]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("dtype", [DType.INT8, DType.UINT16, DType.INT64])
def test_integers_stand_for_floats_if_no_digit_is_lost(dtype: DType) -> None:
    # as MLServer's pandas codec writes a column of whole numbers
    signature = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
    item = {"name": "x", "shape": [3, 1], "datatype": datatype(dtype)}
    values = np.array([1, 0, 100], dtype.numpy)
    in_json = request({"inputs": [item | {"data": values.tolist()}]}, signature=signature)
    in_bytes = request(
        {"inputs": [item | {"parameters": {"binary_data_size": values.nbytes}}]}, values.tobytes(), signature
    )
    for asked in (in_json, in_bytes):
        found = asked.tensors["x"]
        assert (found.dtype, found.shape, found.tolist()) == (np.float32, (3,), [1.0, 0.0, 100.0])


@pytest.mark.parametrize("value", [2**24 + 2, -(2**63)])
def test_an_integer_that_would_lose_digits_is_refused(value: int) -> None:
    signature = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))
    item = {"name": "x", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": 8}}
    with pytest.raises(BadInput, match="input 'x' has an integer that FP32 cannot hold without loss"):
        request({"inputs": [item]}, np.int64([value]).tobytes(), signature)
    with pytest.raises(BadInput, match="not all of it is FP32"):
        request(
            {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [value + 1]}]}, signature=signature
        )


def test_an_integer_never_stands_for_another_type() -> None:
    signature = Signature((TensorSpec("x", DType.INT64),), (TensorSpec("y", DType.FLOAT32),))
    with pytest.raises(BadInput, match="data-type is 'INT32', but model 'm' expects 'INT64'"):
        request({"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [1]}]}, signature=signature)


def test_all_faulty_inputs_are_told_at_once() -> None:
    faulty = [X | {"datatype": "BOOL"}, T | {"shape": [1, 7]}, X | {"name": "z"}]
    assert refusal({"inputs": faulty}) == (
        "inference input 'x' data-type is 'BOOL', but model 'm' expects 'FP32'; "
        "unexpected shape for input 't' for model 'm'. Expected [-1], got [1,7]; "
        "unexpected inference input 'z' for model 'm'"
    )


def test_all_faults_of_a_request_are_told_at_once() -> None:
    document = {
        "id": 7,
        "parameters": {"binary_data_output": "yes", "timeout": -1},
        "inputs": [X | {"datatype": "BOOL", "shape": [5]}],
        "outputs": [{"name": "z"}, {"name": "y", "parameters": {"classification": "all"}}],
    }
    assert refusal(document).split("; ") == [
        "the inference request's 'id' must be a string",
        "inference input 'x' data-type is 'BOOL', but model 'm' expects 'FP32'",
        "unexpected shape for input 'x' for model 'm'. Expected [-1,2], got [5]",
        "expected 2 inputs but got 1 inputs for model 'm': t missing",
        "parameter 'binary_data_output' must be true or false",
        "unexpected inference output 'z' for model 'm'",
        "output 'y': 'classification' must be a number of classes",
        "parameter 'timeout' must be a number of microseconds",
    ]
    uneven = [X, T | {"shape": [2], "data": ["a", "b"]}]
    assert refusal({"inputs": uneven}) == "tensor 't' has 2 rows, another one 1"


def test_a_timeout_is_in_microseconds_and_has_a_limit() -> None:
    for sent, seconds in ((0, None), (1_500_000, 1.5), (10**18, 600.0)):
        assert request({"inputs": [X, T], "parameters": {"timeout": sent}}).timeout_s == seconds


COLUMN = Signature((TensorSpec("x", DType.FLOAT32),), (TensorSpec("y", DType.FLOAT32),))


def test_null_is_nan_as_in_mlservers_codecs() -> None:
    item = {"name": "x", "shape": [3, 1], "datatype": "FP32", "data": [1.5, None, 2]}
    assert str(request({"inputs": [item]}, signature=COLUMN).tensors["x"].tolist()) == "[1.5, nan, 2.0]"
    whole = Signature((TensorSpec("x", DType.INT64),), ())
    with pytest.raises(BadInput, match="not all of it is INT64"):
        request({"inputs": [item | {"datatype": "INT64"}]}, signature=whole)


def test_the_doubles_of_a_pandas_frame_become_the_models_floats() -> None:
    item = {"name": "x", "shape": [2, 1], "datatype": "FP64", "data": [0.1, 2]}
    frame = {"content_type": "pd"}
    in_json = request({"inputs": [item], "parameters": frame}, signature=COLUMN)
    in_bytes = request(
        {"inputs": [binary("x", [2, 1], "FP64", 16)], "parameters": frame}, np.float64([0.1, 2]).tobytes(), COLUMN
    )
    for asked in (in_json, in_bytes):
        assert asked.tensors["x"].dtype == np.float32
        assert asked.tensors["x"].tolist() == np.float32([0.1, 2]).tolist()
    with pytest.raises(BadInput, match="data-type is 'FP64', but model 'm' expects 'FP32'"):
        request({"inputs": [item]}, signature=COLUMN)


def test_wanted_classes_come_as_texts_and_other_outputs_as_they_are() -> None:
    signature = Signature.of_model(SIGNATURE.inputs, [TensorSpec("y", DType.FLOAT32, (3,)), SIGNATURE.outputs[1]])
    outputs = {"y": np.array([[0.25, 0.5, 0.125]], np.float32), "label": np.array(["ü"], object)}
    asked = request(
        {"inputs": [X, T], "outputs": [{"name": "label"}, {"name": "y", "parameters": {"classification": 2}}]},
        signature=signature,
    )
    label, scores = json.loads(infer_answer("m", 1, asked, outputs, ["cat", "dog", "bird"]).body)["outputs"]
    assert label["data"] == ["ü"]
    assert (scores["datatype"], scores["shape"]) == ("BYTES", [1, 2])
    assert scores["data"] == ["0.500000:1:dog", "0.250000:0:cat"]
