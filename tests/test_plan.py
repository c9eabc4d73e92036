"""Plans as values: compared, joined, saved, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import basisconv as bc
from basisconv import BasisConv2d, Plan

# Plans as values.


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    layers=st.dictionaries(st.text(max_size=5), st.integers(1, 10**6), max_size=4),
    form=st.sampled_from(["subset", "full"]),
    coef_groups=st.integers(1, 8),
    coef_rank=st.none() | st.integers(1, 64),
    data=st.data(),
)
def test_a_plan_survives_json(layers, form, coef_groups, coef_rank, data):
    mode = st.sampled_from(["factored", "rebuilt"])
    modes = {n: data.draw(mode) for n in layers if data.draw(st.booleans())}
    plan = Plan(layers, form, coef_groups, coef_rank, modes)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and hash(again) == hash(plan)
    assert len({plan, again}) == 1


def test_files(tmp_path: Path):
    plan = Plan({"layer1.0.conv1": 16}, "full", 2, 4, {"layer1.0.conv1": "rebuilt"})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    text = (tmp_path / "plan.json").read_text()
    for damaged in (text[:-9], "", "[]", "3", text.replace("coef_rank", "coef_ranks"),
                    text.replace("16", "0"), text.replace("full", "ful"),
                    "[" * 100_000):  # fmt: skip
        (tmp_path / "damaged.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"damaged\.json is not a plan: "):
            Plan.load(tmp_path / "damaged.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.json is not a plan"):
        Plan.load(tmp_path / "binary.json")


def test_equality_hash_and_order():
    a, b = Plan({"x": 1, "y": 2}), Plan({"y": 2, "x": 1})
    assert a == b and hash(a) == hash(b)
    assert Plan({"x": 1}, modes={"x": "factored"}) == Plan({"x": 1})
    assert a != Plan({"x": 1, "y": 2}, "full")


def test_a_plan_does_not_change_with_what_it_was_made_from():
    layers: dict[str, int] = {"x": 1}
    plan = Plan(layers)
    layers["y"] = 2
    plan.to_dict()["layers"]["z"] = 3
    assert plan == Plan({"x": 1})
    with pytest.raises(FrozenInstanceError):
        plan.form = "full"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer": {"x": 1}}, "A plan has the keys layers, form, coef_groups, coef_rank, modes"),
        ([], "A plan has the keys"),
        ({"layers": ["x"]}, r"\['x'\] does not"),
        ({"layers": {"x": 1}, "modes": 3}, "3 does not"),
        ({"layers": {"x": 0}}, "'x' to 0"),
        ({"layers": {"x": "4"}}, "'x' to '4'"),
        ({"layers": {"x": True}}, "'x' to True"),
        ({"layers": {"x": 1.5}}, r"'x' to 1\.5"),
        ({"form": "Subset"}, "form='Subset' is unknown. Forms: subset, full"),
        ({"form": ["subset"]}, "is unknown"),
        ({"coef_groups": 0}, "not 0"),
        ({"coef_groups": None}, "not None"),
        ({"coef_rank": -2}, "not -2"),
        ({"layers": {"x": 1}, "modes": {"y": "rebuilt"}}, r"modes\['y'\]"),
        ({"layers": {"x": 1}, "modes": {"x": "fast"}}, "factored, rebuilt"),
    ],
)
def test_values_that_are_not_a_plan(values: Any, message: str):
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(values)


def test_only():
    plan = Plan({"x": 1, "y": 2, "z": 3}, "full", 2, 4, {"x": "rebuilt", "y": "rebuilt"})
    assert plan.only(["z", "x"]) == Plan({"x": 1, "z": 3}, "full", 2, 4, {"x": "rebuilt"})
    with pytest.raises(ValueError, match=r"\['w'\] are not in the plan. It has: x, y, z"):
        plan.only(["x", "w"])


def test_only_takes_globs():
    plan = Plan({"layer1.a": 1, "layer1.b": 2, "layer2.a": 3}, modes={"layer1.b": "rebuilt"})
    assert plan.only("layer1.*") == Plan(
        {"layer1.a": 1, "layer1.b": 2}, modes={"layer1.b": "rebuilt"}
    )
    assert plan.only(["*.a"]) == Plan({"layer1.a": 1, "layer2.a": 3})
    assert plan.only(n for n in ["layer2.a"]) == Plan({"layer2.a": 3})
    assert plan.only([]) == Plan({})
    with pytest.raises(ValueError, match=r"\['layer3\.\*'\] are not in the plan"):
        plan.only(["layer1.*", "layer3.*"])


def test_plans_join_and_the_right_one_wins():
    left = Plan({"a": 1, "b": 2, "c": 3}, "full", 2, 4, {"a": "rebuilt", "b": "rebuilt"})
    right = Plan({"b": 5, "d": 6}, "full", 2, 4, {"d": "rebuilt"})
    modes = {"a": "rebuilt", "d": "rebuilt"}
    assert left | right == Plan({"a": 1, "b": 5, "c": 3, "d": 6}, "full", 2, 4, modes)
    assert left | Plan({}) == left == Plan({}) | left
    for other in (Plan({"x": 1}), Plan({"x": 1}, "full"), Plan({"x": 1}, "full", 2)):
        with pytest.raises(ValueError, match="Plans of different forms"):
            left | other
    with pytest.raises(TypeError):
        left | {"a": 1}  # type: ignore[operator]


def test_plan_of_a_model_that_no_plan_describes():
    for other in ({"form": "full"}, {"coef_groups": 2}, {"coef_rank": 1}):
        model = nn.Sequential(BasisConv2d(4, 8, 3, 4), BasisConv2d(8, 8, 3, 4, **other))
        with pytest.raises(ValueError, match="No plan describes this model: .* of 0|1 differ"):
            bc.plan_of(model)
    # Ranks that are cut to a layer's own width are one plan; others are not.
    narrow, wide = BasisConv2d(4, 8, 3, 2, coef_rank=2), BasisConv2d(8, 8, 3, 6, coef_rank=4)
    assert bc.plan_of(nn.Sequential(narrow, wide)) == Plan({"0": 2, "1": 6}, coef_rank=4)
    with pytest.raises(ValueError, match="No plan describes"):
        bc.plan_of(nn.Sequential(BasisConv2d(4, 8, 3, 6, coef_rank=2), wide))
