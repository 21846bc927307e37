"""Chooses a model's signature and matches a table's columns to its inputs."""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pyarrow as pa

from inference.errors import BadInput, ModelError, SourceError, shown_name
from inference.features import Feature, FeatureContract, Vectoriser, contract_from_signature
from inference.features.columns import type_problem
from inference.features.contract import CONTRACT_FILE, check_contract
from inference.models.runtimes import SavedSignature
from inference.onboarding.key_columns import looks_like_id
from inference.schema import DType, Signature, TensorSpec
from inference.sources import column_problem, find_column
from inference.wording import counted

_MOST_NAMES = 20
_MOST_MISSING = 5
_FEW_COLUMNS = 8
_LONGEST_NAME = 60
_TARGET_NAME = re.compile(r"^(target|label|labels|y|outcome|class)$|^(target|label)_|_(target|label)$", re.IGNORECASE)
_ROW_NUMBER_NAME = re.compile(r"^(__index_level_\d+__|unnamed: ?\d+|index|level_\d+)$", re.IGNORECASE)


class WidthMismatch(BadInput):
    """Raised when too many or too few columns fit a model's single tensor."""


@dataclass(frozen=True)
class UserTable:
    """The table to match. `taken`: columns that are not features; `targets`: names of the predicted value."""

    name: str
    schema: pa.Schema
    taken: Collection[str] = ()
    targets: Collection[str] = ()


@dataclass(frozen=True)
class Match:
    """The matched features of a model, and one line that says why these."""

    contract: FeatureContract
    reason: str


def match_columns(signature: Signature, table: UserTable, *, text_by_table: bool = False) -> Match:
    """Match a table's columns to a model's inputs by name; for a single tensor, also by type and order.

    Names match if they differ only in characters other than letters and digits, which libraries clean.
    `text_by_table`: the model takes what it was fitted on, so a text column stays text.

    Raises:
        WidthMismatch: it is unclear which columns fill the single tensor; names all candidates.
        BadInput: an input has no column (names the nearest), or its type does not fit.
    """
    columns = _columns_by_input(signature, table)
    missing = [spec.name for spec in signature.inputs if spec.name not in columns]
    if missing and len(signature.inputs) == 1 and len(signature.inputs[0].shape) <= 1:
        return _fill_tensor(signature, table)
    if missing:
        raise SourceError(_no_columns(missing, table, len(signature.inputs)), field=missing[0])
    features = [
        _in_table(feature, table.schema.field(columns[feature.name]), text_by_table=text_by_table)
        for feature in contract_from_signature(signature).features
    ]
    contract = FeatureContract(tuple(features))
    if text_by_table:
        signature = replace(signature, inputs=contract.fields)
    Vectoriser(contract, signature).check_schema(table.schema, table.name)
    count = len(features)
    reason = f"{count} inputs, each a column of that name" if count > 1 else "the input's name is a column's"
    renamed = [f"{one.name} is {_shown(one.column)}" for one in features if one.column is not None]
    return Match(
        contract, reason=f"{reason}: {_listed(contract.names)}" + (f" ({_listed(renamed)})" if renamed else "")
    )


def _columns_by_input(signature: Signature, table: UserTable) -> dict[str, str]:
    """Return input → column: the column of the same name, else the only one with the same cleaned name."""
    inputs = {spec.name for spec in signature.inputs}
    columns = {name: name for name in table.schema.names if name in inputs}
    if len(signature.inputs) == 1 and signature.inputs[0].shape:
        return columns  # the tensor takes many columns, and its name is not one of theirs
    by_cleaned: dict[str, list[str]] = {}
    for name in table.schema.names:
        if name not in columns and name not in table.taken:
            by_cleaned.setdefault(_cleaned(name), []).append(name)
    cleaned = [_cleaned(spec.name) for spec in signature.inputs]
    for spec in signature.inputs:
        near = by_cleaned.get(_cleaned(spec.name), [])
        if spec.name not in columns and len(near) == 1 and cleaned.count(_cleaned(spec.name)) == 1:
            columns[spec.name] = near[0]
    return columns


def _cleaned(name: str) -> str:
    """Return a name as LightGBM and other libraries clean it."""
    return re.sub(r"[\W_]+", "_", name).strip("_")


def _in_table(feature: Feature, field: pa.Field, *, text_by_table: bool) -> Feature:
    """Return a feature with its column's name and, if `text_by_table`, its type."""
    column = None if field.name == feature.name else field.name
    as_text = replace(feature, dtype=DType.STRING, column=column)
    is_text = not feature.shape and not pa.types.is_null(field.type) and type_problem(as_text, field.type) is None
    return as_text if text_by_table and is_text else replace(feature, column=column)


