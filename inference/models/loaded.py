"""A version in memory: loaded, fitted with its feature contract, and warmed up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.clock import Clock, system_clock
from inference.errors import ContractError, ModelError
from inference.features import FeatureContract, FeatureFunctions, Vectoriser, read_contract, written_contract
from inference.features.contract import no_features
from inference.features.functions import check_code_allowed
from inference.logs import get_logger
from inference.models.formats import Format, require_model_file
from inference.models.outputs import call, served
from inference.models.proof import prove
from inference.models.real_rows import RealRows
from inference.models.record import VersionRecord
from inference.models.runtimes import LoadOptions, Runtime, load_runtime
from inference.models.versions import check_confined, fingerprint
from inference.schema import Block, DType, Signature

log = get_logger(__name__)

#: two sizes: outputs whose shape depends on the number of rows are found out
WARM_UP_ROWS = (1, 2)
NO_ROWS = RealRows()
#: a wide table with an input for each column has some thousands
_MOST_TENSORS = 10_000
_LONGEST_NAME = 1_000


@dataclass
class LoadedModel:
    """One version of a model, ready to compute. `own_vectoriser`: None when nobody has listed its features."""

    model: str
    record: VersionRecord
    own_vectoriser: Vectoriser | None
    runtime: Runtime

    @property
    def vectoriser(self) -> Vectoriser:
        """What turns features into its inputs.

        Raises:
            ContractError: nobody has listed its features, so that it takes tensors only.
        """
        if self.own_vectoriser is None:
            raise no_features(self.record.signature)
        return self.own_vectoriser

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name, rows in the order of the inputs; a trailing dimension of 1 is dropped.

        Raises:
            PredictionFailed: the model raised on these rows, or answered in another form than it declares.
        """
        return served(call(self.runtime, inputs), self.record.signature)


def load_version(
    model: str,
    path: Path,
    version: int,
    folder: Path,
    *,
    options: LoadOptions | None = None,
    contract: FeatureContract | None = None,
    rows: RealRows = NO_ROWS,
    known: VersionRecord | None = None,
    warm_up_rows: Sequence[int] = WARM_UP_ROWS,
    clock: Clock = system_clock,
) -> LoadedModel:
    """Load a version, and try it before it may serve. `path` is the model's folder, `folder` the version's.

    `contract`: takes the place of what is written in the folders; None for what is written there. `rows`: where rows
    are to try it with. `known`: what is recorded of the version; one that has answered rows is not tried again.

    Raises:
        ModelError: the folder cannot be served, a link leads out of it, or the model answers no row (see `prove`).
        ContractError: its features and its signature disagree.
        ModelError: its features name code that the settings do not allow, or that cannot be imported.
        ModelUnavailable: an engine elsewhere did not answer.
        StoreUnavailable: Redis did not answer in time.
    """
    started = time.monotonic()
    check_confined(path, folder)
    given = contract or written_contract(path, folder)
    runtime = load_runtime(folder, options=options, contract=given)
    _check_size(runtime.signature)
    contract = contract or read_contract(path, folder, runtime.signature)
    format_ = require_model_file(folder).format
    _check_missing_text(contract, format_)
    vectoriser = None
    if contract.features:
        vectoriser = Vectoriser(contract, runtime.signature, _functions(contract, options or LoadOptions()))
    mark = fingerprint(folder)
    is_proved = known is not None and known.is_proved and (known.fingerprint, known.contract) == (mark, contract)
    proof = prove(runtime, vectoriser, rows, sizes=warm_up_rows, is_proved=is_proved)
    record = VersionRecord(
        version=version,
        state="ready",
        signature=proof.signature,
        contract=contract,
        fingerprint=mark,
        inspected_at=clock(),
        format=format_.name,
        unproven=proof.unproven,
        # a version that is not tried again keeps what was found out
        notice=_notice(runtime, known.notice if is_proved and known else proof.remark),
    )
    took_s = round(time.monotonic() - started, 2)
    log.info("model.loaded", model=model, version=version, device=runtime.device, took_s=took_s)
    if proof.unproven:
        log.warning("model.unproven", model=model, version=version, reason=proof.unproven)
    if record.notice:
        log.warning("model.noticed", model=model, version=version, notice=record.notice)
    return LoadedModel(model, record, vectoriser, runtime)


def _check_size(signature: Signature) -> None:
    """Refuse a model whose description would fill the record that every process reads."""
    tensors = [*signature.inputs, *signature.outputs]
    if len(tensors) > _MOST_TENSORS:
        raise ModelError(f"it has {len(tensors)} inputs and outputs, and at most {_MOST_TENSORS} can be served")
    longest = max((spec.name for spec in tensors), key=len, default="")
    if len(longest) > _LONGEST_NAME:
        raise ModelError(
            f"the name of {longest[:40]}… has {len(longest)} characters, and at most {_LONGEST_NAME} can be served"
        )


def _notice(runtime: Runtime, of_proof: str | None) -> str | None:
    """Return what is odd about a version: what its runtime says, if that says anything, and its proof."""
    return "; ".join(filter(None, [getattr(runtime, "notice", ""), of_proof])) or None


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
