"""07 and 08: what scores predict of subsets, what their choices lose, and plans by cost."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic

from basisconv.study import report
from basisconv.study.report import ranks, search_methods
from basisconv.study.report.search_methods import RANDOM, Subsets
from basisconv.study.report.statistics.stats import NAN

SECTION, RECORDS = synthetic.search_section()
NAMES = [f"l{i}" for i in range(12)]


def made_up(count: int, noise: float) -> tuple[Subsets, dict[str, float]]:
    """Random subsets whose log loss is a seed's, a common cost a layer, and the layer's own."""
    random = np.random.default_rng(5)
    own = dict(zip(NAMES, random.normal(0, 0.1, 12).tolist(), strict=True))
    layers = [[n for n in NAMES if random.random() < 0.5] for _ in range(count)]
    seeds = np.arange(count) % 3
    losses = 0.2 * seeds + np.array([sum(0.3 + own[n] for n in some) for some in layers])
    shared = np.column_stack([seeds[:, None] == np.arange(3), [len(some) for some in layers]])
    return Subsets(layers, losses + random.normal(0, noise, count), shared.astype(float)), own


def test_a_perfect_score_without_noise_explains_all_beyond_the_common_slope() -> None:
    found, own = made_up(40, 0.0)
    common = found.left_out()
    assert common is not None and np.abs(common).max() > 0.1
    r2, ranked = search_methods._predicted(found, common, own)
    assert r2.estimate == pytest.approx(1) and ranked.estimate == pytest.approx(1)
    # A score in another unit, and the same for all layers, or with a sign turned.
    scaled = {name: 5 - 300 * value for name, value in own.items()}
    r2, ranked = search_methods._predicted(found, common, scaled)
    assert r2.estimate == pytest.approx(1) and ranked.estimate == pytest.approx(-1)


def test_a_score_without_meaning_explains_nothing_and_noise_limits_a_perfect_one() -> None:
    found, own = made_up(400, 0.2)
    common = found.left_out()
    assert common is not None
    chance = dict(zip(NAMES, np.random.default_rng(1).normal(size=12).tolist(), strict=True))
    right = search_methods._predicted(found, common, own)[0]
    wrong = search_methods._predicted(found, common, chance)[0]
    signal = float(np.var(found.beyond(np.array([sum(own[n] for n in s) for s in found.layers]))))
    assert right.estimate == pytest.approx(signal / (signal + 0.04), abs=0.06)
    assert right.low < right.estimate < right.high and wrong.estimate < right.estimate / 2


def test_each_subset_is_predicted_from_the_others_alone() -> None:
    found, own = made_up(15, 0.1)
    scores = np.array([sum(own[n] for n in some) for some in found.layers])
    errors = found.left_out(scores)
    assert errors is not None
    x = np.column_stack([found.shared, scores])
    for i in range(15):
        rest = np.arange(15) != i
        beta = np.linalg.lstsq(x[rest], found.losses[rest], rcond=None)[0]
        assert errors[i] == pytest.approx(found.losses[i] - x[i] @ beta, rel=1e-6)


def test_too_few_subsets_predict_nothing() -> None:
    found, own = made_up(5, 0.1)
    assert search_methods._predicted(found, found.left_out(), own)[0].estimate is NAN


def test_regret_is_the_reference_less_the_choice_by_seed() -> None:
    table = report.build(SECTION, RECORDS).tables["search_methods"].frame.set_index("way")

    def accuracy(label: str) -> np.ndarray:
        arm = next(arm for arm in SECTION.arms if arm.label == label)
        return np.array([100 * RECORDS[i].result.val_accuracy for i in arm.run_ids])  # type: ignore[union-attr]

    lost = accuracy("last layers") - accuracy("chosen by sweep")
    assert table.loc["sweep", "regret"] == pytest.approx(lost.mean())
    draws = [accuracy(f"random {i + 1}")[0] for i in range(12)]
    regret = accuracy("last layers")[0] - np.mean(draws)  # all of them have the first seed
    assert table.loc[RANDOM, "regret"] == pytest.approx(regret)
    half = table.loc[RANDOM, "regret"] / 2
    wanted = [
        way for way in ("screening", "sweep", "depth") if table.loc[way, "regret_high"] < half
    ]
    assert search_methods.enough(table.reset_index()) == wanted


def test_the_screening_alone_has_its_layers_and_no_methods() -> None:
    alone = report.build(*synthetic.search_section(choices=False))
    assert set(alone.tables) == {"search_layers"} and set(alone.figures) == {"search"}
    found = alone.tables["search_layers"].frame.set_index("layer")["rise"]
    for name, true in synthetic.SCREENED.items():
        assert found[name] == pytest.approx(100 * true, abs=0.8)


def test_each_plan_is_held_against_the_share_whose_cost_it_has() -> None:
    section, records = synthetic.ranks_section()
    table = ranks.plan_frame(report.arms.measure(section, records))
    means = table.set_index("label")["accuracy"]
    for row in table[table["method"] == "selected"].itertuples():
        share = means[f"all layers, f = {row.ratio:g}"]
        assert row.difference == pytest.approx(row.accuracy - share)
    verdicts = dict(zip(table["label"], table["verdict"], strict=True))
    assert verdicts["by screening, for f = 0.5"] == "above"
    assert verdicts["by singular values, for f = 0.25"] == "below"
    assert table[table["method"] != "selected"]["difference"].isna().all()
