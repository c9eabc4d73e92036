"""Sections and records made up without training, to render and to test reports with."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from basisconv.plan import Plan
from basisconv.screening import screening
from basisconv.study.experiments.registry import draft
from basisconv.study.experiments.study import Study
from basisconv.study.records.run import (
    Arm,
    Data,
    Epoch,
    Measurement,
    Phase,
    Record,
    Result,
    Run,
    Section,
)

LAYERS = ["conv1"] + [
    f"layer{stage}.{block}.{conv}"
    for stage in (1, 2, 3, 4)
    for block in (0, 1)
    for conv in (
        ("conv1", "conv2", "downsample.0") if stage > 1 and block == 0 else ("conv1", "conv2")
    )
]
"""The 20 convolutions of ResNet-18."""


JITTER = (-0.01, 0.01, 0.0, 0.005)


def near(level: float, spread: float = 1.0) -> list[float]:
    """Four values close to a level."""
    return [level + spread * j for j in JITTER]


def switched(switch: float, carry: str = "exact", **changes: Any) -> dict[str, Any]:
    """The details of an arm that switches from basis to dense and does what is usual."""
    return {"direction": "basis→dense", "switch": switch, "carry": carry,
            "momentum_carry": "fresh", "schedule": "one", **changes}  # fmt: skip


@dataclass
class Maker:
    """Collects arms and their records."""

    name: str
    profile: str = "desk"
    seeds: Sequence[int] = (0, 1, 2, 3)
    test: bool = True
    noise: float = 0.15
    arms: list[Arm] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)

    def arm(
        self, label: str, method: str, accuracy: float, *, loss: float = 0.5,
        budget: float | None = 2.0, time: float | None = None, diverged: int = 0,
        detail: dict[str, Any] | None = None, values: Sequence[float] | None = None,
    ) -> Arm:  # fmt: skip
        """An arm whose runs scatter round an accuracy in per cent, or have given values."""
        ids = []
        for i, seed in enumerate(self.seeds if values is None else self.seeds[: len(values)]):
            # The learning rate alone tells the made-up runs of different arms apart.
            run = Run(
                data=Data(name="cifar10", sha256="0" * 64), seed=seed, test=self.test,
                phases=(Phase(steps=10, plan=Plan()),), learning_rate=0.01 + len(self.arms) / 1000,
                weight_decay=sum(map(ord, self.name)) * 1e-6,
            )  # fmt: skip
            # One stream a seed, so that arms pair, and a part of each arm's own.
            shared = np.random.default_rng(seed).normal()
            own = np.random.default_rng([seed, len(self.arms), len(self.name)]).normal()
            value = accuracy + self.noise * (0.5 * shared + own) if values is None else values[i]
            record = make_record(
                run, value / 100, loss + 0.004 * (shared + own), diverged=i < diverged
            )
            self.records[run.run_id] = record
            ids.append(run.run_id)
        known = {"steps": [10], "batch_size": 128, "learning_rate": 0.2, "width": 32}
        made = Arm(
            label=label, method=method, run_ids=tuple(ids), budget=budget,  # type: ignore[arg-type]
            time=budget if time is None else time, detail=known | (detail or {}),
        )  # fmt: skip
        self.arms.append(made)
        return made

    def section(self, **facts: Any) -> Section:
        """What was collected."""
        return Section(
            name=self.name, profile=self.profile, arms=tuple(self.arms),
            facts={"unit": "executed MACs", **facts},
        )  # fmt: skip


def make_record(run: Run, accuracy: float, loss: float, *, diverged: bool = False) -> Record:
    """A record of a run that reached an accuracy (a fraction) at the end of four epochs."""
    measurement = Measurement(
        seconds={"total": 1.0},
        environment={"device": "Some CPU", "device_kind": "cpu x86_64 AVX2"},
        peak_memory_bytes=1,
    )
    if diverged:
        return Record(
            run=run, status="diverged", result=None, measurement=measurement, error="loss is NaN"
        )
    history = tuple(
        Epoch(
            epoch=e, step=10 * e, learning_rate=0.1, train_loss=loss + 0.5 / e,
            val_loss=loss + 0.6 / e - 0.15, val_accuracy=accuracy - 0.3 / e + 0.075,
        )
        for e in (1, 2, 3, 4)
    )  # fmt: skip
    result = Result(
        steps=run.steps, epochs=4.0, parameters=1000, train_loss=loss, val_loss=loss,
        val_accuracy=accuracy, test_loss=loss if run.test else None,
        test_accuracy=accuracy if run.test else None, history=history,
    )  # fmt: skip
    return Record(run=run, status="done", result=result, measurement=measurement)


def method_section(profile: str = "desk") -> Section:
    """00: the twenty convolutions of ResNet-18 at width 16 and f = 1/4."""
    rows, width = [], 16
    for name in LAYERS:
        stage = int(name[5]) if name.startswith("layer") else 1
        out = width * 2 ** (stage - 1)
        halves = stage > 1 and ".0." in name and not name.endswith("conv2")
        inputs = 3 if name == "conv1" else out // 2 if halves else out
        kernel = 1 if "down" in name else 3
        size = 32 // 2 ** (stage - 1)
        basis = None if name == "conv1" or "down" in name else out // 4
        weights = inputs * kernel**2
        dense = out * weights
        full = dense if basis is None else basis * weights + out * basis
        subset = dense if basis is None else basis * weights + (out - basis) * basis
        parameters = {"dense": dense, "subset": subset, "full": full}
        rows.append(
            {
                "name": name, "in_channels": inputs, "out_channels": out, "output_size": size,
                "n_basis": basis, "parameters": parameters,
                "macs": {form: value * size**2 for form, value in parameters.items()},
            }
        )  # fmt: skip
    totals = {
        what: {form: sum(row[what][form] for row in rows) for form in ("dense", "subset", "full")}
        for what in ("parameters", "macs")
    }
    exact = [
        {
            "form": form, "rank": rank, "n_basis": m,
            "relative_error": error + 2e-16, "best_relative_error": error,
        }
        for form in ("subset", "full")
        for rank, m, error in ((6, 6, 1e-15), (6, 12, 1e-15), (24, 6, 0.71), (24, 12, 0.44))
    ]  # fmt: skip
    facts = {"layers": rows, "totals": totals, "exact": exact, "ratio": 0.25,
             "network": "resnet18", "width": width}  # fmt: skip
    return Section(name="00_method", profile=profile, arms=(), facts=facts)


def baseline_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """01: dense."""
    maker = Maker("01_baseline", **kwargs)
    maker.arm("dense", "dense", 85.2, budget=4)
    return maker.section(parameters=700000, macs=35000000, epochs=4.0, train_images=45000), (
        maker.records
    )


def pilot_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """01b: rate 0.2 at batch 64 is best but for skip, which wants more; late layers hurt less."""
    maker = Maker("01b_pilot", **{"test": False, **kwargs})
    for budget in (1, 4):
        for kind, best in (("dense", 0.2), ("basis", 0.2), ("skip", 0.4), ("narrow", 0.2)):
            for batch in (64, 128):
                for rate in (0.1, 0.2, 0.4):
                    off = abs(np.log2(rate / best)) + (batch == 128) / 2
                    maker.arm(
                        f"{kind} at {budget}, batch {batch}, rate {rate}", kind, 60 - 3 * off,
                        loss=1.2 + 0.1 * off, budget=budget,
                        detail={"part": "grid", "batch_size": batch, "learning_rate": rate},
                    )  # fmt: skip
    for kind in ("dense", "basis"):
        maker.arm(f"{kind}, spread", kind, 60, budget=4, detail={"part": "spread"})
    sweeps = []
    for number, rise in enumerate((0.03, 0.0003)):
        told = {"part": "sweep", "sweep": number}
        maker.arm("dense", "dense", 60, loss=1.2, detail=told)
        for index, name in enumerate(LAYERS[::3]):
            saved = {"index": index, "parameters_saved": 1, "macs_saved": 1, "time_saved": 0.01}
            worse = 1.2 + rise * (1 - index / 4)
            maker.arm(name, "layer", 60, loss=worse, detail=told | saved)
        sweeps.append({"train_images": 9000, "epochs": 2.0, "width": 16, "ratio": 0.125,
                       "layers": 7, "all_layers": 20, "seeds": len(maker.seeds),
                       "dense_epochs": 4.0})  # fmt: skip
    return (
        maker.section(train_images=6000, width=32, spread_budget=4.0, sweeps=sweeps,
                      dense_epoch_hours=0.1),
        maker.records,
    )  # fmt: skip


WIDTHS_FACTS: dict[str, Any] = {
    "widths": [16, 32, 64], "budgets": [1, 2], "ratio": 0.25, "width": 32,
    "skip": {"direction": "basis→dense", "switch": 0.75},
}  # fmt: skip


def widths_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """02b: the best dense width is 16, and basis layers help the widest network alone."""
    maker = Maker("02b_widths", **kwargs)
    for i, budget in enumerate((1, 2)):
        for width, dense in ((16, 84), (32, 82), (64, 74)):
            detail = {"width": width, "parameters": 11000 * width}
            gain = (width - 32) / 8
            levels = (("dense", dense), ("basis", dense + gain), ("skip", dense + gain / 2))
            for method, level in levels:
                maker.arm(
                    f"{method}, width {width}", method, level + 3 * i, budget=budget, detail=detail
                )
    return maker.section(**WIDTHS_FACTS), maker.records


def defaults_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """05b: a smaller coefficient matrix costs, product decay gains, the rest is near."""
    maker = Maker("05b_defaults", **{"test": False, **kwargs})
    variants = (("our defaults", "default", 0.0), ("full form", "form", 0.05),
                ("full form, 4 groups", "coefficients", -2.0),
                ("decay of the product", "decay", 1.5),
                ("start from SVD", "start", 0.1))  # fmt: skip
    for label, choice, gain in variants:
        method = "basis" if choice == "default" else "variant"
        size = {"parameters": 3_195_978, "executed_macs": 162_000_000}
        maker.arm(
            label, method, 80 + gain, loss=0.6 - gain / 50, detail={"choice": choice, **size}
        )  # fmt: skip
    return maker.section(ratio=0.25, budget=2.0, train_images=9000), maker.records


def frontier_section(
    budgets: Sequence[float] = (1, 2, 4), **kwargs: Any
) -> tuple[Section, dict[str, Record]]:
    """02: basis and skip gain at short budgets and lose at long ones."""
    maker = Maker("02_all_layers", **kwargs)
    sizes = {"dense": (11.2e6, 555e6), "quarter": (3.2e6, 162e6), "eighth": (1.6e6, 90e6),
             "narrow": (2.8e6, 150e6), "same size": (3.1e6, 165e6)}  # fmt: skip

    def detail(size: str, **more: Any) -> dict[str, Any]:
        parameters, macs = sizes[size]
        return {"parameters": int(parameters), "macs": int(macs * 0.97), "executed_macs": int(macs),
                **more}  # fmt: skip

    for i, b in enumerate(budgets):
        maker.arm("dense", "dense", 78 + 4 * i, budget=b, detail=detail("dense"))
        for f, size, gain in ((0.25, "quarter", 2 - 1.4 * i), (0.125, "eighth", 1 - 1.9 * i)):
            maker.arm(
                f"all layers, f = {f:g}", "basis", 78 + 4 * i + gain, budget=b, time=0.999 * b,
                detail=detail(size, ratio=f),
            )  # fmt: skip
        maker.arm("skip, f = 0.25", "skip", 79 + 4 * i - 0.4 * i, budget=b, detail=detail("dense"))
        maker.arm("dense, width 9", "narrow", 80 + 3.2 * i, budget=b, detail=detail("narrow"))
    extra = budgets[len(budgets) // 2]
    maker.arm(
        "dense, width 17, equal size", "same_size", 82.5, budget=extra, detail=detail("same size")
    )
    maker.arm("dense", "dense", 82.4, budget=1.16 * extra, detail=detail("dense"))
    for f, size, gain, time in ((0.25, "quarter", -1.5, 0.4), (0.125, "eighth", -4, 0.3)):
        maker.arm(
            f"all layers, f = {f:g}, dense's steps", "equal_steps", 82 + gain,
            budget=extra, time=time * extra, detail=detail(size, ratio=f),
        )  # fmt: skip
    return (
        maker.section(ratio=0.25, skip_switch=0.5, narrow_width=9, same_size_width=17, tuned=True),
        maker.records,
    )  # fmt: skip


def sensitivity_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """03: late layers hurt less."""
    maker = Maker("03_sensitivity", **{"test": False, **kwargs})
    maker.arm("dense", "dense", 84, loss=0.5)
    for index, name in enumerate(LAYERS):
        rise = 0.03 * (1 - index / 12)
        maker.arm(
            name, "layer", 84 - 30 * rise, loss=0.5 + rise,
            detail={"index": index, "parameters_saved": 400 * 2**index // (index + 1),
                    "macs_saved": 80e6 - 2e6 * index, "time_saved": 0.045 - 0.001 * (index % 7)},
        )  # fmt: skip
    return maker.section(ratio=0.25, epochs=2.0, train_images=9000, width=16), maker.records


def selection_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """04: selected beats random and inverted subsets of its time."""
    maker = Maker("04_selection", **kwargs)
    scores = {name: 0.03 * (1 - i / 12) for i, name in enumerate(LAYERS)}
    chosen = LAYERS[9:]

    def detail(layers: Sequence[str], time: float) -> dict[str, Any]:
        return {"layers": list(layers), "predicted_time": time, "parameters": int(11e6 * time),
                "macs": int(555e6 * time), "executed_macs": int(555e6 * time)}  # fmt: skip

    maker.arm("none (dense)", "dense", 84.0, detail=detail([], 1.0))
    maker.arm("all", "basis", 83.2, detail=detail(LAYERS, 0.33))
    maker.arm("selected", "selected", 84.6, detail=detail(chosen, 0.6))
    maker.arm("threshold", "threshold", 84.3, detail=detail(LAYERS[12:], 0.7))
    for i in range(6):
        maker.arm(
            f"random {i + 1}", "random", 0, values=[83.6 + 0.2 * ((5 * i) % 6)],
            detail=detail(LAYERS[i : i + 9 + i % 3], 0.6),
        )  # fmt: skip
    maker.arm("inverted", "inverted", 83.1, detail=detail(LAYERS[:11], 0.605))
    maker.arm("first five", "first_five", 83.6, detail=detail(LAYERS[:5], 0.8))
    return (
        maker.section(budget=2.0, scores=scores, selected=chosen, controls=True, ratio=0.25,
                      loss_share=0.25, threshold=0.0, draws=6, save="time"),
        maker.records,
    )  # fmt: skip


def skip_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """05: later switches help basis→dense when the switch keeps the function."""
    maker = Maker("05_skip_training", **kwargs)
    maker.arm("dense", "dense", 84.0)
    maker.arm("basis", "basis", 84.4)
    for sign, direction in ((1, "basis→dense"), (-1, "dense→basis")):
        for point in (0.25, 0.5, 0.75):
            for carry in ("exact", "reinit"):
                loss = 0.0 if carry == "exact" else 4 * point
                maker.arm(
                    f"{direction} at {point:g}, {carry}", "skip", 84.2 + sign * point - loss,
                    detail=switched(point, carry, direction=direction),
                )  # fmt: skip
        for change in ({"momentum_carry": "carried"}, {"schedule": "restart"}):
            told = next(iter(change.values()))
            detail = switched(0.5, direction=direction, **change)
            maker.arm(f"{direction} at 0.5, exact, {told}", "skip", 84 + 0.6 * sign, detail=detail)
    return maker.section(ratio=0.25, budget=2.0, train_images=3000), maker.records


def search_section(choices: bool = True, **kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """07: what a layer costs falls with its depth, and quarters cost two thirds of eighths.

    Without `choices` it is the screening alone, whose records come first.
    """
    maker = Maker("07_search", **{"test": False, **kwargs})
    blocks, shares = min(4, len(maker.seeds)), {16: 0.0, 8: 1 / 3, 4: 2 / 3, 2: 1.0}
    screened = [name for name in LAYERS if ".conv" in name]
    plans, block_of = screening(dict.fromkeys(screened, 16), blocks=blocks)
    for number, (plan, block) in enumerate(zip(plans, block_of, strict=True), start=1):
        rise = sum(shares[m] * SCREENED[name] for name, m in plan.layers.items())
        maker.arm(
            f"run {number}", "selected", 0, values=[80 - 20 * rise],
            loss=(0.5 + 0.01 * block) * float(np.exp(rise)), budget=1,
            detail={"part": "screening", "block": block, "layers": dict(plan.layers)},
        )  # fmt: skip
    maker.arm("warm-up", "dense", 0, values=[40], budget=0.25, detail={"part": "warm-up"})
    facts = {"levels": [1, 0.5, 0.25, 0.125], "runs": 64, "blocks": blocks, "epochs": 1.0,
             "warm_up": 0.25}  # fmt: skip
    if not choices:
        return maker.section(**facts), maker.records

    def predicted(layers: Sequence[str]) -> float:
        return sum(2 / 3 * SCREENED[name] for name in layers)

    random = np.random.default_rng(0)
    for i in range(12):
        layers = [n for n, kept in zip(screened, random.random(16) < 0.6, strict=True) if kept]
        maker.arm(
            f"random {i + 1}", "random", 0, values=[84 - 20 * predicted(layers)],
            loss=0.5 * float(np.exp(predicted(layers))), detail={"part": "evidence",
            "layers": layers},
        )  # fmt: skip
    maker.arm("all", "basis", 80, loss=0.55, detail={"part": "evidence", "layers": screened})
    maker.arm("none (dense)", "dense", 84, detail={"part": "evidence", "layers": []})
    scores = {
        "screening": SCREENED, "sweep": {n: SCREENED[n] * (1 + i % 3) for i, n in
                                         enumerate(screened)},
        "depth": {name: 16.0 - i for i, name in enumerate(screened)},
        "chance": {name: float(7 * i % 16) for i, name in enumerate(screened)},
    }  # fmt: skip
    maker.arm("last layers", "selected", 84, detail={"part": "choice", "way": "last layers",
                                                     "layers": screened[5:]})  # fmt: skip
    for way, lost in (("screening", 0.1), ("sweep", 0.4), ("depth", 0.0)):
        maker.arm(
            f"chosen by {way}", "selected", 84 - lost,
            detail={"part": "choice", "way": way, "layers": screened[5:]},
        )  # fmt: skip
    trainings = {"screening": 64.0, "sweep": 17.0, "depth": 0.0, "chance": 0.0}
    return maker.section(**facts, scores=scores, trainings=trainings, target_time=0.6), (
        maker.records
    )


def ranks_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """08: the screening's plans beat one share for all, singular values' lose to it."""
    maker = Maker("08_ranks", **kwargs)

    def detail(way: str, size: float, **more: Any) -> dict[str, Any]:
        return {"way": way, "layers": {}, "predicted_time": size, "parameters": int(11e6 * size),
                "executed_macs": int(555e6 * size), **more}  # fmt: skip

    maker.arm("dense", "dense", 84, detail=detail("dense", 1.0))
    for ratio, size in ((0.5, 0.66), (0.25, 0.46)):
        level = 82 + size
        share = detail("one share", size, ratio=ratio)
        maker.arm(f"all layers, f = {ratio:g}", "basis", level, detail=share)
        for way, gain in (("screening", 1.5), ("response energy", 0.0), ("singular values", -1.5)):
            maker.arm(
                f"by {way}, for f = {ratio:g}", "selected", level + gain,
                detail=detail(way, size - 0.01, ratio=ratio),
            )  # fmt: skip
    return maker.section(ratios=[0.5, 0.25], epochs=1.0, save="time"), maker.records


SCREENED = {name: 0.02 * (1 - i / 16) for i, name in enumerate(n for n in LAYERS if ".conv" in n)}
"""What each layer of 07 costs with an eighth of its filters, in log loss."""


def timing_section(profile: str = "desk") -> Section:
    """06: late layers realise more of their saving."""

    def timed(ms: float, speedup: float) -> dict[str, float]:
        return {"median_ms": ms, "iqr_ms": ms / 20, "speedup": speedup,
                "speedup_low": 0.97 * speedup, "speedup_high": 1.04 * speedup}  # fmt: skip

    titles = [("3→64, 32×32", 0.4), ("64→64, 32×32", 0.55), ("64→128, 32×32, stride 2", 0.6),
              ("64→128, 32×32, 1×1, stride 2", 0.5), ("128→128, 16×16", 0.7),
              ("256→256, 8×8", 0.8), ("512→512, 4×4", 0.9)]  # fmt: skip
    ways = (("subset", 1.0), ("full", 1.01), ("subset, rebuilt", 0.3),
            ("tensorly-torch Tucker", 0.2))  # fmt: skip
    told = {"precision": "float32", "batch": 64}
    layers = [
        {
            "layer": title, **told, "arm": arm, "ratio": f,
            "forward": timed(3 * f, share * ratio * k * 0.95),
            "both": timed(9 * f / k, share * ratio * k), "macs_ratio": ratio, "share": share * k,
            "intensity": 12 + 30 * share * f * 4 + 4 * i, "gmac_s": 50 + 260 * share * k,
            "bound_speedup": None if "torch" in arm else ratio * min(1, share + 0.15),
        }
        for i, (title, share) in enumerate(titles)
        for f, ratio in ((0.25, 3.6), (0.5, 1.8))
        for arm, k in ways
    ]  # fmt: skip
    networks = [
        {"network": "resnet18", "width": w, **told, "arm": arm, "ratio": f, "what": what,
         "macs_ratio": r, "bound_speedup": 0.9 * r, "share": s / (0.9 * r), **timed(100 * f, s)}
        for what in ("forward", "training step")
        for w, f, r, s in ((16, 0.25, 3.3, 1.4), (16, 0.5, 1.7, 1.2), (64, 0.25, 3.4, 2.4),
                           (64, 0.5, 1.8, 1.5))
        for arm in ("subset", "full")
    ]  # fmt: skip
    memory = [{"network": "resnet18", "width": 64, **told, "ratio": 0.25, "peak_mb": 1050.0,
               "dense_peak_mb": 1000.0}]  # fmt: skip
    device = {
        "device": {"device": "Some CPU, 2 cores", "device_kind": "cpu x86_64 AVX2",
                   "torch": "2.13.0"},
        "settings": {"layout": "channels-last", "threads": 2, "compile": "off", "repeats": 20,
                     "network_repeats": 5},
        "machine": {"float32": {"rate_gmac_s": 350.0, "bandwidth_gb_s": 18.0}},
        "left_out": [], "layers": layers, "networks": networks, "memory": memory,
    }  # fmt: skip
    other = {**device, "device": {**device["device"], "device_kind": "cpu x86_64 AVX512"}}
    facts = {"devices": [device, other]}
    return Section(name="06_timing", profile=profile, arms=(), facts=facts)


def generalisation_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """09: on CIFAR-100 basis filters lose at equal epochs, and at equal time to D½ alone.

    VGG-16-BN gains at equal time, MobileNetV2 has nothing to convert, and of eight screened layers
    the first cost most.
    """
    maker = Maker("09_generalisation", **kwargs)

    def compared(network: str, data: str, part: str, levels: dict[str, float]) -> None:
        for name, level in levels.items():
            method = {"D": "dense", "B¼": "basis", "D½": "narrow", "S¼": "skip"}[name]
            told = {"arm": name, "recipe": "muon", "part": part, "network": network, "data": data}
            time = 4.0 if part == "equal time" or name == "D" else 1.84
            maker.arm(
                f"{network}: {name}, {part}", method, level, budget=4, time=time, detail=told
            )  # fmt: skip

    compared("resnet18", "cifar100", "equal time", {"D": 60.0, "B¼": 62.0, "D½": 63.0})
    compared("resnet18", "cifar100", "equal epochs", {"D": 61.0, "B¼": 58.0, "S¼": 60.8})
    compared("vgg16_bn", "cifar10", "equal epochs", {"D": 80.0, "B¼": 77.0})
    compared("vgg16_bn", "cifar10", "equal time", {"D": 74.0, "B¼": 77.0})
    names = [f"features.{3 * i}" for i in range(1, 9)]
    design = screening(dict.fromkeys(names, 16), (1, 0.25), 16, blocks=2)
    for i, (plan, block) in enumerate(zip(design.plans, design.blocks, strict=True)):
        told = {"part": "screening", "network": "vgg16_bn", "data": "cifar10"}
        loss = float(np.exp(sum(0.1 - 0.01 * names.index(n) for n in plan.layers) + 0.02 * block))
        run = Run(
            network="vgg16_bn", data=Data(name="cifar10", sha256="0" * 64), seed=block,
            phases=(Phase(steps=10, plan=plan),), learning_rate=0.5 + i / 1000,
        )  # fmt: skip
        maker.records[run.run_id] = make_record(run, 0.7, loss)
        maker.arms.append(Arm(label=f"screening {i}", method="variant", run_ids=(run.run_id,),
                              budget=2.0, detail=told))  # fmt: skip
    layers = [{"layer": n, "index": i, "out_channels": 16, "n_basis": 4, "macs_saved": 100 * i,
               "parameters_saved": 500 - 10 * i} for i, n in enumerate(names)]  # fmt: skip

    def timed(network: str, gain: float | None, size: int = 32) -> dict[str, Any]:
        row = {"network": network, "width": 64, "size": size, "precision": "float32", "batch": 64,
               "ratio": 0.25, "macs_ratio": 3.0 if gain else 1.0}  # fmt: skip
        if gain is None:
            return row
        return row | {"speedup": gain, "speedup_low": 0.95 * gain, "speedup_high": 1.02 * gain}

    steps = [
        timed(network, gain, size) | {"layers": layers_, "converted": 16 if gain else 0}
        for network, gain, size in (("vgg16_bn", 2.2, 32), ("resnet18", 2.0, 32),
                                    ("mobilenet_v2", None, 32), ("resnet18", 2.6, 64))
        for layers_ in ("k×k", "all")
    ]  # fmt: skip
    alone = [timed("vgg16_bn", 2.5) | {"layer": "64→64, 32×32"},
             timed("resnet18", 2.9, 64) | {"layer": "64→64, 64×64"}]  # fmt: skip
    device = {
        "device": {"device": "Some CPU, 2 cores", "device_kind": "cpu x86_64 AVX2"},
        "settings": {"threads": 2, "repeats": 10},
        "networks": steps,
        "layers": alone,
    }
    return (
        maker.section(data="cifar100", devices=[device], screened_layers=layers), maker.records
    )  # fmt: skip


def trained_section(**kwargs: Any) -> tuple[Section, dict[str, Record]]:
    """08b: the search keeps most, pruning least, and an epoch makes up for much of it."""
    maker = Maker("08b_trained", **kwargs)
    size = {"parameters": 2_800_000, "executed_macs": 139_000_000}
    maker.arm("D", "dense", 92.5, detail={"arm": "D", **size})
    half = {"arm": "D½", "width": 16, "parameters": 700_000, "executed_macs": 35_000_000}
    maker.arm("D½", "narrow", 90.5, detail=half)
    ids, images = maker.arms[0].run_ids, 800
    where = {"device": "Some CPU", "threads": 1}
    rows: list[dict[str, Any]] = [
        {**where, "run_id": ids[0], "seed": maker.seeds[0], "way": "D½", "share": None,
         "trained": False, "width": 16,
         "times": {"1": [0.4, 0.39, 0.41], "64": [0.3, 0.29, 0.31]}}
    ]  # fmt: skip
    ways = ("search", "responses", "svd", "balf", "tucker", "pruning", "tensor_train")
    for run_id, seed in zip(ids, maker.seeds, strict=True):
        for share, trained in itertools.product((0.6, 0.35), (False, True)):
            for i, way in enumerate(ways if not trained else ways[:4]):
                row = {**where, "run_id": run_id, "seed": seed, "way": way, "share": share,
                       "trained": trained}  # fmt: skip
                if (way, share) == ("tucker", 0.35):
                    rows.append(row | {"left_out": "The nearest that can be had is 0.5."})
                    continue
                lost = i * (1 - share) * (2 if trained else 8)
                rng = np.random.default_rng([seed, i, int(100 * share), trained])
                right = rng.random(images) < (92 - lost) / 100
                bits = base64.b64encode(np.packbits(right).tobytes()).decode()
                times = {"1": [share + 0.1] * 3, "64": [share, share - 0.01, share + 0.01]}
                rows.append(
                    row | {"times": times, "size": {"knob": share}, "parameters": 1_400_000,
                           "macs": 70_000_000, "accuracy": float(right.mean()),
                           "correct": bits, "images": images}
                )  # fmt: skip
    facts = {"rows": rows, "wanted": len(rows), "runtime": "onnxruntime", "budget": "time"}
    return maker.section(**facts, batch_sizes=[64, 1]), maker.records


def all_sections(
    profile: str = "desk", seeds: Sequence[int] = (0, 1, 2, 3), test: bool = True, **kwargs: Any
) -> tuple[dict[str, Section], dict[str, Record]]:
    """Every section of the paper with its records."""
    common = {"profile": profile, "seeds": seeds, **kwargs}
    made = [
        baseline_section(test=test, **common),
        pilot_section(**common),
        frontier_section(test=test, **common),
        widths_section(test=test, **common),
        sensitivity_section(**common),
        selection_section(test=test, **common),
        skip_section(test=test, **common),
        defaults_section(**common),
        search_section(**common),
        ranks_section(test=test, **common),
        trained_section(test=test, **common),
        generalisation_section(test=test, **common),
    ]
    sections = [method_section(profile), *(s for s, _ in made), timing_section(profile)]
    records = {run_id: record for _, found in made for run_id, record in found.items()}
    return {section.name: section for section in sections}, records


_LEVELS = {"D": 92.0, "S¼": 91.9, "S½": 90.5, "B¼": 88.0, "D½": 89.0, "B½": 90.0, "D¾": 91.5}


def named_arms(path: Path, lost: str = "") -> tuple[Section, dict[str, Record]]:
    """02 of the profile desk2, its runs made up; the first run of the arm `lost` diverged."""
    study = Study.open("desk2", ["costs=macs"], path)
    drafted = draft(study, "02_all_layers")
    records = {}
    noise = np.random.default_rng(0)
    for arm in drafted.arms:
        for i, run_id in enumerate(arm.run_ids):
            run = drafted.runs[run_id]
            seed = 0.5 * np.random.default_rng(run.seed).normal()
            assert arm.time is not None
            accuracy = (
                _LEVELS[str(arm.detail["arm"])] - 14 / arm.time + seed + 0.05 * noise.normal()
            )
            accuracy -= 6 * (arm.detail["recipe"] == "sgd")
            diverged = arm.label == lost and i == 0
            records[run_id] = make_record(run, accuracy / 100, 0.4, diverged=diverged)
    return drafted.section(), records
