"""Step times measured relative to dense in one process, as rows of a cost table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from basisconv.observe import observe
from basisconv.plan import Plan
from basisconv.study.records.environment import (
    UnsuitableMachine,
    configure_cpu,
    device,
    environment,
)
from basisconv.study.records.files import read_json
from basisconv.study.timing.costs import (
    MeasuredCosts,
    Setting,
    Step,
    add_rows,
    open_table,
    reference_step,
    table_settings,
)
from basisconv.study.timing.steps import (
    Prepared,
    as_cuda_graphs,
    initialised_network,
    random_images,
    training_step,
    with_muon_update,
)
from basisconv.study.training.compiling import unlimited_recompiles
from basisconv.study.training.precision import check_native, convolution_precision
from basisconv.timing import compare, forward_backward

# Layers timed in the same turns as the dense step; an interrupted measurement loses as many.
_LAYERS_AT_A_TIME = 6


def measure_costs(
    path: Path,
    setting: Setting,
    steps: Sequence[Step],
    repeats: int = 10,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Time steps and add them to a cost table.

    Every step is timed in this process, interleaved with dense. Let nothing else run.

    A single layer in basis form saves a few hundredths of a step, less than the speed of a shared
    machine drifts between two steps. So the layer itself is timed, forward and backward on its
    input in the network, and the row is the dense step's less what the layer saves.

    Args:
        path: the table.
        setting: what all of its rows share.
        steps: those that have no row yet.
        repeats: turns of each.
        stop: whether to stop; asked before each measurement.

    Raises:
        ValueError: if the table is of another device or other settings.
        UnsuitableMachine: if this device only emulates the profile's precision, or the profile
            compiles and this machine cannot.
    """
    here = environment()
    head = {"device": here["device"], "device_kind": here["device_kind"], **table_settings(setting)}
    open_table(path, head)  # refused before hours of measuring
    check_native(setting.precision)
    configure_cpu(setting.threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    single = [step for step in steps if _is_single(step)]
    with (
        unlimited_recompiles(),
        convolution_precision(setting.precision),
        tqdm(desc="step times", total=len(steps)) as bar,
    ):
        unit = _training_step(setting, reference_step(setting))
        if setting.compile:
            _check_compiles(unit)
        for step in steps:
            if stop():
                return
            if not _is_single(step):
                add_rows(path, head, [_network_row(setting, step, unit, repeats)])
                bar.update()
        for dense in dict.fromkeys(step._replace(plan=Plan()) for step in single):
            alike = [step for step in single if step._replace(plan=Plan()) == dense]
            cost = MeasuredCosts(read_json(path), path, setting).of(dense)
            for first in range(0, len(alike), _LAYERS_AT_A_TIME):
                if stop():
                    return
                some = alike[first : first + _LAYERS_AT_A_TIME]
                add_rows(path, head, _layer_rows(setting, some, cost, unit, repeats))
                bar.update(len(some))


def _check_compiles(compiled_step: Callable[[], None]) -> None:
    # Runs whose network does not compile train in eager mode, but the table has compiled steps.
    try:
        compiled_step()
    except Exception as error:
        raise UnsuitableMachine(
            f"Nothing can be compiled here ({type(error).__name__}: {error}). A C compiler may be "
            "missing; compile=false needs none."
        ) from error


def _network_row(
    setting: Setting, step: Step, unit: Callable[[], None], repeats: int
) -> dict[str, Any]:
    """A row of a network's step; turns of two arms are short, so both meet the same speed."""
    arms = {"dense": unit, "step": _training_step(setting, step)}
    timings = compare(_as_trained(setting, arms), repeats, device=device())
    faster, low, high = timings["step"].speedup_over(timings["dense"])
    return _row(step, 1 / faster, (1 / high, 1 / low))


def _layer_rows(
    setting: Setting, steps: Sequence[Step], dense: float, unit: Callable[[], None], repeats: int
) -> list[dict[str, Any]]:
    """Rows of plans of one layer in networks of one width and batch.

    Args:
        setting: how they are trained.
        steps: the plans.
        dense: what the network's dense step costs.
        unit: the step that costs 1.
        repeats: turns.
    """
    width, batch_size = steps[0].width, steps[0].batch_size
    network = steps[0].network or setting.network
    images = random_images(batch_size)
    given = observe(initialised_network(network, width, Plan()), images, (nn.Conv2d,))
    arms = {"step": unit}
    for i, step in enumerate(steps):  # several may have the same layer
        (name,) = step.plan.layers
        basis = initialised_network(network, width, step.plan).get_submodule(name)
        x = given[name].input
        # The stem's input is the images, which get no gradient.
        inner = x is not images
        for arm, layer in (("dense", given[name].module), ("basis", basis)):
            running = Prepared(layer, setting.precision, setting.compile)
            call = forward_backward(running, x, input_gradient=inner)
            # SGD's update of a layer takes a thousandth of a step; Muon's, a hundredth.
            arms[f"{arm} {i}"] = (
                with_muon_update(call, running) if step.optimizer == "muon" else call
            )
    timings = compare(_as_trained(setting, arms), repeats, device=device())
    rows = []
    for i, step in enumerate(steps):
        turns = zip(
            *(timings[arm].samples for arm in ("step", f"dense {i}", f"basis {i}")),
            strict=True,
        )
        ratios = [dense - (full - ours) / whole for whole, full, ours in turns]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        rows.append(_row(step, middle, (low, high)))
    return rows


def _as_trained(
    setting: Setting, arms: dict[str, Callable[[], None]]
) -> Mapping[str, Callable[[], object]]:
    """Compiled, or as training runs what is not: on CUDA as graphs."""
    return arms if setting.compile else as_cuda_graphs(arms)


def _is_single(step: Step) -> bool:
    return len(step.plan.layers) == 1


def _training_step(setting: Setting, step: Step) -> Callable[[], None]:
    model = initialised_network(step.network or setting.network, step.width, step.plan)
    running = Prepared(model, setting.precision, setting.compile)
    return training_step(running, random_images(step.batch_size), step.optimizer)


def _row(step: Step, ratio: float, quartiles: tuple[float, float]) -> dict[str, Any]:
    row = {"plan": step.plan.to_dict(), "width": step.width, "batch_size": step.batch_size}
    if step.optimizer != "sgd":
        row["optimizer"] = step.optimizer
    if step.network is not None:
        row["network"] = step.network
    return {**row, "ratio": ratio, "quartiles": list(quartiles)}
