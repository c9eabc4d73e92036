"""Each convolution alone in basis form beside dense, and what each of them saves."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from basisconv.plan import Plan
from basisconv.study.experiments.design import Draft
from basisconv.study.experiments.parameters import Positive, Share, Strict
from basisconv.study.records.run import Count

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

SAVINGS = ("time", "macs", "parameters")


class Sweep(Strict):
    """One layer at a time, `epochs` passes over the training images.

    `train_images` and `width` are the profile's where they are null. `layers` are names or globs,
    null for every convolution; `seeds` is how many of the profile's are taken, null for all.
    """

    ratio: Share
    epochs: Positive
    train_images: Count | None
    width: Count | None
    layers: list[str] | None
    seeds: Count | None


def swept_layers(study: Study, setting: Sweep) -> list[str]:
    """The convolutions that a sweep puts into basis form, in forward order.

    Raises:
        ValueError: for a name or glob that no convolution matches.
    """
    wanted = ["*"] if setting.layers is None else setting.layers
    unknown = [glob for glob in wanted if not any(fnmatchcase(n, glob) for n in study.layers)]
    if unknown:
        raise ValueError(
            f"No convolution is called {', '.join(unknown)}. "
            f"Convolutions: {', '.join(study.layers)}."
        )
    return [name for name in study.layers if any(fnmatchcase(name, glob) for glob in wanted)]


def add_layers(
    draft: Draft,
    setting: Sweep,
    settings: dict[str, Any],
    detail: dict[str, Any] | None = None,
) -> None:
    """Add dense and, for each layer, a network with that one in basis form.

    All take dense's steps and have dense's settings, and not equal time and their own: a sweep
    asks what the form costs in loss; what it saves is counted apart.

    Args:
        draft: gets the arms; its study has the training images of the setting.
        setting: what is swept.
        settings: learning rate and batch size of every Run.
        detail: what else to keep beside each arm.

    Raises:
        ValueError: as `swept_layers`.
    """
    study, width = draft.study, setting.width or draft.study.profile.width
    batch_size: int = settings["batch_size"]
    steps = max(1, round(setting.epochs * (study.train_images // batch_size)))
    common: dict[str, Any] = {
        "budget": setting.epochs, "width": width, "steps": steps,
        "seeds": study.seeds(draft.name, setting.seeds), "changes": settings,
    }  # fmt: skip
    draft.add("dense", "dense", Plan(), detail=detail, **common)
    swept = swept_layers(study, setting)
    every = study.plan(setting.ratio, swept, width)
    saved = {what: savings(study, every, what, width, batch_size) for what in SAVINGS}
    for name in swept:
        told = {f"{what}_saved": saved[what][name] for what in SAVINGS}
        draft.add(
            name, "layer", every.only([name]),
            detail={"index": study.layers.index(name), **told, **(detail or {})}, **common,
        )  # fmt: skip


def savings(
    study: Study,
    candidates: Plan,
    what: str,
    width: int | None = None,
    batch_size: int | None = None,
) -> dict[str, float]:
    """What each layer saves by itself: a share of the dense step's time, MACs, or parameters.

    Width and batch size are the profile's when not given.
    """
    dense = study.network_costs(Plan(), width)
    step = study.cost(Plan(), width, batch_size)
    saved: dict[str, float] = {}
    for name in candidates.layers:
        plan = candidates.only([name])
        cost = study.network_costs(plan, width)
        saved[name] = {
            "time": 1 - study.cost(plan, width, batch_size) / step,
            "macs": dense.macs + dense.macs_backward - cost.macs - cost.macs_backward,
            "parameters": dense.parameters - cost.parameters,
        }[what]
    return saved
