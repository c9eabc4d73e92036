"""09's report from made-up runs and timings whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic

from basisconv.study import report
from basisconv.study.records.run import Section
from basisconv.study.report.output import Report


@pytest.fixture(scope="module")
def made() -> Report:
    return report.build(*synthetic.generalisation_section())


def test_a_network_has_one_row_with_what_it_costs_and_gains(made: Report) -> None:
    table = made.tables["generalisation"].frame
    assert list(table["network"]) == ["resnet18", "vgg16_bn", "mobilenet_v2"]
    hundred, vgg, mobile = table.itertuples()
    assert hundred.data == "cifar100" and hundred.n == 4 and hundred.step == pytest.approx(0.46)
    found = [hundred.epochs, hundred.time, hundred.narrow, vgg.epochs, vgg.time]
    assert found == pytest.approx([-3, 2, -1, -3, 3], abs=0.35)
    assert all(r.time_low < r.time < r.time_high for r in (hundred, vgg))
    # Half the width was not trained there, and MobileNetV2 has nothing to convert.
    assert np.isnan(vgg.narrow) and np.isnan(mobile.time) and np.isnan(mobile.speedup)
    assert [r.macs_ratio for r in (hundred, vgg, mobile)] == [3.0, 3.0, 1.0]
    assert (hundred.speedup, vgg.speedup, mobile.width) == (2.0, 2.2, 64)
    shown = made.tables["generalisation"].shown
    assert list(shown["a step gains"]) == ["2.00× [1.90, 2.04]", "2.20× [2.09, 2.24]", "–"]


def test_the_plans_contrasts_are_those_of_the_other_data(made: Report) -> None:
    table = made.tables["generalisation_contrasts"].frame.set_index("contrast")
    assert set(table.index) == {"basis-narrow-100", "skip-100", "basis-100", "time-100"}
    answers = {name: table.loc[name, "answer"] for name in table.index}
    assert answers["basis-narrow-100"] == "no" and answers["time-100"] == "yes"
    assert made.numbers["values"]["basis-narrow-100"]["text"].endswith(", no")


def test_the_screening_finds_what_was_planted(made: Report) -> None:
    table = made.tables["generalisation_screening"].frame
    wanted = [0.1 - 0.01 * i for i in range(1, 9)]
    # 0.1 less 0.01 for each layer before it, without noise.
    assert list(table["effect"]) == pytest.approx([w + 0.01 for w in wanted], abs=0.002)
    depth = made.numbers["values"]["correlation with depth"]
    assert depth["value"] == pytest.approx(-1) and depth["n"] == 16
    assert made.numbers["values"]["correlation with MACs saved"]["value"] == pytest.approx(-1)


def test_the_layer_and_network_nearest_to_the_promise_are_named(made: Report) -> None:
    values = made.numbers["values"]
    assert values["nearest layer"]["text"].startswith("64→64, 64×64 of ResNet-18 on images of 64")
    assert "2.60× [2.47, 2.65] of 3.00×" in values["nearest network"]["text"]


def test_the_figure_marks_what_is_measured_alone(made: Report) -> None:
    gains, left, right = made.figures["generalisation"].figure.axes
    names = [tick.get_text() for tick in gains.get_yticklabels()]
    assert names == ["ResNet-18, CIFAR-100", "VGG-16-BN, CIFAR-10", "MobileNetV2"]
    bars = [patch.get_width() for patch in gains.patches]
    assert bars == [3.0, 3.0, 1.0]
    marks = [line.get_xdata() for axes in (left, right) for line in axes.get_lines()]
    assert sum(np.isfinite(np.asarray(x, float)).sum() for x in marks if len(x) == 3) >= 5


def test_a_profile_that_trains_nothing_of_it_says_so() -> None:
    facts = {"data": "cifar100", "devices": [], "screened_layers": [], "unit": "MACs"}
    built = report.build(
        Section(name="09_generalisation", profile="desk", arms=(), facts=facts), {}
    )
    assert "not yet measured" in built.numbers["headline"]
    assert all(table.frame.empty for table in built.tables.values())
