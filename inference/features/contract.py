"""The feature contract: the names, dtypes, shapes and defaults of a model's features, in the model's order."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inference.errors import ContractError, quoted, shown_name
from inference.features.feature import EXAMPLE, Feature
from inference.features.groups import CLOCK_FUNCTIONS, DEFAULT_GROUP, FeatureGroup, GroupSource
from inference.features.rows import StoredForm
from inference.schema import DType, Signature, TensorSpec
from inference.small_files import read_small_text

CONTRACT_FILE = "features.json"
#: in a version's folder, the columns that the registry of the model names, in the form of `CONTRACT_FILE`
LOGGED_FILE = "mlflow-features.json"


@dataclass(frozen=True)
class FeatureContract:
    """The features of a model in order. Two contracts with the same `hash` take the same values."""

    features: tuple[Feature, ...]
    groups: tuple[FeatureGroup, ...] = (FeatureGroup(),)

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits, which change with every change of `features.json`."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def fields(self) -> tuple[TensorSpec, ...]:
        """The features as named tensors."""
        return tuple(feature.spec for feature in self.features)

    @cached_property
    def names(self) -> list[str]:
        """Names of the features, in order."""
        return [feature.name for feature in self.features]

    @cached_property
    def name_set(self) -> frozenset[str]:
        """The same names, to look whether one is there."""
        return frozenset(self.names)

    @cached_property
    def table_groups(self) -> tuple[FeatureGroup, ...]:
        """The groups that the feature table stores."""
        return self.groups_from(GroupSource.TABLE)

    @cached_property
    def has_several_groups(self) -> bool:
        """Whether the feature table stores several groups, each with its own age."""
        return len(self.table_groups) > 1

    @cached_property
    def given(self) -> tuple[Feature, ...]:
        """The features that no function computes, in order."""
        functions = {group.name for group in self.groups_from(GroupSource.FUNCTION)}
        return tuple(feature for feature in self.features if feature.group not in functions)

    @cached_property
    def computed(self) -> tuple[Feature, ...]:
        """The features that functions compute, in order."""
        functions = {group.name for group in self.groups_from(GroupSource.FUNCTION)}
        return tuple(feature for feature in self.features if feature.group in functions)

    @cached_property
    def stored_form(self) -> StoredForm:
        """The form of a row of the feature table."""
        groups = [group.name for group in self.table_groups]
        stored = tuple(feature for feature in self.features if feature.group in groups)
        return StoredForm(stored, tuple(groups) if self.has_several_groups else ())

    def group_form(self, group: str) -> StoredForm:
        """Return the form of a row of one table group alone, which an update stores if there are several groups."""
        return StoredForm(self.features_of(group))

    @property
    def stored_fields(self) -> tuple[TensorSpec, ...]:
        """The schema of the feature table."""
        return self.stored_form.fields

    def groups_from(self, source: GroupSource) -> tuple[FeatureGroup, ...]:
        """Return the groups with this source."""
        return tuple(group for group in self.groups if group.source is source)

    def features_of(self, group: str) -> tuple[Feature, ...]:
        """Return the features of a group, in order."""
        return tuple(feature for feature in self.features if feature.group == group)

    @cached_property
    def width(self) -> int:
        """The number of elements of all values of one entity."""
        return sum(feature.width for feature in self.features)

    @cached_property
    def all_scalar(self) -> bool:
        """Whether every feature is a single value."""
        return not any(feature.shape for feature in self.features)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, in the form of `features.json`."""
        data: dict[str, Any] = {"features": [feature.to_json() for feature in self.features]}
        declared = {group.name: group.to_json() for group in self.groups if group != FeatureGroup()}
        return data | ({"groups": declared} if declared else {})

    @classmethod
    def from_json(cls, data: Any) -> FeatureContract:
        """Read the JSON values of a `features.json`, or of `to_json`.

        Raises:
            ContractError: they have another form, or a name appears twice.
        """
        items = data.get("features") if isinstance(data, dict) else None
        if not isinstance(items, list) or not items:
            raise ContractError(f'{CONTRACT_FILE} must be {{"features": [{EXAMPLE}, …]}}')
        features = tuple(Feature.from_json(item) for item in items)
        seen: set[str] = set()
        for feature in features:
            if feature.name in seen:
                raise ContractError(f"feature {quoted(feature.name)} appears twice: remove one", field=feature.name)
            seen.add(feature.name)
        _check_columns(features)
        return cls(features, _groups(data.get("groups", {}), features))


def _check_columns(features: tuple[Feature, ...]) -> None:
    taken: dict[str, str] = {}
    for feature in features:
        other = taken.setdefault(feature.table_column, feature.name)
        if other != feature.name:
            raise ContractError(
                f"features {quoted(other)} and {quoted(feature.name)} are both the column "
                f"{quoted(feature.table_column)}: "
                'give each a "column" of its own',
                field=feature.name,
            )


