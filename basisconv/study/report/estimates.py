"""Our side of each claim: an estimate with its interval, and a verdict by the rules of `verdicts`.

One function for each claim, of the same name, takes the evidence at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from basisconv.study.report import arms, method, sensitivity, text
from basisconv.study.report.frontier import at_equal_steps, equal_steps
from basisconv.study.report.places import counted, outcomes
from basisconv.study.report.selection import RIVALS
from basisconv.study.report.skip_training import skip_frame
from basisconv.study.report.speedup import bracket_text, fastest, lead
from basisconv.study.report.statistics.rankings import reliability_interval
from basisconv.study.report.verdicts import (
    NOT,
    PARTLY,
    REPRODUCED,
    UNDECIDED,
    UNTESTED,
    Estimate,
    absent,
    judged,
    kept,
    of_count,
    of_difference,
    of_row,
    unwon,
)

if TYPE_CHECKING:
    from basisconv.study.report.claims import Evidence

PAPER_SPEEDUP = 1.15
"""The paper's "up to 15 %", read as training time divided by 1.15."""
OURS = ("basis", "first_five", "selected", "threshold", "skip")


def speedup(e: Evidence) -> Estimate:
    """Largest measured bracket of a speed-up at equal accuracy."""
    rows = arms.tested(e.ours)
    if rows.empty:
        return UNTESTED
    above = rows[rows["verdict"] == "above"]
    if above.empty:
        best = rows.loc[rows["difference"].idxmax()]
        said = (
            f"no arm beats dense of the same time (Holm); nearest {text.at_budget(best)}: "
            f"{text.gain(best)}"
        )
        return Estimate(said, unwon(e.ours["verdict"]), n=int(best.n))
    best = fastest(above).iloc[0]
    least, below = best.speedup_at_least, best.speedup_below
    said = f"{text.at_budget(best)}: {bracket_text(least, below)} at equal accuracy"
    faster = above[above["speedup_at_least"] >= PAPER_SPEEDUP]
    if len(faster):
        # Budgets that dense trained beyond by as much as the paper claims.
        longest = e.frontier.loc[e.frontier["method"] == "dense", "budget"].max()
        able = sum(PAPER_SPEEDUP * budget <= longest for budget in set(e.ours["budget"]))
        said += (
            f" (ahead of dense trained that long by {lead(best)}); ≥ {PAPER_SPEEDUP:g}× at "
            f"{faster['budget'].nunique()} of {text.plural(able, 'budget')} that could show it"
        )
    verdict = REPRODUCED if least >= PAPER_SPEEDUP else PARTLY
    return Estimate(said, verdict, least, least, below, int(best.n), "×")


def compression(e: Evidence) -> Estimate:
    """Parameters of dense over those with all layers in basis form, a count."""
    facts = e.facts("00_method")
    parameters = facts["totals"]["parameters"]
    ratio = parameters["dense"] / parameters["subset"]
    said = (
        f"{ratio:.2f}× fewer parameters with all layers at f = {text.share(facts['ratio'])} "
        "(a count)"
    )
    return Estimate(said, REPRODUCED if ratio > 1 else NOT, ratio, unit="×")


def identified(e: Evidence) -> Estimate:
    """Whether layers differ, and whether the sweep would give the same ranking again."""
    section = e.sections["03_sensitivity"]
    scores = sensitivity.score_matrix(section, e.records)
    if len(scores) < 2:
        return UNTESTED
    trust, low, high = reliability_interval(scores)
    table = sensitivity.layer_frame(section, e.records)
    decided = int((table["p_holm"] < arms.ALPHA).sum())
    held = (decided > 0, trust >= arms.TRUSTED)
    said = (
        f"reliability of the ranking {text.with_interval(trust, low, high, 2)}; {decided} of "
        f"{len(table)} layers told from dense (Holm)"
    )
    verdict = REPRODUCED if all(held) else PARTLY if any(held) else UNDECIDED
    return Estimate(said, verdict, trust, low, high, n=len(scores))


