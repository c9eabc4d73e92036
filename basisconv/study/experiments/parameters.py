"""What the parameters of several experiments are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from basisconv.study.records.run import Carry, MomentumCarry, Schedule

Share = Annotated[float, Field(gt=0, le=1)]
Switch = Annotated[float, Field(gt=0, lt=1)]  # the share of the time in the first of two forms
Positive = Annotated[float, Field(gt=0)]
Direction = Literal["basis→dense", "dense→basis"]


class Strict(BaseModel):
    """Base of all settings: frozen, unknown ones refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Skip(Strict):
    """A way to train in two forms: `switch` is the share of the training time in the first."""

    direction: Direction
    switch: Switch
    carry: Carry
    momentum_carry: MomentumCarry
    schedule: Schedule

    @property
    def label(self) -> str:
        """What tables call it: as in "basis→dense at 0.75"."""
        return f"{self.direction} at {self.switch:g}"


PILOT = "01b_pilot"

# Of 02's parameters; `mistakes` leaves these out of the place of a mistake.
EDITIONS = ("first edition", "second edition")


def mistakes(error: ValidationError, whole: str) -> str:
    """Every mistake of a validation with its place; `whole` is what the settings are of."""
    places = [".".join(str(p) for p in e["loc"] if p not in EDITIONS) for e in error.errors()]
    return "; ".join(
        f"{place or whole}: {e['msg']}" for place, e in zip(places, error.errors(), strict=True)
    )
