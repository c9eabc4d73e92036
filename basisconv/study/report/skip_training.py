"""05_skip_training: training in basis form first and dense then, or the other way round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.statistics import stats
from basisconv.study.report.tables import interval, make_table, percent, plain, words

SWITCHES = ("carry", "momentum_carry", "schedule")
# Switch -> (the setting, what it is set against), in words.
PAIRS = {
    "carry": ("exact", "reinit", "keeping the weights", "re-initialising"),
    "momentum_carry": ("carried", "fresh", "carrying momentum over", "starting it fresh"),
    "schedule": ("one", "restart", "one cosine over both phases", "a restart at the switch"),
}


def build(section: Section, records: Mapping[str, Record]) -> Report:
    """Accuracy over the switch point in both directions, and the ablations of the switch."""
    outcome, found = arms.outcome(section, records), arms.measure(section, records)
    table, pairs = skip_frame(found), pair_frame(found)
    facts: dict[str, Any] = section.facts
    time = f"the time of {text.epochs(facts['budget'])} of dense"
    images = f"{facts['train_images']:,} training images"
    where = f"f = {text.share(facts['ratio'])}, {time} by {facts['unit']}, {images}"
    return Report(
        section.name,
        section.profile,
        tables={
            "skip": make_table(
                table,
                [words("training", lambda r: r.direction if r.method == "skip" else r.label),
                 percent("switch", "switch"), words("weights", "carry"),
                 words("momentum", "momentum_carry"), words("cosine", "schedule"),
                 tables.seeds(), tables.accuracy(outcome), tables.difference(), tables.p_value(),
                 tables.verdict(text.VERDICT_WORDS_ON_DENSE)],
                f"Skip training ({where}): {outcome} accuracy with its 95 % interval and its "
                "difference from dense trained for the same time (Welch, p by Holm). The paper "
                "is said to report training up to 15 % faster at a negligible drop; at equal time "
                "the question is whether accuracy is gained.",
            ),
            "skip_switches": make_table(
                pairs,
                [words("choice", lambda r: " against ".join(PAIRS[r.switch][2:])),
                 words("direction", "direction"),
                 interval("difference (points)", "difference low high", 2, True),
                 plain("n", "n"), plain("switch points", "pairs"), tables.p_value()],
                f"What each choice at the switch is worth ({where}): {outcome} accuracy of arms "
                "that differ in it alone, pooled over switch points (difference by seed, then its "
                "mean and 95 % interval). Kept weights are the same function from basis to dense, "
                "and the nearest of rank m from dense to basis.",
            ),
        },
        figures={
            "skip": Plot(
                _figure(table, outcome), table,
                f"{text.capital(outcome)} accuracy after {time}, over the share of that time spent "
                f"in the first form ({where}): {arms.shown_as(found)}, set apart sideways. "
                "Lines with their intervals as bands: dense throughout (solid, grey) and basis "
                "throughout (dotted, hatched).",
            )
        },
        numbers=_numbers(table, found, outcome, f"{images}, {time}"),
    )  # fmt: skip


def skip_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm, with its difference from dense trained for the same time."""
    dense = arms.first(found, "dense")
    details = ("direction", "switch", *SWITCHES)
    return arms.compare_table(
        found,
        rival=lambda _: dense,
        before=lambda m: {"method": m.arm.method, **{k: m.arm.detail.get(k) for k in details}},
    )


def pair_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """Each switch's two settings over arms that differ in it alone, by direction.

    The differences of one seed are averaged over switch points first: they share their seed, and
    seeds are what is sampled.
    """
    rows = []
    directions = dict.fromkeys(m.arm.detail.get("direction") for m in found if _is_skip(m))
    for name, (one, other, *_) in PAIRS.items():
        for direction in directions:
            by_seed: dict[int, list[float]] = {}
            for a, b in _twins(found, name, one, other, direction):
                of_a = dict(zip(a.seeds, a.accuracy, strict=True))
                of_b = dict(zip(b.seeds, b.accuracy, strict=True))
                for seed in of_a.keys() & of_b.keys():
                    by_seed.setdefault(seed, []).append(of_a[seed] - of_b[seed])
            if by_seed:
                means = [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]
                d = stats.paired(means, [0.0] * len(means))
                rows.append(
                    {
                        "switch": name, "setting": one, "against": other, "direction": direction,
                        "difference": d.estimate, "low": d.low, "high": d.high, "p": d.p,
                        "n": d.n_a, "pairs": max(len(v) for v in by_seed.values()),
                    }
                )  # fmt: skip
    columns = ["switch", "setting", "against", "direction", "difference", "low", "high", "p", "n",
               "pairs"]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = stats.holm(list(table["p"]))
    return table


def _is_skip(m: Measured) -> bool:
    return m.arm.method == "skip" and "direction" in m.arm.detail


def _twins(
    found: Sequence[Measured], name: str, one: str, other: str, direction: Any
) -> list[tuple[Measured, Measured]]:
    def key(m: Measured) -> tuple[Any, ...]:
        kept = [m.arm.detail.get(s) for s in SWITCHES if s != name]
        return (m.arm.detail.get("direction"), m.arm.detail.get("switch"), *kept)

    skips = [m for m in found if _is_skip(m) and m.arm.detail["direction"] == direction]
    rivals = {key(m): m for m in skips if m.arm.detail.get(name) == other}
    return [
        (m, rivals[key(m)]) for m in skips if m.arm.detail.get(name) == one and key(m) in rivals
    ]