def effectiveness(e: Evidence) -> Estimate:
    """At how many budgets some arm of ours beats dense trained for the same time."""
    rows = arms.tested(e.ours)
    if rows.empty:
        return UNTESTED
    budgets, at = set(e.ours["budget"]), set(rows[rows["verdict"] == "above"]["budget"])
    verdict = PARTLY if at else unwon(e.ours["verdict"])
    best = rows.loc[rows["difference"].idxmax()]
    said = (
        f"dense of the same time is beaten at {len(at)} of {text.plural(len(budgets), 'budget')} "
        f"(Holm); largest gain {text.at_budget(best)}: {text.gain(best)}"
    )
    return of_row(said, REPRODUCED if at == budgets else verdict, best)


def performance(e: Evidence) -> Estimate:
    """All layers in basis form against dense trained for the same time, at every budget."""
    share = e.facts("02_all_layers")["ratio"]
    rows = e.ours[(e.ours["method"] == "basis") & (e.ours["ratio"] == share)]
    tested = arms.tested(rows)
    if tested.empty:
        return UNTESTED
    last = tested.loc[tested["budget"].idxmax()]
    steps = equal_steps(e.sections["02_all_layers"], e.records)
    said = (
        f"{text.at_budget(last)}: {text.gain(last)} against dense of the same time; "
        f"{arms.tally(rows['verdict'])}"
    )
    for row in steps[steps["ratio"] == share].itertuples():
        said += f"; for as many steps {text.gain(row)}"
    return of_row(said, kept(rows["verdict"]), last)


def selection(e: Evidence) -> Estimate:
    """The selected subset against dense of the same time, and against random subsets."""
    if RIVALS["dense"] not in e.rivals.index:
        return absent("the selected subset or dense")
    row = e.rivals.loc[RIVALS["dense"]]
    if row.verdict == "untested":
        return UNTESTED
    random = e.rivals.loc[RIVALS["random"]] if RIVALS["random"] in e.rivals.index else None
    said, verdict = f"selected minus dense of the same time: {text.gain(row)}", kept([row.verdict])
    if random is not None:
        said += f"; minus random subsets: {text.gain(random)}"
    if verdict == REPRODUCED and (random is None or random.verdict != "above"):
        verdict = PARTLY
    return of_row(said, verdict, row)


def computation(e: Evidence) -> Estimate:
    """Forward speed-ups of single layers and the training step's."""
    found, median = outcomes(e.layers, "forward_"), float(e.layers["forward_speedup"].median())
    timings = counted(e.layers, "timing", " of single layers", "forward_")
    said = f"forward pass: {timings}; median {median:.2f}×"
    turns = e.turns("repeats")
    return of_count(found.faster, len(e.layers), said, median, turns, found.undecided)


def too_few(e: Evidence) -> Estimate:
    """The smallest share of basis filters against the largest, trained for as many steps."""
    found = at_equal_steps(e.measured("02_all_layers"))
    if len({m.detail["ratio"] for m in found}) < 2:
        return absent("two shares of basis filters that trained for as many steps")
    few, *_, many = found
    shares = " minus ".join(f"f = {text.share(m.detail['ratio'])}" for m in (few, many))
    epochs = text.epochs(few.arm.budget or 0.0)
    return of_difference(f"{shares}, both for dense's steps in {epochs}", "below", few, many)


def uncompressed(e: Evidence) -> Estimate:
    """Training steps whose coefficient matrix is not compressed: does time improve after all?"""
    found, best = outcomes(e.networks), float(e.networks["speedup"].max())
    # A step that does not differ from dense speaks for neither side.
    with_some = {(True, True): PARTLY, (True, False): NOT, (False, True): REPRODUCED}
    verdict = with_some.get((found.faster > 0, found.slower > 0), UNDECIDED)
    said = f"coefficient matrix as it is: {counted(e.networks, 'training step')}; best {best:.2f}×"
    return Estimate(said, verdict, best, n=e.turns("network_repeats"), of="turns")


