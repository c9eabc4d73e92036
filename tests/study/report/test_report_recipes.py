"""The pilot's recipes: the best rate of each, edges, and what Muon gains on SGD."""

from __future__ import annotations

import synthetic

from basisconv.study import report
from basisconv.study.records.run import Record, Section
from basisconv.study.report import arms, recipes

ACCURACY = {
    ("dense", "muon", 1.0, 0.1): {0.05: 84.0, 0.1: 83.0, 0.2: 82.0},
    ("dense", "sgd", 1.0, 0.1): {0.1: 76.0, 0.2: 78.0, 0.4: 77.0},
    ("basis", "muon", 1.0, 0.1): {0.05: 77.0, 0.1: 79.0, 0.2: 78.0},
    ("basis", "muon", 0.5, 0.1): {0.05: 75.0, 0.1: 76.0, 0.2: 77.0},
    ("basis", "sgd", 1.0, 0.1): {0.1: 70.0, 0.2: 71.0, 0.4: 72.0},
    # One rate is no choice, and no edge either.
    ("dense", "sgd", 1.0, 0.0): {0.2: 80.0},
}


def section() -> tuple[Section, dict[str, Record]]:
    maker = synthetic.Maker("01b_pilot", test=False, seeds=(200,), noise=0.0)
    for (kind, optimizer, ratio, smoothing), levels in ACCURACY.items():
        for rate, level in levels.items():
            maker.arm(
                f"{kind}, {optimizer} {rate}, factors {ratio}, smoothing {smoothing}", kind, level,
                budget=3, detail={
                    "part": "recipes", "width": 16, "optimizer": optimizer, "batch_size": 128,
                    "learning_rate": rate, "factor_lr_ratio": ratio, "label_smoothing": smoothing,
                },
            )  # fmt: skip
    return maker.section(sweeps=[], ratio=0.25), maker.records


def test_each_recipe_has_its_best_rate_and_says_where_that_is_an_edge() -> None:
    frame = recipes.recipe_frame(arms.measure(*section()))
    best = frame[frame["best"]]
    found = {
        (r.method, r.optimizer, r.factor_lr_ratio, r.label_smoothing): (r.learning_rate, r.edge)
        for r in best.itertuples()
    }
    assert found == {
        ("dense", "muon", 1.0, 0.1): (0.05, True),
        ("dense", "sgd", 1.0, 0.1): (0.2, False),
        ("basis", "muon", 1.0, 0.1): (0.1, False),
        ("basis", "muon", 0.5, 0.1): (0.2, True),
        ("basis", "sgd", 1.0, 0.1): (0.4, True),
        ("dense", "sgd", 1.0, 0.0): (0.2, False),
    }


def test_a_rate_that_lost_a_run_is_none_to_choose() -> None:
    made, records = section()
    run_id = next(a.run_ids[0] for a in made.arms if a.label.startswith("dense, muon 0.05"))
    records[run_id] = records[run_id].model_copy(
        update={"status": "diverged", "result": None, "error": "nan"}
    )
    frame = recipes.recipe_frame(arms.measure(made, records))
    best = frame[frame["best"] & (frame["method"] == "dense") & (frame["optimizer"] == "muon")]
    assert list(best["learning_rate"]) == [0.1]


def test_the_headline_compares_the_optimizers_where_both_were_tried() -> None:
    made = report.build(*section())
    assert "6.0 to 7.0 points" in made.numbers["headline"]
    assert "2 comparisons" in made.numbers["headline"]
    assert made.tables["pilot_recipes"].frame.shape[0] == 16
    panels = made.figures["pilot_recipes"].figure.axes
    drawn = {
        (i, line.get_label(), tuple(line.get_ydata()))
        for i, axes in enumerate(panels)
        for line in axes.get_lines()
    }  # fmt: skip
    assert (0, "SGD", (76.0, 78.0, 77.0)) in drawn
    assert (1, "Muon, factors 1/2", (75.0, 76.0, 77.0)) in drawn
    assert len(drawn) == 5
