"""What tells two vectors of features apart: a hash of their exact bits and of the contract that gives them meaning."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from inference.features.contract import FeatureContract
from inference.schema import Block, rows_in
from inference.store.codec import codec_for


def vector_hashes(contract: FeatureContract, block: Block) -> list[str]:
    """Return sixteen hex digits for each row of features; the same for the same bits under the same contract."""
    rows = codec_for(contract.fields).pack(block, np.zeros(rows_in(block)))
    salt = contract.hash.encode()
    return [blake2b(salt + row, digest_size=8).hexdigest() for row in rows.to_pylist()]
