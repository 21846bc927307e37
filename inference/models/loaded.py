"""A version in memory: loaded, fitted with its feature contract, and warmed up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.clock import Clock, system_clock
from inference.errors import ContractError, ModelError, PredictionFailed
from inference.features import FeatureContract, FeatureFunctions, Vectoriser, read_contract, written_contract
from inference.features.functions import check_code_allowed
from inference.logs import get_logger
from inference.models.formats import Format, require_model_file
from inference.models.record import VersionRecord
from inference.models.runtimes import LoadOptions, Runtime, load_runtime
from inference.models.versions import check_confined, fingerprint
from inference.schema import Block, DType

log = get_logger(__name__)


@dataclass
class LoadedModel:
    """One version of a model, ready to compute."""

    model: str
    record: VersionRecord
    vectoriser: Vectoriser
    runtime: Runtime

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name, rows in the order of the inputs; a trailing dimension of 1 is dropped.

        Raises:
            PredictionFailed: the model raised on these rows.
        """
        return self.runtime.predict(inputs)


def load_version(
    model: str,
    path: Path,
    version: int,
    folder: Path,
    *,
    options: LoadOptions | None = None,
    contract: FeatureContract | None = None,
    warm_up_rows: Sequence[int] = (1,),
    clock: Clock = system_clock,
) -> LoadedModel:
    """Load a version and warm it up. `path` is the model's folder, `folder` the version's.

    `contract`: takes the place of what is written in the folders; None for what is written there.

    Raises:
        ModelError: the folder cannot be served, a link leads out of it, or the model fails on a row of defaults, or
            answers none with numbers.
        ContractError: its features and its signature disagree.
        ModelError: its features name code that the settings do not allow, or that cannot be imported.
    """
    started = time.monotonic()
    check_confined(path, folder)
    given = contract or written_contract(path, folder)
    runtime = load_runtime(folder, options=options, contract=given)
    contract = contract or read_contract(path, folder, runtime.signature)
    format_ = require_model_file(folder).format
    _check_missing_text(contract, format_)
    vectoriser = Vectoriser(contract, runtime.signature, _functions(contract, options or LoadOptions()))
    _warm_up(model, version, vectoriser, runtime, warm_up_rows)
    record = VersionRecord(
        version=version,
        state="ready",
        signature=runtime.signature,
        contract=contract,
        fingerprint=fingerprint(folder),
        inspected_at=clock(),
        format=format_.name,
    )
    took_s = round(time.monotonic() - started, 2)
    log.info("model.loaded", model=model, version=version, device=runtime.device, took_s=took_s)
    return LoadedModel(model, record, vectoriser, runtime)


def _check_missing_text(contract: FeatureContract, format_: Format) -> None:
    for feature in contract.features:
        if feature.nullable and feature.dtype is DType.STRING and not format_.missing_text:
            raise ContractError(
                f"feature {feature.name!r} is text that may be missing (nullable), and no value of a tensor of text "
                f'says so ({format_.title}): write "default" in place of "nullable" in features.json, such as "" if '
                "the model was trained with that",
                field=feature.name,
            )


def _functions(contract: FeatureContract, options: LoadOptions) -> FeatureFunctions:
    check_code_allowed(contract, allow_code=options.allow_code)
    functions = FeatureFunctions(contract, options.code_folder)
    if options.import_functions:
        functions.import_all()
    return functions


def warm_up_inputs(vectoriser: Vectoriser, rows: int) -> Block:
    """Return the inputs of so many rows of defaults, with zeros and "" where there is no default."""
    block = vectoriser.defaults(rows).block
    # a NaN that the model may be given tells nothing of whether it answers with numbers
    known = {
        feature.name: np.nan_to_num(block[feature.name]) if feature.dtype.is_float else block[feature.name]
        for feature in vectoriser.contract.features
    }
    return vectoriser.inputs(known)


def _warm_up(model: str, version: int, vectoriser: Vectoriser, runtime: Runtime, sizes: Sequence[int]) -> None:
    """Call the model once for each size, so that no request pays for the first call."""
    for count in sizes:
        inputs = warm_up_inputs(vectoriser, count)
        try:
            bad = _not_finite(runtime.predict(inputs))
            if bad and _not_finite(runtime.predict(_zeros_to_ones(inputs))):
                # zeros may be no legal values (a logarithm): a model is refused when it answers ones no better
                raise ModelError(
                    f"version {version} of model {model!r} answers its warm-up row with {bad!r} not a finite number: "
                    "its weights may be broken, or its features need defaults in features.json that it can answer"
                )
        except PredictionFailed as error:
            if not _made_up_text(vectoriser.contract):
                raise ModelError(f"version {version} of model {model!r} fails on its warm-up row: {error}") from error
            # a vocabulary may refuse "", which no real row holds: that is no fault of the model
            log.warning("model.warm_up_skipped", model=model, version=version, reason=error.message)
            return


def _not_finite(outputs: Block) -> str | None:
    """Return the name of an output that is no finite number in any row; None when there is none."""
    for name, values in outputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).any():
            return name
    return None


def _zeros_to_ones(inputs: Block) -> Block:
    return {
        name: values if values.dtype == object else np.where(values == 0, np.ones_like(values), values)
        for name, values in inputs.items()
    }


def _made_up_text(contract: FeatureContract) -> bool:
    return any(
        feature.dtype is DType.STRING and feature.default is None and not feature.nullable
        for feature in contract.features
    )
