"""What is known of one version of a model without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import FiniteFloat, PlainValidator

from inference.errors import ContractError
from inference.features import FeatureContract
from inference.schema import Signature
from inference.stored_data import record_from_json

VersionState = Literal["ready", "refused"]


@dataclass(frozen=True)
class MicroBatchRecord:
    """The rows per call that were found best for a version, as its `fingerprint` names it, on one kind of device."""

    rows: int
    fingerprint: str


def _contract(told: Any) -> FeatureContract:
    try:
        return FeatureContract.from_json(told) if told != {"features": []} else FeatureContract(())
    except ContractError as error:
        raise ValueError(error.message) from error


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    """One version: `ready` after a good warm-up, or `refused` with the `error` that says why.

    The signature's outputs are the fields of its predictions. `fingerprint` changes when any file of the
    version does. `format`: as `inference.models.formats` names it. A refused version has an empty signature and
    contract, and no format. `inspected_at`: epoch seconds. `unproven`: why nothing shows yet that a ready version
    answers, so that it takes no other's place; None when it has answered rows. `notice`: what is odd about a version
    that may answer nevertheless. The contract of a model whose features nobody has listed is empty: it takes tensors
    only.
    """

    version: int
    state: VersionState
    signature: Signature
    contract: Annotated[FeatureContract, PlainValidator(_contract)]
    fingerprint: str
    inspected_at: FiniteFloat
    error: str | None = None
    format: str = ""
    unproven: str | None = None
    notice: str | None = None

    @property
    def is_proved(self) -> bool:
        """Whether it may take the place of the version that answers."""
        return self.state == "ready" and self.unproven is None

    @property
    def remark(self) -> str | None:
        """What is wrong with it, in one line: why it was refused, why it waits, what is odd; None for nothing."""
        return self.error or self.unproven or self.notice

    @property
    def contract_hash(self) -> str:
        """The feature contract's hash; "" for a refused version."""
        return self.contract.hash if self.state == "ready" else ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "version": self.version,
            "state": self.state,
            "signature": self.signature.to_json(),
            "contract": self.contract.to_json(),
            "contract_hash": self.contract_hash,
            "fingerprint": self.fingerprint,
            "inspected_at": self.inspected_at,
            "error": self.error,
            "format": self.format,
            "unproven": self.unproven,
            "notice": self.notice,
        }

    @classmethod
    def from_json(cls, text: bytes | str) -> VersionRecord:
        """Rebuild from the JSON of `to_json`.

        Raises:
            Unreadable: it is none.
        """
        return record_from_json(cls, text, "the record of a model's version")

    @classmethod
    def refused(cls, version: int, error: str, *, inspected_at: float, fingerprint: str = "") -> VersionRecord:
        """Return the record of a version that cannot be served."""
        return cls(
            version=version,
            state="refused",
            signature=Signature((), ()),
            contract=FeatureContract(()),
            fingerprint=fingerprint,
            inspected_at=inspected_at,
            error=error,
        )
