"""05_skip_training: training in basis form first and dense then, or the other way round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, style, tables, text
from basisconv.study.report.arms import Measured
from basisconv.study.report.output import Plot, Report
from basisconv.study.report.switches import PAIRS, SWITCHES, pair_frame, skip_frame
from basisconv.study.report.tables import interval, make_table, percent, plain, words


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
        numbers=_numbers(table, pairs, found, outcome, f"{images}, {time}"),
    )  # fmt: skip


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
            # Hatched, so that it is told from dense's in grey, and where they overlap.
            axes.axhspan(r.low, r.high, facecolor="none", edgecolor=colour, hatch="/////",
                         linewidth=0, alpha=0.5, zorder=0.5)  # fmt: skip
        axes.axhline(
            r.accuracy, color=colour, linewidth=1, zorder=1,
            linestyle="-" if r.method == "dense" else ":",
        )  # fmt: skip


def _kind(key: Sequence[Any]) -> str:
    """What an arm does at the switch, in words; the usual choices are not told."""
    carry, momentum, schedule = key
    words = ["weights kept" if carry == "exact" else "re-initialised"]
    words += ["momentum carried"] if momentum == "carried" else []
    words += ["restart of the cosine"] if schedule == "restart" else []
    return ", ".join(words)


def _numbers(
    table: pd.DataFrame, pairs: pd.DataFrame, found: Sequence[Measured], outcome: str, where: str
) -> dict[str, Any]:
    skips = table[table["method"] == "skip"]
    told = skips[skips["difference"].notna()]
    findings = [_headline(skips, outcome, where)]
    if len(told):
        best = _best(told)
        for direction, rows in told[told["direction"] != best.direction].groupby("direction"):
            second = _best(rows)
            findings.append(f"The best of {direction}: {_named(second)}, {text.gain(second)}.")
        findings += _against_basis(best, found)
    findings += _at_the_switch(pairs)
    return {
        "values": {}, "outcome": outcome, "headline": findings[0], "findings": findings,
        "notes": arms.lost_note(found),
    }  # fmt: skip


def _against_basis(best: Any, found: Sequence[Measured]) -> list[str]:
    """The rival that never switches: what beats dense may still lose to it."""
    basis = arms.first(found, "basis")
    if basis is None or not basis.n:
        return []
    skip = next(m for m in found if m.arm.label == best.label)
    difference = text.points(arms.compare(skip, basis).difference)
    return [f"The best skip arm minus basis filters from start to end: {difference}."]


def _at_the_switch(pairs: pd.DataFrame) -> list[str]:
    """Which choices at the switch make a difference, and which cannot be told to."""
    tested = pairs[pairs["p_holm"].notna()]
    if tested.empty:
        return []
    told = [
        f"{PAIRS[r.switch][2]} against {PAIRS[r.switch][3]} ({r.direction}) by "
        + text.with_interval(r.difference, r.low, r.high, 2, True, " points")
        for r in tested[tested["p_holm"] < arms.ALPHA].itertuples()
    ]
    count = text.plural(len(tested), "comparison")
    if not told:
        return [f"No choice at the switch is seen to matter ({count}, Holm, 5 %)."]
    return [
        f"Choices at the switch seen to matter ({len(told)} of {count}, Holm, 5 %): "
        f"{'; '.join(told)}."
    ]


def _headline(skips: pd.DataFrame, outcome: str, where: str) -> str:
    if skips["difference"].isna().all():
        return "No run of skip training is done beside dense."
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