def _figure(table: pd.DataFrame, outcome: str) -> Figure:
    skips = table[(table["method"] == "skip") & table["accuracy"].notna()]
    directions = list(dict.fromkeys(skips["direction"])) or ["basis→dense"]
    with style.drawing():
        made = style.figure(style.TWO_COLUMNS, 2.9)
        panels = made.subplots(1, len(directions), sharey=True, squeeze=False)[0]
        keys = dict.fromkeys(skips[list(SWITCHES)].itertuples(index=False, name=None))
        kinds = {key: place for place, key in enumerate(keys)}
        # Kinds of one switch point stand side by side, all of them within eight per cent.
        step = min(1.8, 8 / max(len(kinds), 1))
        letters = "ab" if len(directions) > 1 else [""]
        for letter, axes, direction in zip(letters, panels, directions, strict=True):
            _references(axes, table)
            here = skips[skips["direction"] == direction]
            for key, rows in here.groupby(list(SWITCHES), sort=False):
                place = kinds[tuple(key)]
                rows = rows.sort_values("switch")
                x = 100 * rows["switch"] + step * (place - (len(kinds) - 1) / 2)
                style.intervals(axes, x, rows["accuracy"], rows["low"], rows["high"], "skip", place)
            axes.set_xlim(0, 100)
            axes.set_xticks(sorted({100 * switch for switch in skips["switch"]}))
            axes.set_xlabel(f"share of the time in the first form, {direction} (%)")
            style.panel(axes, letter, str(direction).replace("→", ", then "))
        panels[0].set_ylabel(f"{outcome} accuracy (%)")
        handles: list[Line2D] = [
            style.handle("skip", _kind(key), place) for key, place in kinds.items()
        ]
        for method in ("dense", "basis"):
            if (table["method"] == method).any():
                shape = style.look(method)
                label = "dense throughout" if method == "dense" else "basis throughout"
                handles.append(
                    Line2D([], [], color=shape.colour, linewidth=1, label=label,
                           linestyle="-" if method == "dense" else ":")
                )  # fmt: skip
        style.legend_below(made, handles)
    return made


def _references(axes: Axes, table: pd.DataFrame) -> None:
    """Horizontal lines for the arms that never switch, and their intervals."""
    for r in table[table["method"].isin(["dense", "basis"])].itertuples():
        colour = style.look(r.method).colour
        if r.low == r.low and r.method == "dense":
            axes.axhspan(r.low, r.high, color=style.BAND, zorder=0)
        elif r.low == r.low:
            # Hatched, so that it differs from dense's in grey, and where they overlap.
            axes.axhspan(r.low, r.high, facecolor="none", edgecolor=colour, hatch="/////",
                         linewidth=0, alpha=0.5, zorder=0.5)  # fmt: skip
        axes.axhline(
            r.accuracy, color=colour, linewidth=1, zorder=1,
            linestyle="-" if r.method == "dense" else ":",
        )  # fmt: skip


_CARRIES = {
    "exact": "weights kept", "reinit": "re-initialised", "responses": "fitted to responses",
}  # fmt: skip


def _kind(key: Sequence[Any]) -> str:
    """What an arm does at the switch, in words; the usual choices are left out."""
    carry, momentum, schedule = key
    words = [_CARRIES[carry]]
    words += ["momentum carried"] if momentum == "carried" else []
    words += ["restart of the cosine"] if schedule == "restart" else []
    return ", ".join(words)


def _numbers(
    table: pd.DataFrame, found: Sequence[Measured], outcome: str, where: str
) -> dict[str, Any]:
    skips = table[table["method"] == "skip"]
    compared, basis = skips[skips["difference"].notna()], arms.first(found, "basis")
    values = {}
    if len(compared):
        best = _best(compared)
        # What beats dense may still lose to the rival that never switches.
        if basis is not None and basis.n:
            skip = next(m for m in found if m.arm.label == best.label)
            difference = text.points(arms.compare(skip, basis).difference)
            values["best minus basis"] = text.said(difference)
        others = compared[compared["direction"] != best.direction]
        if len(others):
            second = _best(others)
            values["other direction"] = text.said(f"{_named(second)}, {text.gain(second)}")
    return {
        "values": values, "outcome": outcome, "headline": _headline(skips, outcome, where),
        "notes": arms.lost_note(found),
    }  # fmt: skip


def _headline(skips: pd.DataFrame, outcome: str, where: str) -> str:
    if skips["difference"].isna().all():
        return "No run of skip training can be held against dense."
    tested, best = arms.tested(skips), _best(skips)
    if tested.empty:
        return (
            f"With one run an arm nothing is tested; the best skip arm ({_named(best)}) differs "
            f"from dense of the same time by {text.gain(best)}."
        )
    above = (tested["verdict"] == "above").sum()
    below = (tested["verdict"] == "below").sum()
    lacking = len(skips) - len(tested)
    return (
        f"Of {text.plural(len(skips), 'skip arm')} ({where}; {outcome} accuracy), better than "
        f"dense trained for the same time {text.amount(above)}, worse {text.amount(below)}, "
        f"undecided or within ±{arms.MARGIN:g} points {text.amount(len(tested) - above - below)}"
        f"{f', with too few finished runs {lacking}' if lacking else ''} (Holm); the best is "
        f"{_named(best)}, {text.gain(best)}."
    )


def _best(rows: pd.DataFrame) -> Any:
    """The arm furthest ahead of dense; one that lost runs is passed over for those that did not."""
    tested = arms.tested(rows)
    of = rows if tested.empty else tested
    return of.loc[of["difference"].idxmax()]


def _named(row: Any) -> str:
    kind = _kind([row.carry, row.momentum_carry, row.schedule])
    return f"{row.direction} at {100 * row.switch:.0f} % of the time, {kind}"
