"""03: which single layers hurt, and how sure is the ranking?"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from basisconv.study.experiments.design import Draft, Waiting
from basisconv.study.experiments.layer_sweep import Sweep, add_layers

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

Parameters = Sweep


def draft(study: Study, parameters: Parameters) -> Draft:
    """03: each convolution alone in basis form, for as many steps as dense."""
    study = study.part(parameters.train_images)
    settings = study.profile.training.model_dump() | study.tuned("dense", parameters.epochs)
    facts = parameters.model_dump(exclude={"layers", "seeds"}) | {
        "train_images": study.train_images,
        "width": parameters.width or study.profile.width,
    }
    result = Draft("03_sensitivity", study, facts)
    add_layers(result, parameters, settings)
    return result


def scores(study: Study) -> dict[str, float]:
    """Each layer's mean rise in last-step validation cross-entropy over dense of the same seeds.

    Seeds on which dense diverged say nothing. A layer that diverged where dense did not has no
    score: nothing is predicted of it, and it is no candidate.

    Raises:
        Waiting: if a Run of the sweep is missing or failed.
        ValueError: if no layer has a score.
    """
    sweep = draft(study, study.profile.notebooks.sensitivity)
    losses: dict[str, list[float | None]] = {}
    for arm in sweep.arms:
        records = [study.store.get(run_id) for run_id in arm.run_ids]
        if any(record is None or record.status == "failed" for record in records):
            raise Waiting(sweep.name)
        results = [record.result for record in records if record is not None]
        losses[arm.label] = [None if result is None else result.val_loss for result in results]
    dense = losses.pop("dense")
    found: dict[str, float] = {}
    for name, values in losses.items():
        pairs = [(a, b) for a, b in zip(values, dense, strict=True) if b is not None]
        rises = [a - b for a, b in pairs if a is not None]
        if rises and len(rises) == len(pairs):
            found[name] = fmean(rises)
    if not found:
        raise ValueError(
            f"The sweep of {sweep.name} diverged, dense or every layer: no layer has a score to "
            f"select by. Lower the profile's training.learning_rate."
        )
    return found
