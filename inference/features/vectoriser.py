"""The one way from tables and requests to a model's inputs, shared by batch and real time.

There are two steps. First, values become *features*: arrays by name in the contract's dtypes, with defaults filled in
and unusable rows marked. Feature tables hold them. Then features become *inputs*: the model's tensors.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.errors import ContractError, SourceError
from inference.features.columns import column_values, type_problem
from inference.features.contract import CONTRACT_FILE, FeatureContract, check_contract, is_stacked
from inference.features.feature import Feature
from inference.features.functions import FeatureFunctions
from inference.features.instances import Instance, check_names, instance_columns, rows_from_instances
from inference.features.key_columns import GroupTimes, check_event_time_column
from inference.features.rows import FeatureColumns, FeatureRows, Mask, StoredForm, blank
from inference.schema import Block, DType, Signature, TensorSpec, rows_in
from inference.sources import column_type_name, find_column

#: up to so many rows, as in a request, one call for all columns takes less time than a copy of each
_FEW_ROWS = 1024


class Vectoriser:
    """Turns rows into the inputs of one model. Holds no state: several threads may share one."""

    def __init__(
        self, contract: FeatureContract, signature: Signature, functions: FeatureFunctions | None = None
    ) -> None:
        check_contract(contract, signature)
        self.contract = contract
        self.signature = signature
        #: the table columns that it needs: features that are not computed, in order, then times of groups
        self.columns: list[str] = _columns(contract)
        #: those of them that become text
        self.text_columns = [one.table_column for one in contract.given if one.dtype is DType.STRING and not one.shape]
        self._functions = functions or FeatureFunctions(contract)
        self._stacked = is_stacked(contract, signature)
        self._has_rules = any(feature.legal is not None for feature in contract.given)

    def check_schema(self, schema: pa.Schema, source: str, *, stored_only: bool = False) -> None:
        """Refuse a table whose columns cannot become the features. `source`: the table's name for messages.

        `stored_only`: the table need not have the features that come with a request.

        Raises:
            SourceError: a column is missing (the message names the nearest one), or its type cannot be cast.
        """
        names = set(schema.names)
        for feature in self.contract.stored_form.features if stored_only else self.contract.given:
            hint = "" if feature.table_column in names else self._hint(feature, schema)
            field = find_column(schema, feature.table_column, source, hint=hint)
            problem = type_problem(feature, field.type, column_type_name(field))
            if problem:
                raise SourceError(f"{source}: column {feature.table_column!r} {problem}", field=feature.name)
        for group in self.contract.table_groups:
            if group.event_time_column is not None:
                role = f"the event_time_column of group {group.name!r}"
                field = find_column(schema, group.event_time_column, source, role=role)
                check_event_time_column(group.event_time_column, field.type)

    def features_from_arrow(
        self, batch: pa.RecordBatch, *, at: float | None = None, times: GroupTimes | None = None
    ) -> FeatureRows:
        """Return the features of a table's rows as of `at`. The schema must have passed `check_schema`.

        `at`: epoch seconds; None leaves the features of functions blank. `times`: by table group, as `group_times`
        returns them; None if the age of groups does not matter.
        """
        rows, columns = self._read(batch, self.contract.given)
        for group in self.contract.table_groups if times else ():
            group_times = (times or {})[group.name]
            absent = np.isnan(group_times)
            if group.max_age_s is not None and at is not None:
                columns.too_old[group.name] = group_times < at - group.max_age_s
                absent = absent | columns.too_old[group.name]
            if absent.any():
                for feature in self.contract.features_of(group.name):
                    columns.missing[feature.name] = columns.missing[feature.name] | absent
        return self._complete(rows, columns, {}, at)

    def stored_from_arrow(self, batch: pa.RecordBatch, times: GroupTimes) -> FeatureRows:
        """Return the features of the table groups in the form of the feature table, whatever their age.

        A row without a time of a group may lack all values of the group.
        """
        form = self.contract.stored_form
        rows, columns = self._read(batch, form.features)
        for feature in form.features:
            absent = np.isnan(times[feature.group])
            rows.add(feature, columns.values[feature.name], columns.missing[feature.name], excused=absent)
        return rows

    def features_from_rows(self, rows: Sequence[Instance], *, at: float | None = None) -> FeatureRows:
        """Return the features of a request's instances: objects by name, or lists of values in order.

        A model with one feature also takes the bare value. Rows that do not fit are rejected. Features of functions
        that an instance lacks are computed as of `at` (epoch seconds); None leaves them blank.
        """
        found, columns = instance_columns(rows, self.contract)
        return self._complete(found, columns, {}, at)

    def features_from_block(self, block: Block, count: int, *, at: float | None = None) -> FeatureRows:
        """Return the features of `count` stored rows, which an older contract may have written.

        A feature that is not stored takes its default, else the rows are rejected. `at`: as in `features_from_rows`.
        """
        return self.features_from_columns(self.stored_columns(block, count), count, at=at)

    def stored_columns(
        self, block: Block, count: int, form: StoredForm | None = None, *, written: StoredForm | None = None
    ) -> FeatureColumns:
        """Return the values of stored rows that can become features.

        `form`: that of the rows; None for whole rows, which also lack all features that come with a request. `written`:
        the form in which another contract wrote them, None for the same: it says which values were missing.
        """
        columns = FeatureColumns({}, (written or form or self.contract.stored_form).missing(block))
        for feature in form.features if form else self.contract.given:
            stored = block.get(feature.name)
            if stored is not None and stored.dtype == feature.dtype.numpy and stored.shape[1:] == feature.shape:
                columns.values[feature.name] = stored
            elif stored is None or not _castable(stored, feature):
                columns.values[feature.name] = blank(feature, count)
                columns.missing[feature.name] = np.ones(count, dtype=bool)
            else:
                with np.errstate(over="ignore"):
                    columns.values[feature.name] = stored.astype(feature.dtype.numpy)
                columns.to_check.add(feature.name)
        return columns

    def features_from_columns(
        self,
        columns: FeatureColumns,
        count: int,
        *,
        overrides: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> FeatureRows:
        """Return the features of `count` rows. A missing value takes the feature's default, else the row is rejected.

        `overrides` replace the features that they name in every row. `at`: as in `features_from_rows`.

        Raises:
            ContractError: an override names no feature, or does not fit it.
        """
        rows = FeatureRows({}, np.zeros(count, dtype=bool))
        if not overrides:
            return self._complete(rows, columns, {}, at)
        given = self.override_values(overrides)
        self._complete(rows, columns, given.block, at)
        rows.imputed |= {name: np.ones(count, dtype=bool) for name in given.imputed}
        return rows

    def _read(self, batch: pa.RecordBatch, features: Sequence[Feature]) -> tuple[FeatureRows, FeatureColumns]:
        """Return rows in which only values that do not fit are rejected, and the values of a table's rows."""
        rows = FeatureRows({}, np.zeros(batch.num_rows, dtype=bool))
        columns = FeatureColumns({}, {}, to_check={feature.name for feature in features})
        for feature in features:
            column = batch.column(feature.table_column)
            if isinstance(column, pa.ChunkedArray):  # the caller has a Table
                column = column.combine_chunks()
            values, is_missing, misfit = column_values(column, feature)
            if misfit.any():
                _reject_misfit(rows, feature, misfit)
            columns.values[feature.name], columns.missing[feature.name] = values, is_missing & ~misfit
        return rows, columns

    def _complete(self, rows: FeatureRows, columns: FeatureColumns, overrides: Block, at: float | None) -> FeatureRows:
        """Add all features to the rows, those of functions last. `overrides`: one row of the features that it names."""
        if overrides or columns.missing or columns.to_check or self._has_rules:
            self._add_given(rows, columns, overrides)
        else:  # nearly always: a look at each feature would cost a microsecond
            rows.block.update({feature.name: columns.values[feature.name] for feature in self.contract.given})
        if self.contract.computed:
            self._add_computed(rows, columns, overrides, at)
            rows.block = {name: rows.block[name] for name in self.contract.names}
        return rows

    def _add_given(self, rows: FeatureRows, columns: FeatureColumns, overrides: Block) -> None:
        """Add the features that are not computed."""
        for feature in self.contract.given:
            name = feature.name
            if name in overrides:
                rows.block[name] = np.repeat(overrides[name], len(rows.rejected), axis=0)
            else:
                rows.add(
                    feature,
                    columns.values[name],
                    columns.missing.get(name),
                    too_old=columns.too_old.get(feature.group),
                    check_numbers=name in columns.to_check,
                )

    def _add_computed(self, rows: FeatureRows, columns: FeatureColumns, overrides: Block, at: float | None) -> None:
        """Add the features of functions. Those that are not given are computed from the rows that are good so far."""
        count, good = len(rows.rejected), ~rows.rejected
        wanted = {
            feature.name
            for feature in self.contract.computed
            if feature.name not in overrides and columns.missing.get(feature.name, good).any()
        }
        computed = {}
        if wanted and at is not None and good.any():
            computed = self._functions.compute(rows.usable(), at, wanted)
        for feature in self.contract.computed:
            name = feature.name
            if name in overrides:
                rows.block[name] = np.repeat(overrides[name], count, axis=0)
                continue
            values = columns.values[name].copy() if name in columns.values else blank(feature, count)
            missing = columns.missing.get(name, np.ones(count, dtype=bool)).copy()
            if name in computed:
                result = computed[name]  # of the good rows
                chosen = missing[good]
                target = np.flatnonzero(good)[chosen]
                values[target] = result.array[chosen]
                missing[target] = result.missing[chosen]
                misfit = np.zeros(count, dtype=bool)
                misfit[target] = result.misfit[chosen]
                _reject_misfit(rows, feature, misfit)
            rows.add(feature, values, missing, excused=~good if at is not None else missing)

    def override_values(self, overrides: Mapping[str, Any]) -> FeatureRows:
        """Return the overrides as one row of the features that they name.

        Raises:
            ContractError: an override names no feature, or does not fit it.
        """
        check_names(overrides, self.contract)
        chosen = [feature for feature in self.contract.features if feature.name in overrides]
        if not chosen:
            return FeatureRows({}, np.zeros(1, dtype=bool))
        rows = rows_from_instances([overrides], FeatureContract(tuple(chosen)))
        for reason in rows.reasons:
            message = (
                reason.reason if reason.feature in reason.reason else f"feature {reason.feature!r}: {reason.reason}"
            )
            raise ContractError(message, field=reason.feature)
        return rows

    def defaults(self, count: int) -> FeatureRows:
        """Return rows that hold every feature's default. They are rejected if a feature has none."""
        return self.features_from_block({}, count)

    def inputs(self, features: Block) -> Block:
        """Return the inputs by name, of shape [rows, *input.shape]. The same features give the same bits."""
        count = rows_in(features)
        if not self._stacked:
            return {spec.name: _as_input(features[spec.name], spec) for spec in self.signature.inputs}
        only = self.signature.inputs[0]
        if self.contract.all_scalar and count <= _FEW_ROWS:
            columns = np.concatenate(
                [features[name] for name in self.contract.names], dtype=only.dtype.numpy, casting="unsafe"
            )
            few = np.ascontiguousarray(columns.reshape(-1, count).T)
            return {only.name: few if only.shape else few[:, 0]}
        stacked = np.empty((count, self.contract.width), dtype=only.dtype.numpy)
        start = 0
        for feature in self.contract.features:
            stacked[:, start : start + feature.width] = features[feature.name].reshape(count, feature.width)
            start += feature.width
        return {only.name: stacked if only.shape else stacked[:, 0]}

    def _hint(self, feature: Feature, schema: pa.Schema) -> str:
        """Return the fix for a table that lacks the feature's column; "" to suggest the nearest name only."""
        if feature.shape and len(self.contract.features) == 1:
            return f"list its {feature.width} columns in the model's {CONTRACT_FILE}, in the order of the tensor"
        near = difflib.get_close_matches(feature.table_column, schema.names, n=1, cutoff=0.5)
        return f'did you mean {near[0]!r}? (a feature may say "column": "{near[0]}" in {CONTRACT_FILE})' if near else ""


