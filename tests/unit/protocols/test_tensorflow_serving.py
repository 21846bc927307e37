from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import numpy as np
import pytest

from inference.errors import BadInput
from inference.protocols.tensorflow_calls import SignatureCall, check_classify, check_regress
from inference.protocols.tensorflow_examples import classify_answer, read_examples, regress_answer
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
from inference.schema import Block, DType, GraphSignature, GraphTensor, Signature, TensorSpec

X = (TensorSpec("x", DType.FLOAT32, (2,)),)
NUMBER = (TensorSpec("x", DType.FLOAT32),)
WHOLE = (TensorSpec("x", DType.INT32),)
TEXT = (TensorSpec("x", DType.STRING),)
FLAG = (TensorSpec("x", DType.BOOL),)
TWO = (TensorSpec("age", DType.INT64), TensorSpec("name", DType.STRING))


def decode(body: str | dict[str, Any], inputs: tuple[TensorSpec, ...]) -> tuple[Block, bool]:
    text = body if isinstance(body, str) else json.dumps(body)
    document = read_document(text.encode())
    signature_of(document)
    return tensors_of(document, tuple(map(GraphTensor.of_rows, inputs)))


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
        ("[1]", X, "JSON Value: [1] Is not object"),
        ({}, X, "Missing 'inputs' or 'instances' key"),
        (
            {"instances": []},
            X,
            "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array",
        ),
        (
            {"instances": 1},
            X,
            "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array",
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
        ({"instances": [0] * 5000}, NUMBER, f"5000 rows: send 1 to {MAX_TENSOR_ROWS} in a request"),
    ],
)
def test_a_mistake_is_told_in_the_words_of_the_protocol(
    body: Any, inputs: tuple[TensorSpec, ...], message: str
) -> None:
    assert refusal(body, inputs) == message


COLUMN = TensorSpec("x", DType.FLOAT32, (1,))


@pytest.mark.parametrize(
    ("inputs", "tensors", "message"),
    [
        (X, {"x": np.zeros((1, 3), np.float32)}, "tensor 'x' has shape [1,3], but the model takes [-1,2]"),
        (NUMBER, {"x": np.zeros((), np.float32)}, "tensor 'x' has shape [], but the model takes [-1]"),
        (NUMBER, {"x": np.zeros(0, np.float32)}, f"0 rows: send 1 to {MAX_TENSOR_ROWS} in a request"),
        (
            TWO,
            {"age": np.zeros(2, np.int64), "name": np.array(["a"], dtype=object)},
            "tensor 'name' has 1 row, another one 2",
        ),
    ],
)
def test_a_model_without_a_graph_takes_rows_of_its_declared_shapes(
    inputs: tuple[TensorSpec, ...], tensors: Block, message: str
) -> None:
    rows = Signature(inputs, ())
    with pytest.raises(BadInput) as refused:
        SignatureCall(None, GraphSignature.of_rows(rows), rows).prepare(tensors)
    assert refused.value.message == message


def test_a_model_without_a_graph_takes_scalars_for_a_column_and_gives_scalars() -> None:
    rows = Signature.of_model([COLUMN], [TensorSpec("y", DType.FLOAT32, (1,)), TensorSpec("z", DType.FLOAT32, (2,))])
    call = SignatureCall(None, GraphSignature.of_rows(rows), rows)
    outputs = {"y": np.zeros((3, 1), np.float32), "z": np.zeros((3, 2), np.float32)}
    for given, shapes in (((3,), {"y": (3,), "z": (3, 2)}), ((3, 1), {"y": (3, 1), "z": (3, 2)})):
        prepared = call.prepare({"x": np.zeros(given, np.float32)})
        assert prepared.tensors["x"].shape == (3, 1)
        assert {name: one.shape for name, one in call.finish(outputs, prepared).items()} == shapes


