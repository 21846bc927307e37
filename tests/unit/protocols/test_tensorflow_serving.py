from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import numpy as np
import pytest

from inference.errors import BadInput
from inference.protocols.tensorflow_examples import (
    check_classify,
    check_regress,
    classify_answer,
    read_examples,
    regress_answer,
)
from inference.protocols.tensorflow_serving import (
    Method,
    ModelUrl,
    metadata,
    parse_path,
    predict_answer,
    read_document,
    signature_of,
    tensors_of,
)
from inference.protocols.tensors import MAX_TENSOR_ROWS
from inference.schema import Block, DType, Signature, TensorSpec

X = (TensorSpec("x", DType.FLOAT32, (2,)),)
NUMBER = (TensorSpec("x", DType.FLOAT32),)
WHOLE = (TensorSpec("x", DType.INT32),)
TEXT = (TensorSpec("x", DType.STRING),)
FLAG = (TensorSpec("x", DType.BOOL),)
TWO = (TensorSpec("age", DType.INT64), TensorSpec("name", DType.STRING))


def decode(body: str | dict[str, Any], inputs: tuple[TensorSpec, ...]) -> tuple[Block, bool]:
    text = body if isinstance(body, str) else json.dumps(body)
    return tensors_of(read_document(text.encode()), inputs)


def refusal(body: str | dict[str, Any], inputs: tuple[TensorSpec, ...]) -> str:
    with pytest.raises(BadInput) as refused:
        decode(body, inputs)
    return refused.value.message


@pytest.mark.parametrize(
    ("http_method", "path", "found"),
    [
        ("POST", "/v1/models/m:predict", ModelUrl("m", Method.PREDICT)),
        ("POST", "/v1/models/m/versions/7:classify", ModelUrl("m", Method.CLASSIFY, version=7)),
        ("POST", "/v1/models/m/labels/stable:regress", ModelUrl("m", Method.REGRESS, label="stable")),
        ("POST", "/V1/Models/m/Versions/0:Predict", ModelUrl("m", Method.PREDICT)),
        ("GET", "/v1/models/m", ModelUrl("m", Method.STATUS)),
        ("GET", "/v1/models/m/versions/3", ModelUrl("m", Method.STATUS, version=3)),
        ("GET", "/v1/models/m/labels/l/metadata", ModelUrl("m", Method.METADATA, label="l")),
    ],
)
def test_paths_say_model_version_label_and_method(http_method: str, path: str, found: ModelUrl) -> None:
    assert parse_path(http_method, path) == found


