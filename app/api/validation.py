"""Says what is wrong with a request's fields, and which are misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from inference.errors import BadInput, cut, quoted
from inference.field_errors import WANTED, describe_field_error

#: how alike a misspelt name of a query is to the one that is meant, and how many names are compared at most
_ALIKE, _MOST_COMPARED = 0.75, 8


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


def check_query(sent: Sequence[tuple[str, str]], known: Collection[str]) -> None:
    """Refuse a query that gives a parameter twice, or misspells one: it would be answered as if it had not been sent.

    Names that are like none of ours are ignored: proxies and browsers add some.

    Raises:
        BadInput: it names the parameter.
    """
    foreign: list[str] = []
    seen: set[str] = set()
    for name, _ in sent:
        if name not in known:
            foreign.append(cut(name))
        elif name in seen:
            raise BadInput(f"{name}: is given twice: give it once", field=name)
        seen.add(name)
    plain = {_plain(name): name for name in known}
    for name in foreign[:_MOST_COMPARED]:
        near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_ALIKE)
        if near:
            raise BadInput(f"{name}: there is no such parameter; did you mean {plain[near[0]]}?", field=name)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _field_of(one: Mapping[str, Any]) -> str:
    """Return the dotted name of a field; pydantic's marks of the members of a union are no names."""
    where, *rest = (cut(str(part)) for part in one["loc"])
    return ".".join(part for part in rest if not part.startswith(("dict[", "list["))) or where


def _texts(about_one_field: Sequence[Mapping[str, Any]]) -> str:
    wanted = dict.fromkeys(WANTED[one["type"]] for one in about_one_field if one["type"] in WANTED)
    first = about_one_field[0]
    if first["type"] not in WANTED:
        return describe_field_error(first)
    if first["type"] == "string_type" and type(first["input"]) is int and "." in _field_of(first):
        return f'ids are text in JSON: send "{cut(str(first["input"]))}"'
    return f"is {_described(first['input'])}: send {' or '.join(wanted)}"


def _of_whole_body(first: Mapping[str, Any], text: str, fields: Iterable[str]) -> str:
    if first["type"] == "missing":
        return f"is missing: send an object with {', '.join(fields)}"
    return f"{text} with {', '.join(fields)}" if first["type"] in WANTED else text


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