def graph(*shapes: tuple[int, ...] | None, output: tuple[int, ...] | None) -> SignatureCall:
    tensors = tuple(GraphTensor(f"x{n}", "DT_FLOAT", shape, f"x{n}:0") for n, shape in enumerate(shapes))
    return SignatureCall("s", GraphSignature("predict", tensors, (GraphTensor("y", "DT_FLOAT", output, "y:0"),)))


@pytest.mark.parametrize(
    ("call", "given", "splits"),
    [
        (graph((-1, 1), output=(-1, 1)), [(9,)], True),
        (graph((-1, 1), output=(-1, 1)), [()], False),
        (graph((-1,), (-1, 2), output=(-1,)), [(9,), (9, 2)], True),
        (graph((-1,), (-1, 2), output=(-1,)), [(9,), (4, 2)], False),
        (graph((-1,), output=()), [(9,)], False),
        (graph((9,), output=(-1,)), [(9,)], False),
        (graph(None, output=(-1,)), [(9,)], False),
        (graph((-1,), output=None), [(0,)], False),
    ],
)
def test_a_graph_takes_any_shapes_and_only_rows_are_computed_apart(
    call: SignatureCall, given: list[tuple[int, ...]], splits: bool
) -> None:
    tensors = {f"x{n}": np.zeros(shape, np.float32) for n, shape in enumerate(given)}
    prepared = call.prepare(tensors)
    assert prepared.tensors == tensors
    assert prepared.splits is splits
    with pytest.raises(BadInput, match=f"5000 rows: send 1 to {MAX_TENSOR_ROWS}"):
        call.prepare({"x0": np.zeros(5000, np.float32)})


def test_numbers_become_the_nearest_float_however_large() -> None:
    assert decode({"inputs": [1435774380, 16777217, 1e39, -1e39, 1e-320]}, NUMBER)[0]["x"].tolist() == [
        1435774336.0, 16777216.0, float("inf"), float("-inf"), 0.0,
    ]  # fmt: skip
    # so many that they are converted in steps
    for long in ([16777217] * 20_000, [[16777217] * 20_000], [[16777217]] * 20_000):
        assert set(decode({"inputs": long}, NUMBER)[0]["x"].ravel().tolist()) == {16777216.0}


@pytest.mark.parametrize("body", ['{"instances": [1,]}', "{", '{"instances": [nan]}', b"\xff".decode("latin-1")])
def test_what_is_no_json_is_a_parse_error(body: str) -> None:
    assert refusal(body, NUMBER).startswith("JSON Parse error: ")


@pytest.mark.parametrize("word", ["1", "NaN"])
def test_deep_json_is_refused_before_anything_walks_it(word: str) -> None:
    assert refusal('{"inputs": ' + "[" * 100_000 + word + "]" * 100_000 + "}", NUMBER).startswith("JSON Parse error: ")
    assert "more than 64 levels" in refusal('{"inputs": ' + "[" * 64 + word + "]" * 64 + "}", NUMBER)
    assert decode('{"inputs": ' + "[" * 63 + word + "]" * 63 + "}", NUMBER)[0]["x"].ndim == 63


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
    record = Signature.from_json(signature.to_json())
    body = metadata("m", 3, {"serving_default": GraphSignature.of_rows(record)})
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
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64_t element. Only int64_t is supported."),
    ],
)
def test_a_mistake_in_examples_is_told_in_the_words_of_the_protocol(document: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_examples(document)
    assert refused.value.message == message


EXAMPLES = (TensorSpec("inputs", DType.STRING),)
SCORES, CLASSES = TensorSpec("scores", DType.FLOAT32, (2,)), TensorSpec("classes", DType.STRING, (2,))
REGRESSED = TensorSpec("outputs", DType.FLOAT32, (1,))


def signature(inputs: tuple[TensorSpec, ...], *outputs: TensorSpec) -> GraphSignature:
    return GraphSignature.of_rows(Signature(inputs, outputs))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (signature(TWO, SCORES), "Expected one input Tensor."),
        (signature(X, SCORES), "No classification inputs found in SignatureDef: x"),
        (signature(EXAMPLES, *NUMBER), "Expected classification signature outputs to contain at least one of"),
        (signature(EXAMPLES, SCORES, CLASSES, *X), "Expected one or two output Tensors, found 3"),
        (
            signature((TensorSpec("inputs", DType.FLOAT32),), SCORES),
            "Expects arg[0] to be float but string is provided",
        ),
    ],
)
def test_a_signature_that_does_not_classify_says_so(declared: GraphSignature, message: str) -> None:
    check_classify(signature(EXAMPLES, SCORES, CLASSES))
    check_classify(signature(EXAMPLES, SCORES))
    with pytest.raises(BadInput) as refused:
        check_classify(declared)
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (signature(TWO, REGRESSED), "Expected one input Tensor."),
        (signature(EXAMPLES, SCORES, CLASSES), "Expected one output Tensor."),
        (signature(EXAMPLES, *NUMBER), "No regression outputs found in SignatureDef: x"),
        (signature(X, REGRESSED), "No regression inputs found in SignatureDef: x"),
    ],
)
def test_a_signature_that_does_not_regress_says_so(declared: GraphSignature, message: str) -> None:
    check_regress(signature(EXAMPLES, REGRESSED))
    with pytest.raises(BadInput) as refused:
        check_regress(declared)
    assert message in refused.value.message


