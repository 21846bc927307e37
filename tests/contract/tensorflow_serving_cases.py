"""Requests that TensorFlow Serving's own tests and pages make over REST, each with its answer.

The situations are those of `http_rest_api_handler_test.cc`, `http_rest_api_util_test.cc`, `json_tensor_test.cc`,
`tensorflow_model_server_test.py`, `classifier_test.cc`, `regressor_test.cc`, and of the page on the RESTful API; the
models are in `tests/support/serving_models.py`. A comment says where Forecache differs on purpose.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Case(NamedTuple):
    """A request, with its body as it is sent, and the answer: JSON if the status is 200, else the text of the error."""

    what: str
    method: str
    path: str
    body: str
    status: int
    answer: str


def post(what: str, path: str, body: str, answer: str, status: int = 200) -> Case:
    """A POST under `/v1/models/`."""
    return Case(what, "POST", f"/v1/models/{path}", body, status, answer)


def refused(what: str, path: str, body: str, answer: str, status: int = 400) -> Case:
    """A POST under `/v1/models/` that is an error."""
    return post(what, path, body, answer, status)


def malformed(method: str, path: str) -> Case:
    return Case(f"{method} {path}", method, path, "", 400, f"Malformed request: {method} {path}")


def instance(element: int, problem: str, key: str = "") -> str:
    where = f"{element} key: {key}" if key else element
    return f"Failed to process element: {where} of 'instances' list. Error: INVALID_ARGUMENT: {problem}"


H2, V123, LABEL = "half_plus_two", "half_plus_two/versions/123", "half_plus_two/labels/Version_Label"
X = '{"instances": [1.0, 2.0]}'

PATHS = [
    malformed("GET", "/v1/foo"),
    malformed("POST", "/v1/foo"),
    malformed("GET", "/v1/models/debug/model_name"),
    malformed("POST", "/v1/models"),
    malformed("GET", "/v1/models/foo:predict"),
    malformed("GET", "/v1/models/foo/version/50:predict"),
    malformed("POST", "/v1/models/foo/version/50:regress"),
    malformed("POST", "/v1/models/foo/versions/HELLO:regress"),
    malformed("POST", "/v1/models/foo/metadata"),
    malformed("POST", "/v1/models/foo/label/some_label:regress"),
    malformed("POST", "/v1/models/foo/versions/50/labels/some_label:regress"),
    malformed("DELETE", "/v1/models/half_plus_two"),
    Case("no model named", "GET", "/v1/models", "", 400, "Missing model name in request."),
    refused(
        "a version beyond 64 bits", "foo/versions/18446744073709551615:regress", "",
        "Failed to convert version: 18446744073709551615 to numeric.",
    ),
    refused("an unknown model", "foo:predict", X, "Servable not found for request: Latest(foo)", 404),
    refused(
        "an unknown model, a version", "foo/versions/50:predict", X,
        "Servable not found for request: Specific(foo, 50)", 404,
    ),
    refused(
        "an unknown version", "half_plus_two/versions/99:predict", X,
        "Servable not found for request: Specific(half_plus_two, 99)", 404,
    ),
    refused(
        "an unknown label", "half_plus_two/labels/Version_Nonexistent:predict", X,
        "Unrecognized servable version label: Version_Nonexistent",
    ),
    post(
        "a label as a URL quotes it", "half_plus_two/labels/Version%5FLabel:predict", X, '{"predictions": [2.5, 3.0]}'
    ),
    post("names in any case", "half_plus_two/VERSIONS/123:Predict", X, '{"predictions": [2.5, 3.0]}'),
]  # fmt: skip

AVAILABLE = (
    '{"model_version_status": [{"version": "123", "state": "AVAILABLE", '
    '"status": {"error_code": "OK", "error_message": ""}}]}'
)
LOOKS = [
    Case("the status of a model", "GET", f"/v1/models/{H2}", "", 200, AVAILABLE),
    Case("the status of a version", "GET", f"/v1/models/{V123}", "", 200, AVAILABLE),
    Case("the status of a label", "GET", f"/v1/models/{LABEL}", "", 200, AVAILABLE),
    Case("the status of no model", "GET", "/v1/models/foo", "", 404, "Could not find any versions of model foo"),
    Case(
        "the status of no version", "GET", f"/v1/models/{H2}/versions/7", "", 404,
        "Could not find version 7 of model half_plus_two",
    ),
]  # fmt: skip

PREDICT = [
    post("rows of one value", f"{H2}:predict", '{"instances": [[1.0], [2.0]]}', '{"predictions": [[2.5], [3.0]]}'),
    post(
        "rows wider than declared: the graph takes them", f"{H2}:predict",
        '{"instances": [[1.0, 2.0], [3.0, 4.0]]}', '{"predictions": [[2.5, 3.0], [3.5, 4.0]]}',
    ),
    post("scalars for [-1, 1]", f"{H2}:predict", '{"instances": [2.0, 3.0, 4.0]}', '{"predictions": [3.0, 3.5, 4.0]}'),
    post("the quick start", f"{H2}:predict", '{"instances": [1.0, 2.0, 5.0]}', '{"predictions": [2.5, 3.0, 4.5]}'),
    post("scalars as columns", f"{H2}:predict", '{"inputs": [2.0, 3.0, 4.0]}', '{"outputs": [3.0, 3.5, 4.0]}'),
    post("one scalar as a column", f"{H2}:predict", '{"inputs": 3.0}', '{"outputs": 3.5}'),
    post("columns by name", f"{H2}:predict", '{"inputs": {"x": [[2.0]], "more": "ignored"}}', '{"outputs": [[3.0]]}'),
    post("rows by name", f"{H2}:predict", '{"instances": [{"x": 2.0}, {"x": 3.0}]}', '{"predictions": [3.0, 3.5]}'),
    post("no rows as a column", f"{H2}:predict", '{"inputs": []}', '{"outputs": []}'),
    post("a version", f"{V123}:predict", X, '{"predictions": [2.5, 3.0]}'),
    post("a label", f"{LABEL}:predict", X, '{"predictions": [2.5, 3.0]}'),
    post(
        "the default signature by its name", f"{V123}:predict",
        '{"signature_name": "serving_default", "instances": [3.0, 4.0]}', '{"predictions": [3.5, 4.0]}',
    ),
    post(
        "the default signature by its name, columns", f"{V123}:predict",
        '{"signature_name": "serving_default", "inputs": [3.0, 4.0]}', '{"outputs": [3.5, 4.0]}',
    ),
    post(
        "another signature", f"{H2}:predict", '{"signature_name": "regress_x2_to_y3", "instances": [2.0, 4.0]}',
        '{"predictions": [4.0, 5.0]}',
    ),
    post(
        "the page's example", "half_plus_three:predict", '{"instances": [1.0, 2.0, 5.0]}',
        '{"predictions": [3.5, 4.0, 5.5]}',
    ),
    post("half plus three of 2", "half_plus_three:predict", '{"instances": [2.0]}', '{"predictions": [4.0]}'),
    post("a scalar for [-1]", "half_plus_three:predict", '{"inputs": 2.0}', '{"outputs": 4.0}'),
    post("a matrix for [-1]", "half_plus_three:predict", '{"inputs": [[2.0, 4.0]]}', '{"outputs": [[4.0, 5.0]]}'),
    post(
        "an output without rows, as a column", "tensors:predict",
        '{"signature_name": "custom_signature_key", "inputs": 2.0}', '{"outputs": 1.0}',
    ),
    post(
        "an output that is one for all rows", "tensors:predict", '{"signature_name": "mean", "instances": [1, 2, 6]}',
        '{"predictions": [3.0]}',
    ),
    post(
        "outputs of different lengths, as columns", "tensors:predict", '{"signature_name": "uneven", "inputs": [1, 2]}',
        '{"outputs": {"a": [1.0, 2.0], "b": [1.0, 2.0, 1.0, 2.0]}}',
    ),
]  # fmt: skip

TF2 = "half_plus_two_tf2"
#: its default signature takes one number: there are no rows, and `/predict` cannot ask it
WITHOUT_ROWS = [
    post("predict by TensorFlow 2", f"{TF2}:predict", '{"inputs": [2.0]}', '{"outputs": [3.0]}'),
    post("predict by TensorFlow 2, rows", f"{TF2}:predict", '{"instances": [2.0]}', '{"predictions": [3.0]}'),
    post("more numbers than declared", f"{TF2}:predict", '{"instances": [2.0, 3.0]}', '{"predictions": [3.0, 3.5]}'),
    post("predict by another signature", f"{TF2}:predict",
         '{"signature_name": "regress_x2_to_y3", "inputs": [2.0]}', '{"outputs": [4.0]}'),
    post("classify by TensorFlow 2", f"{TF2}:classify",
         '{"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]}', '{"results": [[["", 3.0]]]}'),
    post("regress by TensorFlow 2", f"{TF2}:regress",
         '{"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}', '{"results": [3.0]}'),
]  # fmt: skip

#: a model of ONNX: x [-1, 1] → y [-1, 1], the same
OTHER_FORMATS = [
    post("rows of one value, ONNX", "column:predict", '{"instances": [[1], [2]]}', '{"predictions": [[1.0], [2.0]]}'),
    post("scalars for [-1, 1], ONNX", "column:predict", '{"instances": [1, 2.5]}', '{"predictions": [1.0, 2.5]}'),
    post("scalars as columns, ONNX", "column:predict", '{"inputs": {"x": [1, 2.5]}}', '{"outputs": [1.0, 2.5]}'),
    # there is no graph to decide
    refused("a shape that is not declared, ONNX", "column:predict", '{"instances": [[1, 2]]}',
            "tensor 'x' has shape [1,2], but the model takes [-1,1]"),
    refused("an unknown signature, ONNX", "column:predict", '{"signature_name": "y", "instances": [1]}',
            'Serving signature name: "y" not found in signature def'),
    refused("no examples are taken, ONNX", "column:classify", '{"examples": [{"x": 1.0}]}',
            "No classification inputs found in SignatureDef: x"),
]  # fmt: skip

UNTYPED = '{"signature_name": "%s", %s}'


def same(what: str, signature: str, sent: str, given: str | None = None) -> list[Case]:
    """Rows and columns of a signature that gives its input back; `given`: how the answer writes what was `sent`."""
    given = sent if given is None else given
    return [
        post(f"{what}, {sides[0]}", "tensors:predict", UNTYPED % (signature, f'"{sides[0]}": {sent}'), answer)
        for sides in (("instances", "predictions"), ("inputs", "outputs"))
        for answer in [f'{{"{sides[1]}": {given}}}']
    ]


ROW_OF_ALL = (
    '{"int_tensor": [[1, 2], [3, 4], [5, 6]], "str_tensor": ["foo", "bar"], "float_tensor": [1.0, NaN], '
    '"dbl_tensor": [NaN]}'
)
OTHER_ROW = (
    '{"int_tensor": [[7, 8], [9, 0], [1, 2]], "str_tensor": ["baz", "bat"], "float_tensor": [2.0, Infinity], '
    '"dbl_tensor": [2.0]}'
)
COLUMNS = (
    '{"int_tensor": [[[1, 2], [3, 4], [5, 6]]], "str_tensor": ["foo", {"b64": "aGVsbG8="}], "float_tensor": 1.5, '
    '"dbl_tensor": []}'
)
TYPES = [
    *same("integers", "serving_default", "[[1, 2], [3, 4], [5, 6]]"),
    *same("integers of three dimensions", "serving_default", "[[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 0], [1, 2]]]"),
    *same("integers of one dimension", "serving_default", "[1, 2, 3, 4, 5]"),
    *same("the name in every row", "serving_default", '[{"default": [1]}, {"default": [2]}]', "[[1], [2]]")[:1],
    *same("whole numbers among floats", "float", "[1, 2.0, 3, 4, 5.003, 0.007, 0.0]"),
    *same("whole numbers among doubles", "double", "[1.0, 2, 3, 4, 0.662, 0, 0.0]"),
    # the nearest float is 1435774336; as few digits name it
    *same("a float that loses digits", "float", "[1435774380, 1435774380.0]", "[1435774300.0, 1435774300.0]"),
    *same("beyond the largest float", "float", "[1.797e308, -1.797e308]", "[Infinity, -Infinity]"),
    *same("below the smallest float", "float", "[2.225e-308, -2.225e-308]", "[0.0, -0.0]"),
    *same("six digits and more", "float", "[[9000000, 999999, 0.5], [0.0003, 0.00003, 555557.5]]"),
    *same("numbers that are not finite", "float", "[[NaN, Infinity], [3, -Infinity]]"),
    # TensorFlow Serving answers 501: it has no JSON for half floats
    *same("half floats", "half", "[0.5, 2]"),
    *same("truth values", "flag", "[true, false]"),
    *same("text", "text", '["foo", "bar", "baz"]'),
    *same("base 64", "text", '[{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}]', '["hello", "world"]'),
    *same("base 64 in lists", "text", '[[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]', '[["hello"], ["world"]]'),
    *same(
        "base 64 by name", "text", '[{"text": [[{"b64": "aGVsbG8="}], [{"b64": "dGY="}]]}]', '[[["hello"], ["tf"]]]'
    )[:1],
    *same("one text", "text", '{"b64": "aGVsbG8="}', '"hello"')[1:],
    *same("bytes", "bytes", '[["hello", "world"], ["tf", {"b64": "/w=="}]]',
          '[[{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}], [{"b64": "dGY="}, {"b64": "/w=="}]]'),
    post("several inputs, rows", "tensors:predict", UNTYPED % ("mixed", f'"instances": [{ROW_OF_ALL}, {OTHER_ROW}]'),
         f'{{"predictions": [{ROW_OF_ALL}, {OTHER_ROW}]}}'),
    post("several inputs, columns of any lengths", "tensors:predict", UNTYPED % ("mixed", f'"inputs": {COLUMNS}'),
         '{"outputs": ' + COLUMNS.replace('{"b64": "aGVsbG8="}', '"hello"') + "}"),
]  # fmt: skip

INT, MIXED = "tensors:predict", '{"signature_name": "mixed", %s}'
TWO_ROWS = (
    '"instances": [{"int_tensor": %s, "str_tensor": "a", "float_tensor": 1, "dbl_tensor": 1}, '
    '{"int_tensor": %s, "str_tensor": "b", "float_tensor": 1, "dbl_tensor": 1}]'
)
PREDICT_ERRORS = [
    refused("no body", f"{H2}:predict", "", "JSON Parse error: The document is empty"),
    refused("no JSON", f"{H2}:predict", "instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
    refused("no object", f"{H2}:predict", "[1, [2, 3]]", "JSON Value: [1, [2, 3]] Is not object"),
    refused(
        "text for a float", f"{H2}:predict", '{"instances": ["x", "y"]}',
        instance(0, 'JSON Value: "x" Type: String is not of expected type: float'),
    ),
    refused("nothing for a float", f"{H2}:predict", '{"instances": [1, null]}',
            instance(1, "JSON Value: null Type: Null is not of expected type: float")),
    refused("a truth value for a float", f"{H2}:predict", '{"inputs": [true]}',
            "JSON Value: true Type: True is not of expected type: float"),
    refused("an object for a float", f"{H2}:predict", '{"inputs": [{"y": 1}]}',
            'JSON Value: {\n    "y": 1\n} Type: Object is not of expected type: float'),
    refused(
        "a signature that is no text", f"{H2}:predict", '{"signature_name": 100}',
        'JSON Value: {\n    "signature_name": 100\n} not formatted correctly. '
        "'signature_name' key must be a string value.",
    ),
    refused(
        "an unknown signature", f"{H2}:predict", '{"signature_name": "y", "instances": [1]}',
        'Serving signature name: "y" not found in signature def',
    ),
    refused("neither rows nor columns", f"{H2}:predict", "{}", "Missing 'inputs' or 'instances' key"),
    refused(
        "rows and columns", f"{H2}:predict", '{"instances": [1], "inputs": [1]}',
        'JSON Value: {\n    "instances": [1],\n    "inputs": [1]\n} Not formatted correctly expecting only one of '
        "'inputs' or 'instances' keys to exist ",
    ),
    refused("rows that are no list", f"{H2}:predict", '{"instances": 1}',
            "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array"),
    refused("no rows", f"{H2}:predict", '{"instances": []}',
            "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
    refused("rows of different sizes", INT, '{"instances": [[1, 2], [3, 4], [5, 6, 7]]}',
            instance(2, "Expecting tensor size: 2 but got: 3")),
    refused("rows of different shapes", INT, '{"instances": [[1, 2], [3, 4], [[5, 6]]]}',
            instance(2, "Expecting shape [2] but got: [1,2]")),
    refused("a scalar and a list", INT, '{"instances": [1, [1]]}', instance(1, "Expecting shape [] but got: [1]")),
    refused("text among integers", INT, '{"instances": [[1, 2], ["a", "b"]]}',
            instance(1, 'JSON Value: "a" Type: String is not of expected type: int32')),
    refused("a float for an integer", INT, '{"inputs": [1.0]}',
            "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    refused("columns of different sizes", INT, '{"inputs": [[1, 2], [3]]}',
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    refused("columns of different depths", INT, '{"inputs": [1, [2]]}',
            "Encountered list at unexpected level: 1 expected < 1"),
    refused("a value beside lists", INT, '{"inputs": [[1], 2]}',
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    refused("rows of an input of different shapes", INT,
            MIXED % (TWO_ROWS % ("[[1, 2], [3, 4]]", "[[[1, 2], [3, 4]]]")),
            instance(1, "Expecting shape [2,2] but got: [1,2,2]", "int_tensor")),
    refused("rows of an input of different sizes", INT, MIXED % (TWO_ROWS % ("[[1, 2], [3, 4]]", "[[1, 2]]")),
            instance(1, "Expecting tensor size: 4 but got: 2", "int_tensor")),
    refused("a list among objects", INT, MIXED % f'"instances": [{ROW_OF_ALL}, [1, 20, 30]]',
            "Expecting object but got list at item 1 of input list"),
    refused("an object among lists", INT, '{"signature_name": "text", "instances": [["baz"], {"text": ["bat"]}]}',
            "Expecting value/list but got object at item 1 of input list"),
    refused("values for several inputs", INT, MIXED % '"instances": [1]',
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"),
    refused("a column for several inputs", INT, MIXED % '"inputs": [1]',
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map"),
    refused("an input that is missing, rows", INT, MIXED % '"instances": [{"int_tensor": 1}]',
            "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"int_tensor\": 1\n} keys must be "
            "equal to: dbl_tensor,float_tensor,int_tensor,str_tensor"),
    refused("an input that is missing, columns", f"{H2}:predict", '{"inputs": {"y": 1}}',
            "Missing named input: x in 'inputs' object."),
    refused("an input that is unknown", f"{H2}:predict", '{"instances": [{"y": 1}]}',
            instance(0, "JSON object: does not have named input: y", "y")),
    refused("an object that is no base 64", INT, '{"signature_name": "text", "inputs": [{"b65": "YQ=="}]}',
            'JSON Value: {\n    "b65": "YQ=="\n} not formatted correctly for base64 data'),
    refused("base 64 that is none", INT, '{"signature_name": "text", "inputs": [{"b64": "?"}]}',
            "Unable to base64 decode"),
    refused("an output without rows, as rows", INT, '{"signature_name": "custom_signature_key", "instances": [2.0]}',
            "Tensor name: y has no shape information "),
    refused("outputs of different lengths, as rows", INT, '{"signature_name": "uneven", "instances": [1, 2]}',
            "Tensor name: b has inconsistent batch size: 4 expecting: 2"),
    refused("an output that JSON cannot hold", INT, '{"signature_name": "complex", "instances": [1]}',
            "Failed to write JSON value for tensor type: complex64"),
    # TensorFlow Serving's status is 501
    refused("an input that JSON cannot hold", INT, '{"signature_name": "take_complex", "inputs": 1}',
            "Conversion of JSON Value: 1 to type: complex64"),
    # the graph refuses this; TensorFlow Serving gives the graph's own words
    refused("a shape that the graph does not take", "digits:predict",
            '{"signature_name": "predict_images", "instances": [[1, 2, 3]]}',
            "tensor 'images' has shape [1,3], but the model takes [-1,64]"),
]  # fmt: skip

EXAMPLES = '{"signature_name": "regress_x_to_y", "examples": [%s]}'
RESULTS = [
    post("classify", f"{H2}:classify", '{"signature_name": "classify_x_to_y", "examples": [{"x": 20.0}]}',
         '{"results": [[["", 12.0]]]}'),
    post("classify by a label", f"{LABEL}:classify", '{"signature_name": "classify_x_to_y", "examples": [{"x": 10.0}]}',
         '{"results": [[["", 7.0]]]}'),
    post("classify two", f"{H2}:classify",
         '{"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}, {"x": [4.0]}]}',
         '{"results": [[["", 3.0]], [["", 4.0]]]}'),
    post("regress", f"{H2}:regress", '{"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}]}',
         '{"results": [42.0]}'),
    post("regress by a version", f"{V123}:regress", '{"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}',
         '{"results": [3.0]}'),
    post("regress by a label", f"{LABEL}:regress", '{"signature_name": "regress_x_to_y2", "examples": [{"x": 80.0}]}',
         '{"results": [43.0]}'),
    post("a context that examples share", f"{H2}:regress",
         '{"signature_name": "regress_x_to_y", "context": {"x": 2.0}, "examples": [{}, {"x": 4.0}]}',
         '{"results": [3.0, 4.0]}'),
    post("numbers that are not finite", f"{H2}:regress",
         EXAMPLES % '{"x": Infinity}, {"x": -Infinity}, {"x": NaN}, {"x": 1e39}',
         '{"results": [Infinity, -Infinity, NaN, Infinity]}'),
    post("examples given to predict", f"{H2}:predict",
         '{"signature_name": "regress_x_to_y", "instances": [{"b64": "Cg8KDQoBeBIIEgYKBAAAAEA="}]}',
         '{"predictions": [[3.0]]}'),
]  # fmt: skip

NO_METHOD = "JSON Value: {} When method is classify, key 'examples' is expected and was not found"
RESULT_ERRORS = [
    refused("no examples, classify", f"{H2}:classify", "{}", NO_METHOD),
    refused("no examples, regress", f"{H2}:regress", "{}", NO_METHOD),
    refused("a signature that is no text", f"{H2}:regress", '{"signature_name": ["hello"], "examples": [{}]}',
            'JSON Value: {\n    "signature_name": ["hello"],\n    "examples": [{}]\n} not formatted correctly. '
            "'signature_name' key must be a string value."),
    refused("a context that is a list", f"{H2}:regress", '{"context": [{"names": ["foo"]}]}',
            "Example must be JSON object but got JSON Array"),
    refused("examples that are no list", f"{H2}:regress", '{"examples": {"names": 1}}',
            "JSON Value: {\n    \"examples\": {\n        \"names\": 1\n    }\n} Expecting 'examples' value to be an "
            "list/array"),
    refused("an empty list of examples", f"{H2}:regress", '{"examples": []}',
            "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
    refused("a list for an example", f"{H2}:regress", EXAMPLES % '[{"names": 1}]',
            "Example must be JSON object but got JSON Array"),
    refused("nothing in a feature", f"{H2}:regress", EXAMPLES % '{"names": [10, null]}',
            "Feature: names has element with unexpected JSON type: Null"),
    refused("a feature of two kinds", f"{H2}:regress", EXAMPLES % '{"names": [10, 10.0]}',
            "Unexpected element type in feature: names expecting type: int64"),
    refused("an object in a feature", f"{H2}:regress", EXAMPLES % '{"names": [10, {"test": 10}]}',
            "Feature: names has element with unexpected JSON type: Object"),
    refused("a list in a feature", f"{H2}:regress", EXAMPLES % '{"names": [[10], 20]}',
            "Feature: names has element with unexpected JSON type: Array"),
    refused("a feature beyond 64 bits", f"{H2}:regress", EXAMPLES % '{"names": [20, 18446744073709551603]}',
            "Feature: names has uint64_t element. Only int64_t is supported."),
    refused("an unknown signature", f"{H2}:classify", '{"signature_name": "y", "examples": [{"x": 1.0}]}',
            "No signature was found with the name: y"),
    refused("a signature that predicts, classify", f"{H2}:classify", '{"examples": [{"x": 1.0}]}',
            "No classification inputs found in SignatureDef: x"),
    refused("a signature that predicts, regress", f"{H2}:regress", '{"examples": [{"x": 1.0}]}',
            "No regression inputs found in SignatureDef: x"),
    refused("a signature that regresses, classify", f"{H2}:classify",
            '{"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}]}',
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            "Signature was: outputs"),
    refused("a signature that takes numbers", f"{H2}:regress",
            '{"signature_name": "regress_x2_to_y3", "examples": [{"x2": 1.0}]}',
            "Expects arg[0] to be float but string is provided"),
    refused("an example without a feature", f"{H2}:regress", EXAMPLES % "{}",
            "Name: <unknown>, Feature: x (data type: float) is required but could not be found."),
]  # fmt: skip

#: an example, and what a model reads in it
EXAMPLE_KINDS = [
    (
        {"names": ["foo", "bar"], "ratings": [8.0, 9.0], "age": 20},
        {"names": ["foo", "bar"], "ratings": [8.0, 9.0], "age": [20]},
    ),
    ({"names": "baz", "ratings": 6.0}, {"names": ["baz"], "ratings": [6.0], "age": []}),
    (
        {"names": ["baz", {"b64": "aGVsbG8="}], "age": [1, True, False]},
        {"names": ["baz", "hello"], "ratings": [], "age": [1, 1, 0]},
    ),
    ({"ratings": [], "age": -(2**63)}, {"names": [], "ratings": [], "age": [-(2**63)]}),
]  # fmt: skip


def _info(dtype: str, node: str, *sizes: int) -> dict[str, Any]:
    dim = [{"size": str(size), "name": ""} for size in sizes]
    return {"dtype": dtype, "tensor_shape": {"dim": dim, "unknown_rank": False}, "name": node}


def _signature(method: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    method = f"tensorflow/serving/{method}"
    return {"inputs": inputs, "outputs": outputs, "method_name": method, "defaults": {}}


_EXAMPLES = {"inputs": _info("DT_STRING", "tf_example:0", -1)}
_SIGNATURES = {
    "serving_default": _signature(
        "predict", {"x": _info("DT_FLOAT", "x:0", -1, 1)}, {"y": _info("DT_FLOAT", "y:0", -1, 1)}
    ),
    "regress_x_to_y": _signature("regress", _EXAMPLES, {"outputs": _info("DT_FLOAT", "y:0", -1, 1)}),
    "regress_x_to_y2": _signature("regress", _EXAMPLES, {"outputs": _info("DT_FLOAT", "y2:0", -1, 1)}),
    "regress_x2_to_y3": _signature(
        "regress", {"inputs": _info("DT_FLOAT", "x2:0", -1, 1)}, {"outputs": _info("DT_FLOAT", "y3:0", -1, 1)}
    ),
    "classify_x_to_y": _signature("classify", _EXAMPLES, {"scores": _info("DT_FLOAT", "y:0", -1, 1)}),
    "classify_x2_to_y3": _signature(
        "classify", {"inputs": _info("DT_FLOAT", "x2:0", -1, 1)}, {"scores": _info("DT_FLOAT", "y3:0", -1, 1)}
    ),
}  # fmt: skip
METADATA = json.dumps(
    {
        "model_spec": {"name": H2, "signature_name": "", "version": "123"},
        "metadata": {"signature_def": {"signature_def": _SIGNATURES}},
    }
)
LOOKS += [
    Case("the metadata of a model", "GET", f"/v1/models/{H2}/metadata", "", 200, METADATA),
    Case("the metadata of a label", "GET", f"/v1/models/{LABEL}/metadata", "", 200, METADATA),
    Case(
        "the metadata of no model", "GET", "/v1/models/foo/metadata", "", 404,
        "Servable not found for request: Latest(foo)",
    ),
]  # fmt: skip

CASES = [*PATHS, *LOOKS, *PREDICT, *WITHOUT_ROWS, *OTHER_FORMATS, *TYPES, *PREDICT_ERRORS, *RESULTS, *RESULT_ERRORS]