def match_listed(signature: Signature, table: UserTable, columns: Sequence[str]) -> Match:
    """Take the named columns, in this order, for a model's single tensor.

    Raises:
        BadInput: a column is missing (names the nearest) or does not fit, there are too few or too many, or the model
            has several inputs, which are matched by name.
    """
    if len(signature.inputs) != 1 or len(signature.inputs[0].shape) > 1:
        inputs = ", ".join(spec.name for spec in signature.inputs)
        raise BadInput(f"--columns is for a model with one flat input tensor; this one's inputs: {inputs}")
    only = signature.inputs[0]
    known = set(table.schema.names)
    for name in columns:
        if name not in known:
            raise SourceError(f"{table.name} has no column {name!r} {_nearest(name, table.schema)}", field=name)
    fields = [find_column(table.schema, name, table.name) for name in columns]
    contract = FeatureContract(tuple(_feature(field, only) for field in fields))
    if len(set(columns)) != len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise BadInput(f"--columns names {twice!r} twice", field="columns")
    if contract.width != math.prod(only.shape):
        takes = counted(math.prod(only.shape), "value")
        raise BadInput(
            f"--columns gives {counted(contract.width, 'value')} but the model's input {only.name!r} takes {takes}"
        )
    Vectoriser(contract, signature).check_schema(table.schema, table.name)
    return Match(contract, reason=f"as given: {_listed(columns)}")


def match_written(contract: FeatureContract, signature: Signature, table: UserTable) -> Match:
    """Match a table's columns to a written contract.

    Raises:
        BadInput: a column is missing (names the nearest), or its type does not fit.
    """
    Vectoriser(contract, signature).check_schema(table.schema, table.name)
    return Match(contract, reason=f"as {CONTRACT_FILE} lists them: {_listed(contract.names)}")


def match_logged(contract: FeatureContract, signature: Signature, table: UserTable) -> Match:
    """Match a table's columns to those that the model's registry names, which fill its single tensor.

    Names match as in `match_columns`.

    Raises:
        BadInput: a column is missing (names the nearest), or its type does not fit.
    """
    columns = _columns_by_input(replace(signature, inputs=contract.fields), table)
    missing = [name for name in contract.names if name not in columns]
    if missing:
        raise SourceError(
            f"{table.name} lacks columns of the model's signature in MLflow: {_with_nearest(missing, table)}: rename "
            "the table's columns, or name those of the tensor in its order with --columns",
            field=missing[0],
        )
    features = [_in_table(one, table.schema.field(columns[one.name]), text_by_table=False) for one in contract.features]
    contract = replace(contract, features=tuple(features))
    Vectoriser(contract, signature).check_schema(table.schema, table.name)
    return Match(contract, reason=f"as the model's signature in MLflow lists them: {_listed(contract.names)}")


def _fill_tensor(signature: Signature, table: UserTable) -> Match:
    only = signature.inputs[0]
    width = math.prod(only.shape)
    names = [field.name for field in table.schema if _can_fill(field, only, table)]
    for rules in _leave_out_rules(table):
        kept = [name for name in names if not any(rule(name) for rule, _ in rules)]
        if len(kept) == width:
            return _stacked(signature, names, kept, [words for _, words in rules])
    lists = [field.name for field in table.schema if _can_fill(field, only, table, shape=only.shape)] if width else []
    if not names and len(lists) == 1:
        contract = FeatureContract((Feature(lists[0], only.dtype, only.shape),))
        check_contract(contract, signature)
        return Match(contract, reason=f"{lists[0]!r}, the only column of lists")
    raise WidthMismatch(_mismatch(only, width, names, table), field="columns")


Rule = tuple[Callable[[str], bool], str]


def _leave_out_rules(table: UserTable) -> list[tuple[Rule, ...]]:
    """Return sets of rules for columns to leave out, the smallest first: none, one kind, two kinds, all."""
    targets = {word.lower() for word in table.targets}
    rules: list[Rule] = [
        (lambda name: bool(_ROW_NUMBER_NAME.search(name)), "a row number"),
        (lambda name: name.lower() in targets or bool(_TARGET_NAME.search(name)), "what the model predicts"),
        (looks_like_id, "another id"),
    ]
    return [chosen for size in range(len(rules) + 1) for chosen in combinations(rules, size)]


def _stacked(signature: Signature, names: list[str], kept: list[str], left_out: list[str]) -> Match:
    only = signature.inputs[0]
    contract = FeatureContract(tuple(Feature(name, only.dtype) for name in kept))
    check_contract(contract, signature)
    reason = f"the {counted(len(kept), f'{_kind(only.dtype)} column')}, in the order of the table: {_listed(kept)}"
    taken = set(kept)
    others = [name for name in names if name not in taken]
    if others:
        reason += f" (left out as {' or '.join(left_out)}: {_listed(others)})"
    return Match(contract, reason=reason)


def _can_fill(field: pa.Field, only: TensorSpec, table: UserTable, shape: tuple[int, ...] = ()) -> bool:
    if not field.name or field.name in table.taken or column_problem(field):
        return False
    return not pa.types.is_null(field.type) and type_problem(Feature(field.name, only.dtype, shape), field.type) is None


