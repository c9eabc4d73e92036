"""The analysis plan: what it says, what it makes of simulated runs, and that it came first."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from basisconv.study.experiments import study as study_module
from basisconv.study.experiments.all_layers import Comparisons
from basisconv.study.experiments.named_arms import Comparison
from basisconv.study.experiments.profiles import load_profile
from basisconv.study.experiments.study import Study
from basisconv.study.records.environment import ROOT
from basisconv.study.report.statistics.analysis_plan import (
    PLAN,
    AnalysisPlan,
    Outcome,
    TimeOf,
    evaluated,
    load_plan,
    verdicts,
)


def simulated(
    plan: AnalysisPlan, effects: Mapping[tuple[str, str], float], sd: float = 0.1, draw: int = 0
) -> list[Outcome]:
    """Runs around 92 %: an effect by comparison and arm in points, a seed's own, and noise."""
    stream = np.random.default_rng(draw)
    of_seed = dict(zip(plan.seeds, stream.normal(0, 0.3, len(plan.seeds)), strict=True))
    return [
        Outcome(name, arm, seed, 92 + effects.get((name, arm), 0.0) + of_seed[seed]
                + float(stream.normal(0, sd)))
        for name, comparison in plan.comparisons.items()
        for arm, count in comparison.arms.items()
        for seed in plan.seeds[:count]
    ]  # fmt: skip


def test_the_primary_contrasts_are_the_four_that_were_named() -> None:
    plan = load_plan()
    primary = [plan.contrasts[name] for name in next(iter(plan.families.values()))]
    assert [(c.in_, c.arm, c.rival, c.rival_in, c.test) for c in primary] == [
        ("sgd-epochs", "S¼", "D", None, "noninferior"),
        ("muon-epochs", "S¼", "D", None, "noninferior"),
        ("muon-epochs", "B¼", "D½", "muon-longest", "different"),
        ("cifar100-time", "B¼", "D½", None, "different"),
    ]
    assert plan.margins == (0.5, 0.2) and plan.alpha == 0.05


def test_planted_differences_get_their_answers() -> None:
    plan = load_plan()
    effects = {
        ("sgd-epochs", "S¼"): 0.3,
        ("muon-epochs", "S¼"): -2.0,
        ("muon-longest", "D½"): 3.0,
        ("cifar100-time", "B¼"): 2.0,
    }
    found = evaluated(plan, simulated(plan, effects, sd=0.05))
    answers = {name: found[name].answer for name in plan.families["primary"]}
    assert answers == {
        "skip-sgd": "yes", "skip-muon": "no", "basis-narrow": "no", "basis-narrow-100": "yes",
    }  # fmt: skip
    assert found["skip-sgd"].margins == (0.5, 0.2) and found["skip-muon"].margins == ()
    assert found["skip-muon"].contrast.estimate == pytest.approx(-2, abs=0.2)
    assert found["skip-muon"].smallest == pytest.approx(2, abs=0.3)
    said = verdicts(plan, found)
    assert said["speedup"] == "partly" and said["performance"] == "reproduced"


def test_noise_leaves_the_primary_family_alone() -> None:
    """Of 100 studies without any effect, at most a share of alpha has a difference in it."""
    plan = load_plan()
    primary = plan.families["primary"]
    contrasts = {name: plan.contrasts[name] for name in primary}
    only = {"contrasts": contrasts, "families": {"primary": primary}, "claims": {}}
    plan = plan.model_copy(update=only)
    wrong = 0
    for draw in range(100):
        # Half a point worse is the edge of what counts as not inferior.
        effects = {("sgd-epochs", "S¼"): -0.5, ("muon-epochs", "S¼"): -0.5}
        found = evaluated(plan, simulated(plan, effects, draw=draw))
        wrong += any(found[name].p_holm <= plan.alpha for name in plan.families["primary"])
    # 5 % of 100 is 5; 13 or more has a chance of 0.2 %.
    assert wrong < 13


def test_a_diverged_run_and_a_missing_comparison_leave_a_contrast_undecided() -> None:
    plan = load_plan()
    runs = [o for o in simulated(plan, {}) if o.comparison != "cifar100-time"]
    runs = [
        o._replace(accuracy=math.nan)
        if (o.comparison, o.arm, o.seed) == ("sgd-epochs", "S¼", 110)
        else o
        for o in runs
    ]
    found = evaluated(plan, runs)
    for name in ("skip-sgd", "basis-narrow-100"):
        assert found[name].answer == "undecided" and math.isnan(found[name].contrast.low)
    assert found["half-skip-sgd"].answer == "yes"
    assert verdicts(plan, found)["speedup"] == "partly"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"claims": {"speedup": ["skip-adam"]}}, "skip-adam"),
        ({"families": {"primary": ["skip-sgd", "skip-sgd"]}}, "one family"),
        ({"comparisons": {}}, "no arm"),
    ],
)
def test_a_plan_that_names_what_is_not_there_is_refused(
    change: dict[str, object], words: str
) -> None:
    values = load_plan().model_dump(by_alias=True) | change
    with pytest.raises(ValueError, match=words):
        AnalysisPlan.model_validate(values)


def test_the_profile_trains_what_was_planned() -> None:
    plan, profile = load_plan(), load_profile("desk2")
    assert tuple(profile.seeds.confirm) == plan.seeds
    trained = profile.notebooks.all_layers
    assert isinstance(trained, Comparisons)

    def found(equal: str, settings: list[Comparison]) -> dict[tuple[object, ...], dict[str, int]]:
        return {(equal, s.recipe, s.length): dict(s.arms) for s in settings}

    profiled = found("epochs", trained.equal_epochs) | found("time", trained.equal_time)
    study = Study.open("desk2")
    epochs = plan.comparisons["muon-epochs"].length
    assert isinstance(epochs, float)
    # The time that B¼ takes for them, by the cost table.
    longest = round(epochs * study.cost(study.plan(0.25), optimizer="muon"), 2)
    planned = {}
    for c in plan.comparisons.values():
        if c.data == "cifar10":
            length = longest if isinstance(c.length, TimeOf) else c.length
            # The layers of "selected" are chosen later.
            arms = {a: n for a, n in c.arms.items() if a != "selected" or trained.selected}
            planned[c.equal, c.recipe, length] = arms
    assert profiled == planned


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else ""


def test_every_confirming_record_was_made_after_the_plan_with_the_plan_unchanged() -> None:
    name = PLAN.relative_to(ROOT).as_posix()
    last = _git("log", "-1", "--format=%H", "--", name)
    if not last:
        pytest.skip("no history here: not a clone")
    seeds = set(load_plan().seeds)
    for path in sorted(Path(study_module.published_folder("desk2")).glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("run", {}).get("seed") not in seeds:
            continue
        commit = values["measurement"]["environment"]["commit"]
        # The plan's last change, so that it is unchanged ever since.
        descends = ["git", "merge-base", "--is-ancestor", last, commit]
        assert subprocess.run(descends, cwd=ROOT).returncode == 0, f"{path.name} came first"
