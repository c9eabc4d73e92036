"""What each layer is said to lose by each way to say it: measured once, or known from the network.

A score is larger where more is lost; no two ways have one unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from basisconv.plan import Plan
from basisconv.study.data.sets import CLASSES, Split, load
from basisconv.study.experiments import proxies
from basisconv.study.experiments.proxies import Batch, Numbers, Scores
from basisconv.study.experiments.sensitivity import SAVINGS, savings
from basisconv.study.records.files import canonical
from basisconv.study.records.run import Run
from basisconv.study.training.augment import evaluation_batches
from basisconv.study.training.phases import initial_network, trained_network

if TYPE_CHECKING:
    from basisconv.study.experiments.study import Study

_BATCH = 100


def key_of(run: Run, numbers: Numbers, images: int) -> str:
    """Under which the store has what `measure` gave: a hash of all that decides it."""
    wanted = {name: list(counts) for name, counts in numbers.items()}
    return hashlib.sha256(canonical([run.run_id, wanted, images])).hexdigest()[:16]


def measure(study: Study, run: Run, numbers: Numbers, images: int) -> None:
    """Compute the scores that need a network's weights, and keep them in the store.

    Weights stay on the machine that trained, and the scores take minutes at a large profile. So
    they are kept and published beside the records, as step times are, and a draft reads them.

    Args:
        study: has the store with the weights.
        run: of the network.
        numbers: of basis filters, by layer.
        images: how many of the training and of the validation images, the first ones.

    Raises:
        LookupError: if the store has no weights of the run.
        DamagedFile: if they are damaged.
    """
    data = load(run.data.name, run.data.train_images)
    model = trained_network(run, study.store).eval()
    fitted, judged = _first(data.train, images), _first(data.validation, images)
    found = {
        "one shot": proxies.one_shot(model, numbers, fitted, judged),
        "response energy": proxies.response_energies(model, numbers, fitted),
        "curvature": proxies.curvature(model, numbers, fitted),
        "singular values": proxies.singular_energy(model, numbers),
        "scaled stable rank": proxies.scaled_stable_rank(
            model, numbers, initial_network(run, CLASSES[run.data.name])
        ),
        "relative error": proxies.relative_error(model, numbers),
    }
    key = key_of(run, numbers, images)
    study.store.put_measured(key, {"scores": _as_json(found)})


def measured(study: Study, key: str) -> dict[str, Scores] | None:
    """The scores that `measure` kept, by their names; None where there are none."""
    values = study.store.measured(key)
    if values is None:
        return None
    scores: dict[str, Any] = values["scores"]
    return {
        way: {
            name: {int(m): float(score) for m, score in own.items()} for name, own in layers.items()
        }
        for way, layers in scores.items()
    }


def known(study: Study, every: Plan, batch_size: int | None) -> dict[str, dict[str, float]]:
    """Scores that need no training: what is taken away costs, or what comes first, or chance.

    Args:
        study: the profile's.
        every: the plan with all layers.
        batch_size: of the steps whose time is saved.
    """
    names = list(every.layers)
    saved = {what: savings(study, every, what, batch_size=batch_size) for what in SAVINGS}
    drawn = np.random.default_rng(0).permutation(len(names)).tolist()
    return {
        "depth": {name: float(len(names) - i) for i, name in enumerate(names)},
        **{f"{what} saved": {n: float(own[n]) for n in names} for what, own in saved.items()},
        "chance": {name: float(place) for name, place in zip(names, drawn, strict=True)},
    }


def _first(split: Split, images: int) -> list[Batch]:
    part = Split(split.images[:images], split.labels[:images])
    return list(evaluation_batches(part, batch_size=_BATCH))


def _as_json(
    found: Mapping[str, Mapping[str, Mapping[int, float]]],
) -> dict[str, dict[str, dict[str, float]]]:
    return {
        way: {name: {str(m): score for m, score in own.items()} for name, own in layers.items()}
        for way, layers in found.items()
    }


def at(scores: Scores, every: Plan) -> dict[str, float]:
    """The scores at a plan's numbers of basis filters."""
    return {name: scores[name][count] for name, count in every.layers.items()}


def numbers_of(outputs: Mapping[str, int], levels: Sequence[float]) -> dict[str, list[int]]:
    """By layer, its numbers of basis filters on all levels but the first, as `screening` has."""
    return {
        name: [max(1, round(level * count)) for level in levels[1:]]
        for name, count in outputs.items()
    }