def _feature(field: pa.Field, only: TensorSpec) -> Feature:
    """Return a named column as a feature. A list of fixed size is a feature of that many values."""
    type_ = field.type
    if pa.types.is_fixed_size_list(type_):
        return Feature(field.name, only.dtype, (type_.list_size,))
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    return Feature(field.name, only.dtype, only.shape if is_list else ())


def _mismatch(only: TensorSpec, width: int, names: list[str], table: UserTable) -> str:
    kind = _kind(only.dtype)
    takes = f"the model's input {only.name!r} takes {counted(width, 'value')}"
    if len(names) < width:
        found_or_taken = {*names, *table.taken}
        others = [name for name in table.schema.names if name not in found_or_taken]
        hint = f"; encode the others as in training: {_listed(others)}" if others else ""
        found = f"only {_listed(names)}" if names else "none"
        return f"{takes}, but of the {kind} columns that {table.name} needs it has {found}{hint}"
    example = json.dumps({"features": [{"name": _shown(names[0]), "dtype": only.dtype.value}]}, ensure_ascii=False)
    return (
        f"{takes}, but {table.name} has {counted(len(names), f'{kind} column')}: {_listed(names)}; name those of the "
        f"tensor in its order with --columns {shlex.quote(_shown(names[0]))},… or write {CONTRACT_FILE} in the model's "
        f"folder: {example[:-2]}, …]}}"
    )


def _no_columns(missing: list[str], table: UserTable, inputs: int) -> str:
    which = "none" if len(missing) == inputs else f"{inputs - len(missing)}"
    return (
        f"{which} of the model's {counted(inputs, 'input is a column', 'inputs are columns')} of "
        f"{table.name}; missing: {_with_nearest(missing, table)}: rename the table's columns to the inputs' names, "
        f'or give each feature its "column" in {CONTRACT_FILE}'
    )


def _with_nearest(missing: list[str], table: UserTable) -> str:
    listed = ", ".join(f"{name!r} {_nearest(name, table.schema)}" for name in missing[:_MOST_MISSING])
    return listed + (f" and {len(missing) - _MOST_MISSING} more" if len(missing) > _MOST_MISSING else "")


def _nearest(name: str, schema: pa.Schema) -> str:
    # people do not distinguish upper and lower case, difflib does
    by_lower = {column.lower(): column for column in schema.names}
    if name.lower() in by_lower:
        return f"(nearest: {by_lower[name.lower()]!r})"
    near = difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.5)
    if near:
        return f"(nearest: {', '.join(repr(by_lower[one]) for one in near)})"
    return f"(its columns: {_listed(schema.names)})" if len(schema.names) <= _FEW_COLUMNS else "(none is near)"


def _kind(dtype: DType) -> str:
    return "text" if dtype is DType.STRING else "bool" if dtype is DType.BOOL else "numeric"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(_shown, names[:_MOST_NAMES]))
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown


def _shown(name: str) -> str:
    """Return a name on one line, shortened."""
    text = shown_name(name)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


_DEFAULT = "serving_default"


def needs_choice(signature: Signature | None, table: UserTable) -> bool:
    """Tell whether another signature may fit a table better than the default one (None: there is none).

    A signature with a single text input may take serialized tf.Examples instead of a column.
    """
    if signature is None:
        return True
    takes_one_text = len(signature.inputs) == 1 and signature.inputs[0].dtype is DType.STRING
    return takes_one_text or not _fits(signature, table)


def choose_signature(found: Mapping[str, SavedSignature], table: UserTable) -> tuple[str, str] | None:
    """Return a signature that fits the table better than the default one, and why; None to keep the default.

    Raises:
        ModelError: the default takes tf.Examples or is missing, and not exactly one of the others fits.
    """
    names = ", ".join(sorted(found)) or "none"
    default = found.get(_DEFAULT) or (next(iter(found.values())) if len(found) == 1 else None)
    fitting = [name for name, one in found.items() if one is not default and _takes_columns(one, table)]
    if default is not None and not default.reads_examples and (_fits(default.signature, table) or len(fitting) != 1):
        return None
    why = f"{_DEFAULT} takes serialized tf.Examples" if default and default.reads_examples else f"of {names}"
    if len(fitting) == 1:
        return fitting[0], f"the only one that fits {table.name} ({why})"
    if len(fitting) > 1:
        raise ModelError(f"{' and '.join(fitting)} fit {table.name} both: say which by --signature", field="signature")
    if default is None:
        raise ModelError(
            f"the model has no signature {_DEFAULT!r}, and of those that it has ({names}) none fits {table.name}: "
            "say which by --signature, or export it with one input a column",
            field="signature",
        )
    raise ModelError(
        f"the model takes serialized tf.Examples, not columns of a table, and none of its signatures ({names}) fits "
        f"{table.name}: export one with an input for each column, in signatures= of tf.saved_model.save",
        field="signature",
    )


def _takes_columns(one: SavedSignature, table: UserTable) -> bool:
    return not one.reads_examples and _fits(one.signature, table)


def _fits(signature: Signature, table: UserTable) -> bool:
    try:
        match_columns(signature, table)
    except BadInput:
        return False
    return True