def _columns(contract: FeatureContract) -> list[str]:
    times = [group.event_time_column for group in contract.table_groups if group.event_time_column is not None]
    return list(dict.fromkeys([*(feature.table_column for feature in contract.given), *times]))


def _reject_misfit(rows: FeatureRows, feature: Feature, misfit: Mask) -> None:
    reason = f"out of range for {feature.dtype}"
    if feature.shape:
        reason = f"wrong number of values, or one {reason}" if feature.dtype.is_integer else "wrong number of values"
    rows.reject(feature.name, reason + feature.of_group, misfit)


def _as_input(values: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    shape = values.shape[1:] if -1 in spec.shape else spec.shape
    return values.astype(spec.dtype.numpy, copy=False).reshape(len(values), *shape)


def _castable(stored: npt.NDArray[Any], feature: Feature) -> bool:
    if stored.shape[1:] != feature.shape:
        return False
    if stored.dtype == feature.dtype.numpy:
        return True
    if feature.dtype is DType.STRING or stored.dtype.kind == "O":
        return feature.dtype is DType.STRING and stored.dtype.kind == "O"
    # floats may lose digits, as they do from a table; an integer that no longer fits must be loaded anew
    return np.can_cast(stored.dtype, feature.dtype.numpy, "same_kind" if feature.dtype.is_float else "safe")