def _groups(data: Any, features: tuple[Feature, ...]) -> tuple[FeatureGroup, ...]:
    """Return the declared groups, and the default group if a feature names no group."""
    if not isinstance(data, dict):
        raise ContractError('groups must be an object, as in {"profile": {"source": "table", "max_age": "24h"}}')
    groups = {name: FeatureGroup.from_json(name, given) for name, given in data.items()}
    used: dict[str, int] = {}
    for feature in features:
        used[feature.group] = used.get(feature.group, 0) + 1
        if feature.group not in groups:
            if feature.group != DEFAULT_GROUP:
                raise ContractError(
                    f"feature {quoted(feature.name)}: group {quoted(feature.group)} is not declared under groups; "
                    f"declared: {', '.join(map(shown_name, groups)) or 'none'}",
                    field=feature.name,
                )
            groups[DEFAULT_GROUP] = FeatureGroup()
    for group in groups.values():
        if group.name not in used:
            message = f"group {quoted(group.name)} has no feature: remove it, or name it in one"
            raise ContractError(message, field=group.name)
        if group.function in CLOCK_FUNCTIONS and used[group.name] != 1:
            raise ContractError(
                f"group {quoted(group.name)}: {group.function} is one feature, and the group has {used[group.name]}: "
                "declare a group for each",
                field=group.name,
            )
    return tuple(groups.values())


def read_contract(folder: Path, version_folder: Path, signature: Signature) -> FeatureContract:
    """Return the model's feature contract, checked against its signature.

    Reads `features.json` in the version's folder, else in the model's folder. Without one, the columns that its
    registry names fill the model's single tensor, else every named input is a feature. If an input then has a dimension
    of unknown size, the contract is empty: the model takes tensors only.

    Raises:
        ContractError: the file is malformed, or contradicts the signature or the registry; names the feature or input.
    """
    contract = written_contract(folder, version_folder)
    if contract is None:
        stacked = _logged_for(version_folder, signature)
        has_free = any(-1 in spec.shape for spec in signature.inputs)
        return stacked or (FeatureContract(()) if has_free else contract_from_signature(signature))
    check_contract(contract, signature)
    return contract


def logged_contract(version_folder: Path) -> FeatureContract | None:
    """Return the columns that the registry of a version names; None if there are none, or they cannot be read."""
    file = version_folder / LOGGED_FILE
    try:
        return _read_file(file) if file.is_file() else None
    except ContractError:
        return None


def _logged_for(version_folder: Path, signature: Signature) -> FeatureContract | None:
    """Return the features that fill a model's single tensor, by the registry; None if its columns do not fit there."""
    logged = logged_contract(version_folder)
    if logged is None or not is_stacked(logged, signature):
        return None
    contract = replace(logged, features=tuple(_in_tensor(one, signature.inputs[0].dtype) for one in logged.features))
    try:
        check_contract(contract, signature)
    except ContractError:
        return None
    return contract


def _in_tensor(feature: Feature, dtype: DType) -> Feature:
    """Return a feature with the type of the tensor. No text becomes a number, and only floats have a missing value."""
    is_text = feature.dtype is DType.STRING
    return replace(feature, dtype=DType.STRING if is_text else dtype, nullable=feature.nullable and dtype.is_float)


def check_order(contract: FeatureContract, version_folder: Path, signature: Signature) -> None:
    """Refuse a contract that fills a single tensor in another order of columns than the registry names.

    Raises:
        ContractError: names the first column that differs.
    """
    logged = _logged_for(version_folder, signature)
    if logged is None or not is_stacked(contract, signature) or sorted(logged.names) != sorted(contract.names):
        return
    for ours, theirs in zip(contract.names, logged.names, strict=True):
        if ours != theirs:
            raise ContractError(
                f"{CONTRACT_FILE} has {quoted(ours)} where the signature in MLflow has {quoted(theirs)}, and the order "
                "decides what the model gets: use the order of the signature, or log the model with the right one",
                field=ours,
            )


def written_contract(folder: Path, version_folder: Path) -> FeatureContract | None:
    """Return the contract in `features.json`, unchecked by any signature; None if there is no file.

    Raises:
        ContractError: the file is malformed.
    """
    file = find_contract(folder, version_folder)
    return _read_file(file) if file else None


def find_contract(folder: Path, version_folder: Path) -> Path | None:
    """Return the `features.json` of a version of the model in `folder`; None if there is none."""
    places = (version_folder / CONTRACT_FILE, folder / CONTRACT_FILE)
    return next((file for file in places if file.is_file()), None)


def contract_from_signature(signature: Signature) -> FeatureContract:
    """Return the contract of a model with one named input for each feature.

    Raises:
        ContractError: an input has a dimension of unknown size.
    """
    if any(-1 in spec.shape for spec in signature.inputs):
        raise no_features(signature)
    # [None, 1] is one number a row
    return FeatureContract(
        tuple(Feature(spec.name, spec.dtype, () if spec.shape == (1,) else spec.shape) for spec in signature.inputs)
    )


