"""Profiles: every file is valid, and every mistake is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from basisconv.study.experiments import profiles
from basisconv.study.experiments.profiles import load_profile, names
from basisconv.study.experiments.registry import NOTEBOOKS, check_parameters


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of profiles of the test's own, with smoke in it."""
    for name in ("base.yaml", "smoke.yaml"):
        (tmp_path / name).write_text((profiles.FOLDER / name).read_text())
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    load_profile.cache_clear()
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    values = yaml.safe_load((folder / "smoke.yaml").read_text())
    change(values)
    (folder / "smoke.yaml").write_text(yaml.safe_dump(values))


def test_every_profile_is_valid_and_all_are_there() -> None:
    assert names() == ["desk", "desk2", "paper", "quick", "smoke"]
    for name in names():
        profile = load_profile(name)
        assert profile.preliminary == (name in ("smoke", "quick"))
        assert set(NOTEBOOKS) == set(profile.notebooks.model_dump(by_alias=True))
        for notebook in NOTEBOOKS:
            check_parameters(notebook, profile.parameters(notebook))


def test_smoke_and_quick_need_no_download_and_no_measured_costs() -> None:
    for name in ("smoke", "quick"):
        profile = load_profile(name)
        assert profile.data == "cifar10-sample" and profile.costs == "macs"


def test_published_profiles_have_seeds_enough() -> None:
    for name in ("desk", "paper"):
        seeds = load_profile(name).seeds
        assert len(seeds.confirm) >= 3 and len(seeds.explore) % 2 == 0


def test_settings_are_laid_over_the_file_and_validated() -> None:
    changed = load_profile("smoke", ("width=16", "notebooks.02_all_layers.budgets=[3]"))
    assert changed.width == 16 and changed.notebooks.all_layers.budgets == [3]
    assert load_profile("smoke").width == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("widht=16", "no setting 'widht'"),
        ("width.x=16", "no setting 'width.x'"),
        ("width", "'width' is not key=value"),
        ("width=0", "width: .*greater than or equal to 1"),
        ("notebooks.02_all_layers.ratios=[1.5]", "02_all_layers.ratios.0"),
        ("notebooks.02_all_layers.skip_switch=1", "02_all_layers.skip_switch: .*less than 1"),
        ("precision=float16", "precision: .*float32"),
        ("seeds.confirm=[0]", r"seeds \[0\] are listed twice"),
        ("width=[", "width=.* is not YAML"),
        ("notebooks.05_skip_training.carries=[]", "05_skip_training.carries: .*at least 1"),
        ("confirm=[02_all]", "confirm names .*02_all.*02_all_layers"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(change: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_profile("smoke", (change,))


def test_an_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="'huge'.*desk, desk2, paper, quick, smoke"):
        load_profile("huge")
    with pytest.raises(ValueError, match="no profile '../smoke'"):
        load_profile("../smoke")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("width"), "width: Field required"),
        (lambda v: v["training"].pop("batch_size"), "training.batch_size: Field required"),
        (lambda v: v["notebooks"].pop("04_selection"), "04_selection.budget: Field required"),
        (lambda v: v.update(colour="red"), "colour: Extra inputs"),
        (lambda v: v.update(name="other"), "calls itself 'other'"),
    ],
)
def test_a_file_that_is_no_profile_says_where(folder: Path, change: Any, words: str) -> None:
    rewrite(folder, change)
    with pytest.raises(ValueError, match=f"smoke.yaml .*{words}"):
        load_profile("smoke")


def test_parameters_of_a_notebook_are_checked_by_name() -> None:
    with pytest.raises(ValueError, match="01_baseline: epochs: Field required; .*epoch: Extra"):
        check_parameters("01_baseline", {"epoch": 3})
    with pytest.raises(ValueError, match="no notebook '07'.*00_method"):
        check_parameters("07", {})


def test_a_profile_has_bases_values_but_for_its_own(folder: Path) -> None:
    (folder / "base.yaml").write_text(
        (folder / "base.yaml").read_text().replace("  ratio: 0.25", "  ratio: 0.375")
    )
    given = load_profile.__wrapped__("smoke").notebooks
    assert given.method.ratio == 0.375  # base's, and not smoke's own
    assert given.sensitivity.ratio == 0.25  # smoke's own
    with pytest.raises(ValueError, match="no profile 'base'"):
        load_profile("base")
