"""Arms by short names, at equal epochs or equal time, under one recipe.

D           dense
D½          dense of half the width
B¼          basis filters in all layers, a quarter of each layer's
S¼          basis filters for a quarter of the steps, then dense with the weights kept
selected    basis filters in the layers that the profile names, the rest dense
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft, Phases
from basisconv.study.experiments.parameters import Positive, Strict
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import Count, Kind, Method, Optimizer

EPOCHS, TIME = "equal epochs", "equal time"
"""The parts of a comparison: whether all arms take dense's steps, or the same time."""


class Comparison(Strict):
    """Arms of one length under one recipe, by their short names, each with its number of seeds.

    The length is in epochs where all take dense's steps, and in the time of so many dense epochs
    where all take the same time. `threads` are those of a Run: longer ones have more.
    """

    recipe: Optimizer
    length: Positive
    threads: Count
    arms: Annotated[dict[str, Count], Field(min_length=1)]


@dataclass(frozen=True)
class NamedArm:
    """What a short name stands for.

    Its method gives the colour, its kind the learning rate; `phases` are plans with their shares of
    the steps.
    """

    name: str
    method: Method
    kind: Kind
    phases: Phases
    width: int

    def steps(self, total: int) -> list[tuple[int, Plan]]:
        """So many steps, divided among the phases; the last gets what rounding leaves."""
        first = [round(share * total) for share, _ in self.phases[:-1]]
        counts = [*first, total - sum(first)]
        return [(n, plan) for n, (_, plan) in zip(counts, self.phases, strict=True)]


def named_arm(
    study: Study, name: str, ratio: float = 0.25, selected: Sequence[str] = ()
) -> NamedArm:
    """The arm of a name.

    Args:
        study: the profile's.
        name: see above.
        ratio: the share of basis filters where the name states none.
        selected: layers of the arm of that name.

    Raises:
        ValueError: for another name, and for "selected" without layers.
    """
    width = study.profile.width
    if name == "selected":
        if not selected:
            raise ValueError("The arm 'selected' has no layers: the profile names none yet.")
        plan = study.plan(ratio, list(selected))
        return NamedArm(name, "selected", "basis", [(1.0, plan)], width)
    letter, share = name[:1], _share(name[1:])
    if name == "D":
        return NamedArm(name, "dense", "dense", [(1.0, Plan())], width)
    if letter == "D" and share:
        return NamedArm(name, "narrow", "narrow", [(1.0, Plan())], round(share * width))
    if letter == "B" and share:
        return NamedArm(name, "basis", "basis", [(1.0, study.plan(share))], width)
    if letter == "S" and share:
        phases: Phases = [(share, study.plan(ratio)), (1 - share, Plan())]
        return NamedArm(name, "skip", "skip", phases, width)
    raise ValueError(f"There is no arm {name!r}: D, D½, B¼, S¼ and the like, and selected.")


def add_comparison(
    draft: Draft,
    setting: Comparison,
    part: str,
    ratio: float = 0.25,
    selected: Sequence[str] = (),
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add a comparison's arms to a draft; ratio and selected layers are as in `named_arm`.

    In the part "equal epochs" every arm takes dense's steps, in "equal time" those that end nearest
    to the time. `detail` is kept with each arm.
    """
    for name, seeds in setting.arms.items():
        add_arm(draft, named_arm(draft.study, name, ratio, selected), setting, part, seeds, detail)


def add_arm(
    draft: Draft,
    arm: NamedArm,
    setting: Comparison,
    part: str,
    seeds: int,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add one arm of a comparison, with its first so many seeds; see `add_comparison`."""
    study = draft.study
    settings = study.profile.recipes[setting.recipe].of(arm.kind)
    batch: int = settings["batch_size"]
    step = (arm.width, batch, settings["optimizer"])
    if part == EPOCHS:
        total = round(setting.length * (study.train_images // batch))
    else:
        each = sum(share * study.cost(plan, *step) for share, plan in arm.phases)
        total = max(1, round(setting.length * study.dense_epoch / each))
    taken = arm.steps(total)
    known: dict[str, Any] = {
        "arm": arm.name, "recipe": setting.recipe, "part": part,
        "time_quartiles": list(study.time_quartiles(taken, *step)),
    }  # fmt: skip
    draft.add_steps(
        f"{arm.name}, {setting.recipe}, {part}, {setting.length:g}",
        arm.method, taken, setting.length, arm.width,
        seeds=study.seeds(draft.name, seeds), settings=settings | {"threads": setting.threads},
        detail={**known, **(detail or {})},
    )  # fmt: skip


def _share(text: str) -> float | None:
    """The number of a fraction's character, strictly between 0 and 1; None for anything else."""
    value = unicodedata.numeric(text, 0.0) if len(text) == 1 else 0.0
    return value if 0 < value < 1 else None
