"""Says what is wrong with a request's fields: pydantic's findings in sentences of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from inference.errors import BadInput, cut, quoted

#: what pydantic found → what to send, when the value is of another kind
_WANTED = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "datetime_type": "an instant as ISO 8601 with an offset",
    "datetime_parsing": "an instant as ISO 8601 with an offset",
    "datetime_from_date_parsing": "an instant as ISO 8601 with an offset",
    "timezone_aware": "an instant as ISO 8601 with an offset",
}
#: what pydantic found → a sentence about the value, with the figures that pydantic found too
_SENTENCES = {
    "missing": "is missing",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "holds {actual_length}: at least {min_length}",
    "too_long": "holds {actual_length}: at most {max_length}",
    "string_too_short": "is too short: at least {min_length} characters",
    "string_too_long": "is too long: at most {max_length} characters",
    "string_unicode": "is no valid Unicode",
    "finite_number": "must be finite",
    "int_parsing_size": "is too large",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "value_error": "{error}",
}


def as_bad_input(found: Sequence[Mapping[str, Any]], expected: Any = None) -> BadInput:
    """Return pydantic's findings as one error, which names the field; `expected` is the model of the body."""
    # of a name that is not known and one that is missing, the first is the mistake
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    field = _field_of(first)
    if first["type"] == "extra_forbidden":
        place, _, name = field.rpartition(".")
        text = _unknown(name, _fields_at(expected, first["loc"][1:-1]), place)
        return BadInput(f"{field}: {text}", field=field)
    texts = _texts([one for one in found if _field_of(one) == field])
    if field == "body":
        return BadInput(f"body: {_of_whole_body(first, texts, _fields_at(expected, ()))}", field=field)
    return BadInput(f"{field}: {texts}", field=field)


def _field_of(one: Mapping[str, Any]) -> str:
    """Return the dotted name of a field; pydantic's marks of the members of a union are no names."""
    where, *rest = (cut(str(part)) for part in one["loc"])
    return ".".join(part for part in rest if not part.startswith(("dict[", "list["))) or where


def _texts(about_one_field: Sequence[Mapping[str, Any]]) -> str:
    wanted = dict.fromkeys(_WANTED[one["type"]] for one in about_one_field if one["type"] in _WANTED)
    first = about_one_field[0]
    if first["type"] not in _WANTED:
        return _sentence(first)
    if first["type"] == "string_type" and type(first["input"]) is int and "." in _field_of(first):
        return f'ids are text in JSON: send "{cut(str(first["input"]))}"'
    return f"is {_described(first['input'])}: send {' or '.join(wanted)}"


def _sentence(one: Mapping[str, Any]) -> str:
    sentence = _SENTENCES.get(one["type"])
    return "has a value that is not taken here" if sentence is None else sentence.format(**one.get("ctx", {}))


def _of_whole_body(first: Mapping[str, Any], text: str, fields: Iterable[str]) -> str:
    if first["type"] == "missing":
        return f"is missing: send an object with {', '.join(fields)}"
    return f"{text} with {', '.join(fields)}" if first["type"] in _WANTED else text


def _described(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {cut(str(value))}" if abs(value) < 1e300 else "a number"
    return "a list" if isinstance(value, list) else "an object"


def _unknown(name: str, known: Sequence[str], place: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    where = f" in {place}" if place else ""
    return f"there is no such field{where}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")


def _fields_at(model: Any, location: Sequence[Any]) -> list[str]:
    """Return the names of the fields of the object at a place in a body, for `model` the body's own."""
    for part in location:
        fields = getattr(_model_in(model), "model_fields", {})
        model = fields[part].annotation if part in fields else model
    return list(getattr(_model_in(model), "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """Return the model in an annotation such as `list[Item] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)
