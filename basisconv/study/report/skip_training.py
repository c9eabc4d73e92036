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
    facts = section.facts
    where = (
        f"f = {text.share(facts['ratio'])}, the time of {text.epochs(facts['budget'])} of dense "
        f"by {facts['unit']}, {facts['train_images']:,} training images"
    )
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
                f"Skip training ({where}): {outcome} accuracy, and its difference from dense "
                "trained for the same time.",
            ),
            "skip_switches": make_table(
                pairs,
                [words("choice", lambda r: " against ".join(PAIRS[r.switch][2:])),
                 words("direction", "direction"),
                 interval("difference (points)", "difference low high", 2, True),
                 plain("n", "n"), plain("switch points", "pairs"), tables.p_value()],
                f"What each choice at the switch is worth ({where}): {outcome} accuracy of arms "
                "that differ in it alone, by seed, averaged over switch points.",
            ),
        },
        figures={
            "skip": Plot(
                _figure(table, outcome), table,
                f"{outcome.capitalize()} accuracy over the share of the time spent in the first "
                f"form ({where}): {arms.shown_as(found)}, set apart sideways. Lines with bands: "
                "dense throughout (solid, grey) and basis throughout (dotted, hatched).",
            )
        },
        numbers=_numbers(table, found),
    )  # fmt: skip


def skip_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """One row an arm, with its difference from dense trained for the same time."""
    dense = arms.first(found, "dense")
    details = ("direction", "switch", *SWITCHES)
    return arms.compare_table(
        found,
        rival=lambda _: dense,
        before=lambda m: {"method": m.arm.method, **{k: m.detail.get(k) for k in details}},
    )


def pair_frame(found: Sequence[Measured]) -> pd.DataFrame:
    """Each switch's two settings over arms that differ in it alone, by direction.

    The differences of one seed are averaged over switch points first: they share their seed, and
    seeds are what is sampled.
    """
    skips = [m for m in found if m.arm.method == "skip" and "direction" in m.detail]
    runs = pd.DataFrame(
        [
            (*(m.detail.get(k) for k in ("direction", "switch", *SWITCHES)), seed, accuracy)
            for m in skips
            for seed, accuracy in zip(m.seeds, m.accuracy, strict=True)
        ],
        columns=["direction", "point", *SWITCHES, "seed", "accuracy"],
    )
    rows = []
    for name, (one, other, *_) in PAIRS.items():
        same = [column for column in runs.columns[:-1] if column != name]
        wide = runs.pivot(index=same, columns=name, values="accuracy")
        wide = wide.reindex(columns=[one, other]).dropna()
        for direction in dict.fromkeys(runs["direction"]):
            gains = (wide[one] - wide[other]).loc[wide.index.get_level_values(0) == direction]
            if len(gains):
                by_seed = gains.groupby("seed")
                d = stats.paired(means := by_seed.mean(), [0.0] * len(means))
                rows.append(
                    {
                        "switch": name, "setting": one, "against": other, "direction": direction,
                        "difference": d.estimate, "low": d.low, "high": d.high, "p": d.p,
                        "n": d.n_a, "pairs": by_seed.size().max(),
                    }
                )  # fmt: skip
    columns = ["switch", "setting", "against", "direction", "difference", "low", "high", "p", "n",
               "pairs"]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_holm=stats.holm(list(table["p"])))


def _figure(table: pd.DataFrame, outcome: str) -> Figure:
    skips = table[(table["method"] == "skip") & table["accuracy"].notna()]
    directions = list(dict.fromkeys(skips["direction"])) or ["basis→dense"]
    made = style.figure(style.TWO_COLUMNS, 2.9)
    panels = made.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    keys = dict.fromkeys(skips[list(SWITCHES)].itertuples(index=False, name=None))
    kinds = {key: place for place, key in enumerate(keys)}
    # Kinds of one switch point stand side by side, all of them within eight per cent.
    step = min(1.8, 8 / max(len(kinds), 1))
    letters = "ab" if len(directions) > 1 else [""]
    for letter, axes, direction in zip(letters, panels, directions, strict=True):
        lines = _references(axes, table)
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
    skipping = [style.handle("skip", _kind(key), place) for key, place in kinds.items()]
    style.legend_below(made, [*skipping, *lines])
    return made


def _references(axes: Axes, table: pd.DataFrame) -> list[Line2D]:
    """Horizontal lines for the arms that never switch, their intervals as bands."""
    lines = []
    for r in table[table["method"].isin(["dense", "basis"])].itertuples():
        colour, dense = style.look(r.method).colour, r.method == "dense"
        # Hatched, so that it differs from dense's in grey, and where they overlap.
        band: dict[str, Any] = {"color": style.BAND, "zorder": 0} if dense else {
            "facecolor": "none", "edgecolor": colour, "hatch": "/////", "linewidth": 0,
            "alpha": 0.5, "zorder": 0.5,
        }  # fmt: skip
        if r.low == r.low:
            axes.axhspan(r.low, r.high, **band)
        lines.append(
            axes.axhline(r.accuracy, color=colour, linewidth=1, zorder=1,
                         linestyle="-" if dense else ":", label=f"{r.method} throughout")
        )  # fmt: skip
    return lines


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


def _numbers(table: pd.DataFrame, found: Sequence[Measured]) -> dict[str, Any]:
    skips = table[table["method"] == "skip"]
    compared, basis = skips[skips["difference"].notna()], arms.first(found, "basis")
    if compared.empty:
        return {"values": {}, "headline": "No run of skip training can be compared with dense."}
    values, best = {}, _best(compared)
    # What beats dense may still lose to the rival that never switches.
    if basis is not None and basis.n:
        skip = next(m for m in found if m.arm.label == best.label)
        values["best minus basis"] = text.said(text.gain(arms.compare(skip, basis)))
    others = compared[compared["direction"] != best.direction]
    if len(others):
        second = _best(others)
        values["other direction"] = text.said(f"{_named(second)}, {text.gain(second)}")
    headline = (
        f"Skip training against dense of the same time, {arms.tally(skips['verdict'])} (Holm); the "
        f"best is {_named(best)}, {text.gain(best)}."
    )
    return {"values": values, "headline": headline}


def _best(rows: pd.DataFrame) -> Any:
    """The arm furthest ahead of dense; one that lost runs is passed over for those that did not."""
    tested = arms.tested(rows)
    of = rows if tested.empty else tested
    return of.loc[of["difference"].idxmax()]


def _named(row: Any) -> str:
    kind = _kind([row.carry, row.momentum_carry, row.schedule])
    return f"{row.direction} at {100 * row.switch:.0f} % of the time, {kind}"
