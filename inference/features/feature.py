"""One feature: its name, dtype, shape and default, and the values that are legal."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.errors import ContractError, cut, quoted
from inference.features.groups import DEFAULT_GROUP
from inference.schema import DType, TensorSpec

#: a feature in `features.json`, for messages
EXAMPLE = '{"name": "distance", "dtype": "float32", "default": 0.0}'
_KEYS = ("name", "dtype", "shape", "default", "nullable", "min", "max", "categories", "group", "column")
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Feature:
    """One feature. `shape`: the shape of one entity's value.

    `default`: replaces a missing value. `nullable`: the model itself takes a missing value, as NaN, or as None for
    text; a nullable integer or bool is float64. With neither, a missing value is an error. `minimum`, `maximum` (both
    included) and `categories`: the legal values. `column`: the column of tables; None for the name.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...] = ()
    default: Any | None = None
    group: str = DEFAULT_GROUP
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[str | int, ...] | None = None
    column: str | None = None

    @property
    def table_column(self) -> str:
        """The name of its column in tables."""
        return self.name if self.column is None else self.column

    @property
    def missing_value(self) -> float | None:
        """The value that the model gets for a missing one, if the feature is nullable."""
        return None if self.dtype is DType.STRING else math.nan

    @property
    def spec(self) -> TensorSpec:
        """The feature as a named tensor."""
        return TensorSpec(self.name, self.dtype, self.shape)

    @property
    def width(self) -> int:
        """The number of elements of one entity's value."""
        return math.prod(self.shape)

    @property
    def of_group(self) -> str:
        """The group in words, to follow the feature's name; "" for the default group."""
        return "" if self.group == DEFAULT_GROUP else f" (group {quoted(self.group)})"

    @property
    def legal(self) -> str | None:
        """The legal values in words; None if all values are."""
        if self.categories is not None:
            shown = ", ".join(cut(str(one)) for one in self.categories[:_MOST_SHOWN])
            return f"one of {shown}" + (", …" if len(self.categories) > _MOST_SHOWN else "")
        if self.minimum is None and self.maximum is None:
            return None
        if self.maximum is None:
            return f"{self.minimum} or more"
        return f"{self.maximum} or less" if self.minimum is None else f"{self.minimum} to {self.maximum}"

    def illegal(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return which rows of an array of the feature's dtype hold an illegal value.

        NaN, and None for text, count as no value.
        """
        bad = np.zeros(values.shape, dtype=bool)
        if self.categories is not None:
            flat = pa.array(values.ravel(), pa.string() if self.dtype is DType.STRING else None)
            known = pc.or_(pc.is_in(flat, pa.array(self.categories, flat.type)), pc.is_null(flat))
            bad = ~known.to_numpy(zero_copy_only=False).reshape(values.shape)
        if self.minimum is not None:
            bad |= values < self.minimum
        if self.maximum is not None:
            bad |= values > self.maximum
        return bad if bad.ndim == 1 else np.asarray(bad.any(axis=tuple(range(1, bad.ndim))))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, in the form of `features.json`."""
        optional = {
            "shape": list(self.shape) or None,
            "default": self.default,
            "nullable": self.nullable or None,
            "min": self.minimum,
            "max": self.maximum,
            "categories": None if self.categories is None else list(self.categories),
            "group": None if self.group == DEFAULT_GROUP else self.group,
            "column": self.column,
        }
        given = {key: value for key, value in optional.items() if value is not None}
        return {"name": self.name, "dtype": self.dtype.value, **given}

    @classmethod
    def from_json(cls, data: Any) -> Feature:
        """Read the JSON values of one feature in `features.json`, or of `to_json`.

        Raises:
            ContractError: a key is unknown, missing or of the wrong kind; or the default does not fit.
        """
        if not isinstance(data, dict) or not isinstance(data.get("name"), str) or not data["name"]:
            raise ContractError(f"each feature needs a name, as in {EXAMPLE}; found {short(data)}")
        name = data["name"]
        unknown = sorted(set(data) - set(_KEYS))
        if unknown:
            raise _wrong(name, f"unknown key {quoted(unknown[0])}; known: {', '.join(_KEYS)}")
        group, nullable = data.get("group", DEFAULT_GROUP), data.get("nullable", False)
        if not isinstance(group, str) or not isinstance(nullable, bool):
            raise _wrong(name, "group must be text" if isinstance(nullable, bool) else "nullable must be true or false")
        column = data.get("column")
        if column is not None and (not isinstance(column, str) or not column):
            raise _wrong(name, f"column {short(column)} is no name of a table's column")
        dtype = _dtype(name, data.get("dtype"))
        if nullable and not (dtype.is_float or dtype is DType.STRING):
            dtype = DType.FLOAT64  # as pandas reads a column of integers or bools with gaps
        feature = cls(
            name,
            dtype,
            _shape(name, data.get("shape", [])),
            data.get("default"),
            group,
            nullable,
            _limit(name, "min", data),
            _limit(name, "max", data),
            _categories(name, data),
            column,
        )
        _check_default(feature)
        _check_legal(feature)
        return feature


def short(value: Any) -> str:
    """Return a value as JSON of at most 60 characters, for a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _wrong(name: str, what: str) -> ContractError:
    return ContractError(f"feature {quoted(name)}: {what}", field=name)


def _dtype(name: str, value: Any) -> DType:
    try:
        return DType(value)
    except ValueError:
        raise _wrong(name, f"dtype {cut(repr(value))} is not one of {', '.join(DType)}") from None


def _shape(name: str, value: Any) -> tuple[int, ...]:
    sizes = value if isinstance(value, list) else [value]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise _wrong(name, f"shape {short(value)} is no list of sizes such as [3]")
    return tuple(sizes)


def _limit(name: str, key: str, data: dict[str, Any]) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise _wrong(name, f"{key} {short(value)} is no number, or larger than any float")
    return value


def _categories(name: str, data: dict[str, Any]) -> tuple[str | int, ...] | None:
    value = data.get("categories")
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise _wrong(name, "categories must be a list of the legal values")
    return tuple(value)


def _check_default(feature: Feature) -> None:
    if feature.default is None:
        return
    problem = f"feature {quoted(feature.name)}: default {short(feature.default)} is no {feature.dtype}"
    try:
        array = np.array(feature.default)
    except ValueError:
        raise ContractError(f"{problem} of shape {list(feature.shape)}", field=feature.name) from None
    if array.shape not in ((), feature.shape):
        raise ContractError(f"{problem} of shape {list(feature.shape)}", field=feature.name)
    kinds = {DType.STRING: "U", DType.BOOL: "b"}.get(feature.dtype, "iuf" if feature.dtype.is_float else "iu")
    if array.dtype.kind not in kinds:
        raise ContractError(problem, field=feature.name)
    if feature.dtype.is_integer:
        limits = np.iinfo(feature.dtype.numpy)
        if array.min() < limits.min or array.max() > limits.max:
            raise ContractError(f"{problem}: out of range", field=feature.name)
    elif feature.dtype.is_float and not np.isfinite(array.astype(feature.dtype.numpy)).all():
        raise ContractError(f"{problem}: not a finite number", field=feature.name)


def _check_legal(feature: Feature) -> None:
    """Refuse rules that contradict the feature's dtype or its default."""
    name, dtype = feature.name, feature.dtype
    limits = [limit for limit in (feature.minimum, feature.maximum) if limit is not None]
    if limits and not (dtype.is_float or dtype.is_integer):
        raise _wrong(name, f"min and max are for numbers, and the feature is {dtype}")
    if len(limits) == 2 and limits[0] > limits[1]:
        raise _wrong(name, f"min {limits[0]} is more than max {limits[1]}")
    if feature.nullable and feature.default is not None:
        raise _wrong(name, "a missing value is either given to the model (nullable) or replaced (default): choose one")
    if feature.categories is not None:
        _check_categories(feature, feature.categories)
    if feature.default is not None and feature.legal is not None:
        values = np.empty((1, *feature.shape), dtype=feature.dtype.numpy)
        values[...] = np.array(feature.default, dtype=feature.dtype.numpy)
        if feature.illegal(values).any():
            raise _wrong(name, f"default {short(feature.default)} is not {feature.legal}")


def _check_categories(feature: Feature, categories: tuple[str | int, ...]) -> None:
    name, dtype = feature.name, feature.dtype
    if feature.minimum is not None or feature.maximum is not None:
        raise _wrong(name, "give either categories, or min and max")
    if dtype is DType.STRING:
        fits = all(isinstance(one, str) for one in categories)
    elif dtype.is_integer:
        limits = np.iinfo(dtype.numpy)
        fits = all(type(one) is int and limits.min <= one <= limits.max for one in categories)
    else:
        raise _wrong(name, f"categories are for text and integers, and the feature is {dtype}")
    if not fits:
        raise _wrong(name, f"a category is no {dtype}")
    if len(set(categories)) < len(categories):
        raise _wrong(name, "a category appears twice")