def no_features(signature: Signature) -> ContractError:
    """Return the error for a model whose features are not listed, and do not follow from its inputs."""
    spec = next((spec for spec in signature.inputs if -1 in spec.shape), None)
    if spec is None:
        return ContractError("the model computes no rows: it takes no features, only calls of its signatures (/v1)")
    example = json.dumps(Feature(spec.name, spec.dtype, _example_shape(spec.shape, 9)).to_json())
    more = ", …" if len(signature.inputs) > 1 else ""
    return ContractError(
        f"input {quoted(spec.name)} has a dimension of unknown size, so the model takes tensors only (/v1, /v2): list "
        f'its columns in {CONTRACT_FILE}, a column of lists as {{"features": [{example}{more}]}} with the length to '
        "which its rows are padded",
        field=spec.name,
    )


def _example_shape(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return the shape with `size` for its first free dimension, and 1 for the other free ones."""
    sizes = iter([size])
    return tuple(fixed if fixed >= 0 else next(sizes, 1) for fixed in shape)


def is_stacked(contract: FeatureContract, signature: Signature) -> bool:
    """Tell whether the model's single input holds all features side by side."""
    if len(signature.inputs) != 1:
        return False
    only = signature.inputs[0]
    return contract.names != [only.name] and len(only.shape) <= 1


def check_contract(contract: FeatureContract, signature: Signature) -> None:
    """Refuse a contract that does not fill the model's inputs.

    Raises:
        ContractError: names the feature or the input, and what to change.
    """
    if not contract.features:
        raise no_features(signature)
    if is_stacked(contract, signature):
        _check_stacked(contract, signature.inputs[0])
    else:
        _check_named(contract, signature)


def _check_stacked(contract: FeatureContract, only: TensorSpec) -> None:
    wanted = math.prod(only.shape)
    if wanted >= 0 and contract.width != wanted:
        raise ContractError(
            f"{CONTRACT_FILE} lists {contract.width} values but the model's input {quoted(only.name)} takes "
            f"{wanted}: "
            "list them all, in the order of the tensor",
            field=only.name,
        )
    for feature in contract.features:
        _check_castable(feature, only)


def _check_named(contract: FeatureContract, signature: Signature) -> None:
    inputs = {spec.name: spec for spec in signature.inputs}
    for feature in contract.features:
        spec = inputs.pop(feature.name, None)
        if spec is None:
            raise ContractError(
                f"feature {quoted(feature.name)} is no input of the model; its inputs: "
                + ", ".join(shown_name(one.name) for one in signature.inputs),
                field=feature.name,
            )
        _check_castable(feature, spec)
        _check_shape(feature, spec)
    if inputs:
        name = next(iter(inputs))
        raise ContractError(f"the model's input {quoted(name)} is not in {CONTRACT_FILE}: add it", field=name)


def _check_shape(feature: Feature, spec: TensorSpec) -> None:
    """Refuse a feature with another size than its input. If the input has a free dimension, the ranks must be equal."""
    if -1 not in spec.shape:
        if feature.width == math.prod(spec.shape):
            return
        fix = f"correct its shape in {CONTRACT_FILE}"
    else:
        same_rank = len(feature.shape) == len(spec.shape)
        if same_rank and all(size in (-1, given) for given, size in zip(feature.shape, spec.shape, strict=True)):
            return
        fixed = math.prod(size for size in spec.shape if size >= 0)
        shape = _example_shape(spec.shape, max(1, feature.width // max(1, fixed)))
        fix = f"give it a shape such as {list(shape)} in {CONTRACT_FILE}"
    takes = list(spec.shape)
    raise ContractError(
        f"feature {quoted(feature.name)} has shape {list(feature.shape)} but the model's input takes {takes}: {fix}",
        field=feature.name,
    )


def _check_castable(feature: Feature, spec: TensorSpec) -> None:
    fits = (
        feature.dtype is spec.dtype
        or (spec.dtype.is_float and feature.dtype is not DType.STRING)
        or (spec.dtype.is_integer and (feature.dtype.is_integer or feature.dtype is DType.BOOL))
    )
    if not fits:
        raise ContractError(
            f"feature {quoted(feature.name)} is {feature.dtype} but the model's input {quoted(spec.name)} is "
            f"{spec.dtype}: "
            f"declare a dtype in {CONTRACT_FILE} that can become {spec.dtype}",
            field=feature.name,
        )


def _read_file(file: Path) -> FeatureContract:
    try:
        return FeatureContract.from_json(json.loads(read_small_text(file)))
    except OSError as error:
        raise ContractError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{file} is not valid JSON: {error}") from error
    except ContractError as error:
        raise ContractError(f"{file}: {error.message}", field=error.field) from error
