"""Describes pydantic's errors about a field's value in sentences of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: pydantic's error → the expected kind of value
WANTED = {
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
#: the words for files where they differ from those for request bodies
_IN_FILES = {
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "path_type": "a path",
}
#: pydantic's error → a sentence about the value, with pydantic's figures
_SENTENCES = {
    "missing": "is missing",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than": "must be less than {lt:g}",
    "too_short": "holds {actual_length}: at least {min_length}",
    "too_long": "holds {actual_length}: at most {max_length}",
    "string_too_short": "is too short: at least {min_length} characters",
    "string_too_long": "is too long: at most {max_length} characters",
    "string_pattern_mismatch": "does not fit {pattern}",
    "string_unicode": "is not valid Unicode",
    "finite_number": "must be finite",
    "int_parsing_size": "is too large",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
    "union_tag_not_found": "{discriminator} is missing",
    "value_error": "{error}",
}


def describe_field_error(found: Mapping[str, Any]) -> str:
    """Return a sentence that follows the field's name. It never quotes the value."""
    sentence = _SENTENCES.get(found["type"])
    return "has an invalid value" if sentence is None else sentence.format(**found.get("ctx", {}))


def describe_error_in_file(found: Mapping[str, Any]) -> str:
    """Return what is wrong with a file's field, or what to write. It never quotes the value."""
    wanted = _IN_FILES.get(found["type"]) or WANTED.get(found["type"])
    return describe_field_error(found) if wanted is None else f"write {wanted}"
