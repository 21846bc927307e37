"""How often a model's answers are computed again the other way: `[models.NAME.parity]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from inference.settings.fields import Duration, Section


class ParitySettings(Section):
    """A check that batch and real time agree. `every`: None for never; `sample`: answers of each of the two a time."""

    every: Duration | None = None
    sample: Annotated[int, Field(ge=1, le=10_000)] = 100