def test_results_of_classify_and_regress_are_lists() -> None:
    scores, classes = np.array([[0.5, 1]], np.float32), np.array([["a", b"\xff"]], dtype=object)
    answer = classify_answer({"scores": scores, "classes": classes}, 1)
    assert answer.decode() == '{"results":[[["a",0.5],["\ufffd",1.0]]]}'
    assert classify_answer({"scores": scores}, 1) == b'{"results":[[["",0.5],["",1.0]]]}'
    assert classify_answer({"classes": classes[:, :1]}, 1) == b'{"results":[[["a",0.0]]]}'
    for outputs in (np.array([[1], [2.5]], np.float32), np.array([1, 2.5], np.float32)):
        assert regress_answer({"outputs": outputs}, 2) == b'{"results":[1.0,2.5]}'


F32 = np.float32
LABELS = np.array([["a", "b"]], dtype=object)


@pytest.mark.parametrize(
    ("answer", "outputs", "message"),
    [
        (classify_answer, {"scores": np.zeros(1, F32)}, "Expected Tensor shape: [batch_size num_classes] but got [1]"),
        (classify_answer, {"scores": np.zeros((1, 2))}, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        (classify_answer, {"classes": np.zeros((1, 2), F32)}, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        (classify_answer, {"scores": np.zeros((2, 2), F32)}, "Expected scores output batch size of 1. Got: 2"),
        (
            classify_answer,
            {"classes": LABELS, "scores": np.zeros((1, 3), F32)},
            "Tensors class and score should match in dim_size(1). Got 2 vs. 3",
        ),
        (
            regress_answer,
            {"outputs": np.zeros((1, 2), F32)},
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]",
        ),
        (regress_answer, {"outputs": np.zeros(2, F32)}, "Input batch size did not match output batch size: 1 vs. 2"),
        (regress_answer, {"outputs": np.zeros(1, np.int64)}, "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
    ],
)
def test_outputs_that_are_no_results_are_told_in_the_words_of_the_protocol(
    answer: Any, outputs: Block, message: str
) -> None:
    with pytest.raises(BadInput) as refused:
        answer(outputs, 1)
    assert refused.value.message == message


def test_outputs_without_rows_are_columns_only() -> None:
    outputs = {"y": np.float32(3.5).reshape(())}
    assert predict_answer(outputs, by_row=False) == b'{"outputs":3.5}'
    with pytest.raises(BadInput, match="Tensor name: y has no shape information "):
        predict_answer(outputs, by_row=True)


def test_the_signature_defaults_to_serving_default() -> None:
    assert signature_of({}) == signature_of({"signature_name": ""}) == "serving_default"
