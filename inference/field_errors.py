"""Says what is wrong with a field's value: pydantic's findings in sentences of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: what pydantic found → what to give, when the value is of another kind
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
#: what files call otherwise, or have and bodies have not
_IN_FILES = {
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "path_type": "a path",
}
#: what pydantic found → a sentence about the value, with the figures that pydantic found too
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
    "string_unicode": "is no valid Unicode",
    "finite_number": "must be finite",
    "int_parsing_size": "is too large",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
    "union_tag_not_found": "{discriminator} is missing",
    "value_error": "{error}",
}


def describe_field_error(found: Mapping[str, Any]) -> str:
    """Return a finding as a sentence that goes on from the field's name. It quotes nothing of the value."""
    sentence = _SENTENCES.get(found["type"])
    return "has a value that is not taken here" if sentence is None else sentence.format(**found.get("ctx", {}))


def describe_error_in_file(found: Mapping[str, Any]) -> str:
    """Return what is wrong with a field of a file, and what to write; secrets stay unsaid."""
    wanted = _IN_FILES.get(found["type"]) or WANTED.get(found["type"])
    return describe_field_error(found) if wanted is None else f"write {wanted}"
