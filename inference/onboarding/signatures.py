"""Which signature of a SavedModel fits a table, where its default one does not."""

from __future__ import annotations

from collections.abc import Mapping

from inference.errors import BadInput, ModelError
from inference.models.runtimes import SavedSignature
from inference.onboarding.matching import UserTable, match_columns
from inference.schema import DType, Signature

_DEFAULT = "serving_default"


def needs_choice(signature: Signature | None, table: UserTable) -> bool:
    """Tell whether another signature may fit a table better than the one that would be served (None: there is none).

    One that takes a single text may take serialized tf.Examples, whatever the table holds.
    """
    if signature is None:
        return True
    takes_one_text = len(signature.inputs) == 1 and signature.inputs[0].dtype is DType.STRING
    return takes_one_text or not _fits(signature, table)


def choose_signature(found: Mapping[str, SavedSignature], table: UserTable) -> tuple[str, str] | None:
    """Return the signature that fits the table in place of the default one, and why; None to leave it at that.

    Raises:
        ModelError: the default one takes tf.Examples, or there is none; and none of the others is the only one to fit.
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