def misjudged(e: Evidence) -> Estimate:
    """Selected minus inverted: what choosing the sensitive layers costs."""
    if RIVALS["inverted"] not in e.rivals.index:
        return absent("an inverted subset")
    row = e.rivals.loc[RIVALS["inverted"]]
    if row.verdict == "untested":
        return UNTESTED
    said = f"selected minus inverted subset of the same time: {text.gain(row)}"
    return of_row(said, judged(row.verdict, "above"), row)


def few_layers(e: Evidence) -> Estimate:
    """The most time that one layer alone saves, by the profile's costs."""
    table = sensitivity.layer_frame(e.sections["03_sensitivity"], e.records)
    most = table.loc[table["time_saved"].idxmax()]
    gain = 1 / (1 - most.time_saved)
    unit = e.facts("03_sensitivity")["unit"]
    said = (
        f"one layer alone saves at most {100 * most.time_saved:.1f} % of a step "
        f"({most.layer}, by {unit})"
    )
    return Estimate(said, REPRODUCED if gain < PAPER_SPEEDUP else NOT, gain, unit="×")


def bottleneck(e: Evidence) -> Estimate:
    """Layers that are slower than dense although they execute fewer multiplications."""
    fewer = e.layers[e.layers["macs_ratio"] > 1]
    found, timings = outcomes(fewer), counted(fewer, "timing", " of single layers")
    said = f"forward and backward, with fewer multiplications: {timings}"
    worst, turns = float(fewer["speedup"].min()), e.turns("repeats")
    return of_count(found.slower, len(fewer), said, worst, turns, found.undecided)


def larger(e: Evidence) -> Estimate:
    """Layers whose basis form holds no fewer parameters than the dense one."""
    costs = method.cost_frame(e.facts("00_method"))
    basis = costs[costs["n_basis"].notna() & (costs["layer"] != "network")]
    grown = int((basis["parameters_subset"] >= basis["parameters_dense"]).sum())
    said = (
        f"{grown} of {text.plural(len(basis), 'layer')} in basis form hold as many parameters as "
        "dense or more (a count)"
    )
    return of_count(grown, len(basis), said, float(grown), None)


def skip(e: Evidence) -> Estimate:
    """Basis, then re-initialised and trained as dense: against dense of the same time."""
    rows = skip_frame(e.measured("05_skip_training"))
    rows = rows[(rows["direction"] == "basis→dense") & (rows["carry"] == "reinit")]
    if rows.empty:
        return absent("a skip arm that is re-initialised")
    # Adjusted over the arms that the claim is about alone.
    rows = arms.decided(rows)
    tested = arms.tested(rows)
    if tested.empty:
        return UNTESTED
    best = tested.loc[tested["difference"].idxmax()]
    worst = tested.loc[tested["difference"].idxmin()]
    said = (
        f"minus dense of the same time, best of {text.plural(len(rows), 'switch point')} "
        f"({100 * best.switch:.0f} % of the time): {text.gain(best)}"
    )
    if best.switch != worst.switch:
        said += f"; worst ({100 * worst.switch:.0f} %): {text.gain(worst)}"
    return of_row(f"{said}; {arms.tally(rows['verdict'])}", kept(rows["verdict"]), best)


def early_switch(e: Evidence) -> Estimate:
    """The earliest switch to dense against basis throughout, at equal time."""
    found = e.measured("05_skip_training")
    basis = arms.first(found, "basis")
    kind = ("basis→dense", "exact")
    exact = [m for m in found if (m.detail.get("direction"), m.detail.get("carry")) == kind]
    if basis is None or not exact:
        return absent("basis throughout, or a switch that keeps the function")
    early = min(exact, key=lambda m: float(m.detail["switch"]))
    said = f"switch at {100 * early.detail['switch']:.0f} % of the time minus basis throughout"
    return of_difference(f"{said}, equal time", "above", early, basis)