@pytest.mark.parametrize(
    ("http_method", "path", "message"),
    [
        ("GET", "/v1/foo", "Malformed request: GET /v1/foo"),
        ("GET", "/v1/models/m:predict", "Malformed request: GET /v1/models/m:predict"),
        ("POST", "/v1/models/m", "Malformed request: POST /v1/models/m"),
        ("DELETE", "/v1/models/m", "Malformed request: DELETE /v1/models/m"),
        ("POST", "/v1/models/m/versions/x:predict", "Malformed request: POST /v1/models/m/versions/x:predict"),
        (
            "POST",
            "/v1/models/m/versions/1/labels/a:predict",
            "Malformed request: POST /v1/models/m/versions/1/labels/a:predict",
        ),
        ("GET", "/v1/models", "Missing model name in request."),
        (
            "GET",
            "/v1/models/m/versions/99999999999999999999",
            "Failed to convert version: 99999999999999999999 to numeric.",
        ),
    ],
)
def test_any_other_path_or_verb_is_malformed(http_method: str, path: str, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_path(http_method, path)
    assert refused.value.message == message


def test_rows_of_a_single_input_are_one_tensor() -> None:
    tensors, by_row = decode({"instances": [[1, 2.5], [3, 4]]}, X)
    assert by_row
    assert tensors["x"].dtype == np.float32
    assert tensors["x"].tolist() == [[1.0, 2.5], [3.0, 4.0]]


def test_objects_may_name_the_only_input() -> None:
    tensors, _ = decode({"instances": [{"x": [1, 2]}, {"x": [3, 4]}], "signature_name": "serving_default"}, X)
    assert tensors["x"].tolist() == [[1, 2], [3, 4]]


def test_rows_of_several_inputs_are_objects() -> None:
    tensors, _ = decode({"instances": [{"name": "a", "age": 1}, {"age": 2, "name": "ü"}]}, TWO)
    assert tensors["age"].tolist() == [1, 2]
    assert tensors["name"].tolist() == ["a", "ü"]


def test_columns_are_a_tensor_or_an_object_of_them() -> None:
    tensors, by_row = decode({"inputs": {"age": [1, 2], "name": ["a", "b"], "extra": None}}, TWO)
    assert not by_row
    assert tensors["age"].tolist() == [1, 2]
    assert decode({"inputs": [[1, 2]]}, X)[0]["x"].tolist() == [[1, 2]]
    assert decode({"inputs": {"x": [[1, 2]]}}, X)[0]["x"].tolist() == [[1, 2]]


def test_nan_and_infinity_are_numbers_that_reach_the_model() -> None:
    tensors, _ = decode('{"instances": [NaN, Infinity, -Infinity, 1]}', NUMBER)
    assert np.isnan(tensors["x"][0])
    assert tensors["x"][1:].tolist() == [float("inf"), float("-inf"), 1.0]


def test_base_64_stands_for_bytes_which_are_text_where_they_can_be() -> None:
    b64 = [{"b64": b64encode(data).decode()} for data in (b"\xff\x00", "ü".encode())]
    for body in ({"instances": b64}, {"instances": [{"x": one} for one in b64]}, {"inputs": b64}):
        assert decode(body, TEXT)[0]["x"].tolist() == [b"\xff\x00", "ü"]
    assert decode({"instances": [{"b64": "YWI"}, "c"]}, TEXT)[0]["x"].tolist() == ["ab", "c"]


FAILED = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"


@pytest.mark.parametrize(
    ("body", "inputs", "message"),
    [
        ("", X, "JSON Parse error: The document is empty"),
        ("[1]", X, "JSON Value: [\n    1\n] Is not object"),
        ({}, X, "Missing 'inputs' or 'instances' key"),
        ({"instances": [1], "signature_name": "x"}, X, 'Serving signature name: "x" not found in signature def'),
        (
            {"instances": []},
            X,
            "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array",
        ),
        (
            {"instances": 1},
            X,
            "JSON Value: {\n    \"instances\": 1\n} Excepting 'instances' to be an list/array",
        ),
        (
            {"instances": 1, "inputs": 2},
            X,
            'JSON Value: {\n    "instances": 1,\n    "inputs": 2\n} Not formatted correctly expecting only '
            "one of 'inputs' or 'instances' keys to exist ",
        ),
        (
            {"signature_name": 1},
            X,
            'JSON Value: {\n    "signature_name": 1\n} not formatted correctly. '
            "'signature_name' key must be a string value.",
        ),
        (
            {"instances": [1]},
            TWO,
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        (
            {"inputs": [1]},
            TWO,
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        ({"inputs": {"age": [1]}}, TWO, "Missing named input: name in 'inputs' object."),
        (
            {"instances": [{"age": 1}]},
            TWO,
            "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"age\": 1\n} "
            "keys must be equal to: age,name",
        ),
        (
            {"instances": [{"age": 1, "name": "a", "more": 2}]},
            TWO,
            "Failed to process element: 0 key: more of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: more",
        ),
        (
            {"instances": [{"age": 1, "name": "a"}, 2]},
            TWO,
            "Expecting object but got list at item 1 of input list",
        ),
        (
            {"instances": [[1, 2], {"x": [1, 2]}]},
            X,
            "Expecting value/list but got object at item 1 of input list",
        ),
        (
            {"instances": [1, 1.0]},
            WHOLE,
            FAILED.format(1, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ),
        ({"inputs": [2**31]}, WHOLE, "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
        ({"inputs": [None]}, NUMBER, "JSON Value: null Type: Null is not of expected type: float"),
        ({"inputs": [1, True]}, NUMBER, "JSON Value: true Type: True is not of expected type: float"),
        ({"inputs": ["1"]}, NUMBER, 'JSON Value: "1" Type: String is not of expected type: float'),
        ({"inputs": [1]}, TEXT, "JSON Value: 1 Type: Number is not of expected type: string"),
        ({"inputs": [1]}, FLAG, "JSON Value: 1 Type: Number is not of expected type: bool"),
        (
            {"inputs": [16777217]},
            NUMBER,
            "Cannot convert JSON value: 16777217 to float without loss of precision.",
        ),
        ({"inputs": [1e39]}, NUMBER, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        (
            {"inputs": [{"b65": "YWI="}]},
            TEXT,
            'JSON Value: {\n    "b65": "YWI="\n} not formatted correctly for base64 data',
        ),
        ({"inputs": [{"b64": "?"}]}, TEXT, "Unable to base64 decode"),
        ({"instances": ["a", {"b64": "?"}]}, TEXT, FAILED.format(1, "Unable to base64 decode")),
        ({"instances": [[1, 2], [3]]}, X, FAILED.format(1, "Expecting tensor size: 2 but got: 1")),
        ({"instances": [[[1, 2]], [1, 2]]}, X, FAILED.format(1, "Expecting shape [1,2] but got: [2]")),
        (
            {"inputs": [[1, 2], [3]]},
            X,
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        ({"inputs": [1, [3]]}, X, "Encountered list at unexpected level: 1 expected < 1"),
        (
            {"inputs": [[1], 3]},
            X,
            "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        ({"instances": [[1, 2, 3]]}, X, "tensor 'x' has shape [1,3], but the model takes [-1,2]"),
        ({"inputs": 1}, NUMBER, "tensor 'x' has shape [], but the model takes [-1]"),
        ({"inputs": {"age": [1, 2], "name": ["a"]}}, TWO, "tensor 'name' has 1 rows, another one 2"),
        ({"inputs": []}, NUMBER, f"0 rows: send 1 to {MAX_TENSOR_ROWS} in a request"),
        ({"instances": [0] * 5000}, NUMBER, f"5000 rows: send 1 to {MAX_TENSOR_ROWS} in a request"),
    ],
)
def test_a_mistake_is_told_in_the_words_of_the_protocol(
    body: Any, inputs: tuple[TensorSpec, ...], message: str
) -> None:
    assert refusal(body, inputs) == message


@pytest.mark.parametrize("body", ['{"instances": [1,]}', "{", '{"instances": [nan]}', b"\xff".decode("latin-1")])
def test_what_is_no_json_is_a_parse_error(body: str) -> None:
    assert refusal(body, NUMBER).startswith("JSON Parse error: ")


@pytest.mark.parametrize("word", ["1", "NaN"])
def test_deep_json_is_refused_before_anything_walks_it(word: str) -> None:
    assert refusal('{"inputs": ' + "[" * 100_000 + word + "]" * 100_000 + "}", NUMBER).startswith("JSON Parse error: ")
    assert "more than 64 levels" in refusal('{"inputs": ' + "[" * 64 + word + "]" * 64 + "}", NUMBER)
    assert "more than 64" not in refusal('{"inputs": ' + "[" * 63 + word + "]" * 63 + "}", NUMBER)


def test_a_message_quotes_no_more_than_64_characters_of_the_body() -> None:
    assert len(refusal({"instances": [], "other": "x" * 100_000}, NUMBER)) < 150


def test_the_first_of_many_values_that_does_not_fit_is_found() -> None:
    values: list[Any] = [[0.5] * 3000 for _ in range(50)]
    values[40][2999] = "oops"
    spec = (TensorSpec("x", DType.FLOAT32, (3000,)),)
    assert '"oops"' in refusal({"inputs": values}, spec)


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("float32", [0.2, 1, 1e6, 1e16, 1e-7, -0.0], "[0.2,1.0,1000000.0,1e+16,1e-7,-0.0]"),
        ("float64", [0.1, 2], "[0.1,2.0]"),
        ("float32", [0.2, float("nan"), float("inf"), float("-inf")], "[0.2,NaN,Infinity,-Infinity]"),
        ("int64", [2**62, -1], "[4611686018427387904,-1]"),
        ("uint8", [0, 255], "[0,255]"),
        ("bool", [True, False], "[true,false]"),
    ],
)
def test_numbers_are_written_as_the_protocol_writes_them(dtype: str, value: list[Any], text: str) -> None:
    assert predict_answer({"y": np.array(value, dtype)}, by_row=True).decode() == f'{{"predictions":{text}}}'
    assert predict_answer({"y": np.array(value, dtype)}, by_row=False).decode() == f'{{"outputs":{text}}}'


def test_several_outputs_are_objects_by_row_and_one_object_by_column() -> None:
    outputs = {
        "score": np.array([[0.5], [float("nan")]], np.float32),
        "label": np.array(["ü", "b"], dtype=object),
        "raw_bytes": np.array(["ab", "c"], dtype=object),
    }
    assert predict_answer(outputs, by_row=True).decode() == (
        '{"predictions":[{"score":[0.5],"label":"ü","raw_bytes":{"b64":"YWI="}},'
        '{"score":[NaN],"label":"b","raw_bytes":{"b64":"Yw=="}}]}'
    )
    assert predict_answer(outputs, by_row=False).decode() == (
        '{"outputs":{"score":[[0.5],[NaN]],"label":["ü","b"],"raw_bytes":[{"b64":"YWI="},{"b64":"Yw=="}]}}'
    )


def test_rows_need_outputs_of_the_same_number_of_rows() -> None:
    outputs = {"a": np.zeros(2), "b": np.zeros(3)}
    with pytest.raises(BadInput, match="Tensor name: b has inconsistent batch size: 3 expecting: 2"):
        predict_answer(outputs, by_row=True)
    assert predict_answer(outputs, by_row=False) == b'{"outputs":{"a":[0.0,0.0],"b":[0.0,0.0,0.0]}}'


def test_metadata_has_sizes_as_text_and_outputs_as_the_model_gives_them() -> None:
    signature = Signature.of_model(X, [TensorSpec("y", DType.FLOAT32, (1,)), TensorSpec("label", DType.STRING)])
    assert signature.outputs[0].shape == ()
    body = metadata("m", 3, Signature.from_json(signature.to_json()))
    assert body["model_spec"] == {"name": "m", "signature_name": "", "version": "3"}
    default = body["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert default["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}], "unknown_rank": False},
        "name": "x:0",
    }
    assert [dim["size"] for dim in default["outputs"]["y"]["tensor_shape"]["dim"]] == ["-1", "1"]
    assert default["outputs"]["label"]["dtype"] == "DT_STRING"


def test_an_example_is_written_as_protocol_buffers_has_it() -> None:
    # as tf.train.Example(...).SerializeToString() gives it
    assert read_examples({"examples": [{"x": [1.0, 2.5]}]}) == [
        b"\n\x13\n\x11\n\x01x\x12\x0c\x12\n\n\x08\x00\x00\x80?\x00\x00 @"
    ]
    assert read_examples({"context": {"n": [3, -1]}, "examples": [{"t": "a"}]}) == [
        b"\n\x16\n\x14\n\x01n\x12\x0f\x1a\r\n\x0b\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
        b"\n\x0c\n\n\n\x01t\x12\x05\n\x03\n\x01a"
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ({"examples": []}, "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
        ({"examples": {}}, "JSON Value: {\n    \"examples\": {}\n} Expecting 'examples' value to be an list/array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": {"a": 1}}]}, "Feature: x has element with unexpected JSON type: Object"),
        ({"examples": [{"x": [1, 1.5]}]}, "Unexpected element type in feature: x expecting type: int64"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64 element. Only int64 is supported."),
        ({"examples": [{"x": 1e39}]}, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
    ],
)
def test_a_mistake_in_examples_is_told_in_the_words_of_the_protocol(document: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_examples(document)
    assert refused.value.message == message


EXAMPLES = (TensorSpec("inputs", DType.STRING),)
SCORES, CLASSES = TensorSpec("scores", DType.FLOAT32, (2,)), TensorSpec("classes", DType.STRING, (2,))


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (Signature(TWO, (SCORES,)), "Expected one input Tensor."),
        (Signature(X, (SCORES,)), "No classification inputs found in SignatureDef: x"),
        (Signature(EXAMPLES, NUMBER), "Expected classification signature outputs to contain at least one of"),
        (Signature(EXAMPLES, (SCORES, CLASSES, *X)), "Expected one or two output Tensors, found 3"),
        (Signature((TensorSpec("inputs", DType.FLOAT32),), (SCORES,)), "but string is provided"),
        (Signature(EXAMPLES, (TensorSpec("scores", DType.FLOAT64, (2,)),)), "Expected scores Tensor of DT_FLOAT"),
    ],
)
def test_a_model_that_does_not_classify_says_so(signature: Signature, message: str) -> None:
    check_classify({}, Signature(EXAMPLES, (SCORES, CLASSES)))
    with pytest.raises(BadInput) as refused:
        check_classify({}, signature)
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((SCORES, CLASSES), "Expected one output Tensor."),
        (NUMBER, "No regression outputs found in SignatureDef: x"),
        ((TensorSpec("outputs", DType.FLOAT32, (2,)),), "Expected output Tensor shape to be either [batch_size] or"),
        ((TensorSpec("outputs", DType.INT64),), "Expected output Tensor of DT_FLOAT.  Got: int64"),
    ],
)
def test_a_model_that_does_not_regress_says_so(outputs: tuple[TensorSpec, ...], message: str) -> None:
    check_regress({}, Signature.of_model(EXAMPLES, [TensorSpec("outputs", DType.FLOAT32, (1,))]))
    with pytest.raises(BadInput) as refused:
        check_regress({}, Signature(EXAMPLES, outputs))
    assert message in refused.value.message
    with pytest.raises(BadInput, match="No signature was found with the name: other"):
        check_regress({"signature_name": "other"}, Signature(EXAMPLES, outputs))


def test_results_of_classify_and_regress_are_lists() -> None:
    scores, classes = np.array([[0.5, 1]], np.float32), np.array([["a", "b"]], dtype=object)
    assert classify_answer({"scores": scores, "classes": classes}) == b'{"results":[[["a",0.5],["b",1.0]]]}'
    assert classify_answer({"scores": scores}) == b'{"results":[[["",0.5],["",1.0]]]}'
    assert classify_answer({"classes": classes}) == b'{"results":[[["a",0.0],["b",0.0]]]}'
    assert regress_answer({"outputs": np.array([[1], [2.5]], np.float32)}) == b'{"results":[1.0,2.5]}'


def test_the_signature_defaults_to_serving_default() -> None:
    assert signature_of({}) == signature_of({"signature_name": ""}) == "serving_default"
