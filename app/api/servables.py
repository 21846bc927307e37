"""The models that TensorFlow Serving's protocol names, over REST and gRPC: records, labels, signatures, states."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from app.api.problems import without_folders
from app.api.process import ApiProcess
from inference.errors import BadInput, ForecacheError, NotFound, cut
from inference.models import VersionRecord
from inference.protocols.tensorflow_calls import SignatureCall
from inference.protocols.tensorflow_serving import ModelUrl, VersionStatus
from inference.schema import Block
from inference.serving import ModelCall, Outputs

#: None if the client may hang up meanwhile
MaybeOutputs = TypeVar("MaybeOutputs", Outputs, Outputs | None)


async def without_label(path: ModelUrl, process: ApiProcess) -> ModelUrl:
    """Return the path with its label replaced by a version.

    Raises:
        BadInput: no version has that label.
    """
    if path.label is None:
        return path
    unknown = BadInput(f"Unrecognized servable version label: {cut(path.label)}")
    try:
        labels = (await process.cards.of(path.model)).labels
    except NotFound as error:
        raise unknown from error
    if path.label not in labels:
        raise unknown
    return replace(path, version=labels[path.label], label=None)


async def signature_call(
    path: ModelUrl, process: ApiProcess, name: str, unknown: Callable[[str], ForecacheError]
) -> SignatureCall:
    """Return the way to call the signature of that name.

    Raises:
        NotFound: there is no such model or version, or no active version yet.
        ForecacheError: `unknown`, if the model has no such signature.
    """
    record = await ready_record(path, process)
    call = record.signature_call(name, chosen=process.settings.models[path.model].signature)
    if call is None:
        raise unknown(name)
    return call


async def ready_record(path: ModelUrl, process: ApiProcess) -> VersionRecord:
    """Return the record of the version in a path.

    Raises:
        NotFound: there is no such model or version, or no active version yet.
    """
    try:
        record = (await process.cards.of(path.model)).ready(path.version)
    except NotFound as error:
        raise not_found(path) from error
    if record is None:
        raise not_found(path)
    return record


async def compute_signature(
    path: ModelUrl, call: SignatureCall, tensors: Block, ask: Callable[[str, Block, ModelCall], Awaitable[MaybeOutputs]]
) -> MaybeOutputs:
    """Return the outputs of a signature for tensors of its names and types; None if `ask` gives none.

    `ask`: computes tensors for this client.

    Raises:
        NotFound: no worker holds that version.
        ForecacheError: as `SignatureCall.prepare` and `ask` say.
    """
    prepared = call.prepare(tensors)
    try:
        outputs = await ask(path.model, prepared.tensors, ModelCall(path.version, call.name, prepared.splits))
    except NotFound as error:
        raise not_found(path) from error
    return None if outputs is None else replace(outputs, tensors=call.finish(outputs.tensors, prepared))


async def version_states(path: ModelUrl, process: ApiProcess) -> list[VersionStatus]:
    """Return the states of a model's versions, or of the version in a path.

    Raises:
        NotFound: there is none.
    """
    missing = NotFound(
        f"Could not find any versions of model {cut(path.model)}"
        if path.version is None
        else f"Could not find version {path.version} of model {cut(path.model)}"
    )
    try:
        card = await process.cards.of(path.model)
    except NotFound as error:
        raise missing from error
    held = await process.held_versions(path.model, card)
    found = [
        VersionStatus(number, "AVAILABLE", "")
        if number in held
        else VersionStatus(number, "END", _remark(record, process))
        for number, record in sorted(card.versions.items())
        if path.version in (None, number)
    ]
    if not found:
        raise missing
    return found


def _remark(record: VersionRecord, process: ApiProcess) -> str:
    return str(without_folders(record.remark or "", process.settings))


def not_found(path: ModelUrl) -> NotFound:
    """Return the error for a path whose model or version does not exist."""
    which = f"Latest({cut(path.model)})" if path.version is None else f"Specific({cut(path.model)}, {path.version})"
    return NotFound(f"Servable not found for request: {which}")
