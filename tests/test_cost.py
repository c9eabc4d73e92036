"""Costs against torch's own FLOP counter and the published facts."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import basisconv as bc
from basisconv.study.training.models import build_network, initialise


def counted(model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """MACs of forward and backward, by torch's counter (which counts two FLOPs a MAC)."""
    with FlopCounterMode(display=False) as forward:
        loss = model(x).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops() / 2, backward.get_total_flops() / 2


def grouped_overcount(model: nn.Module, x: torch.Tensor) -> float:
    """What the counter adds too much: a grouped convolution's weight gradient, groups times."""
    surplus = 0.0
    handles = []

    def hook(conv: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        nonlocal surplus
        positions = y.numel() // y.shape[1]
        columns = conv.in_channels // conv.groups * math.prod(conv.kernel_size)
        if isinstance(conv, nn.Conv2d):
            parts = [(positions * conv.out_channels * columns, conv.groups)]
        else:
            width = conv.n_basis // conv.blocks
            parts = [(positions * conv.n_basis * columns, conv.groups)]
            if conv.coef_rank is None or conv.form == "subset":
                parts.append((positions * conv.out_channels * width, conv.blocks))
            else:
                inner = conv.blocks * conv.coef_rank * width
                parts.append((positions * inner, conv.blocks))
                parts.append((positions * conv.out_channels * conv.coef_rank, conv.blocks))
            if conv.mode == "rebuilt":
                parts = [(positions * conv.out_channels * columns, conv.groups)]
        surplus += sum(macs * (groups - 1) for macs, groups in parts)

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, bc.BasisConv2d)):
            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return surplus


SETTINGS = [
    {},
    {"form": "full"},
    {"mode": "rebuilt"},
    {"form": "full", "mode": "rebuilt"},
    {"coef_groups": 2},
    {"form": "full", "coef_groups": 2},
    {"coef_rank": 2},
    {"form": "full", "coef_rank": 2},
    {"form": "full", "coef_rank": 2, "coef_groups": 2},
    {"coef_rank": 1, "mode": "rebuilt"},
]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_macs_are_those_that_torch_counts(groups: int, settings: dict[str, object]) -> None:
    stem = nn.Conv2d(3, 6, (3, 2), stride=2, padding=1)
    inner = nn.Conv2d(6, 16, 3, padding=1, groups=groups, bias=False)
    basis = bc.BasisConv2d.from_conv2d(inner, 8, **settings)  # type: ignore[arg-type]
    model = nn.Sequential(stem, basis, nn.Flatten(), nn.Linear(16 * 4 * 6, 5))
    x = torch.randn(3, 3, 7, 11)
    forward, backward = counted(model, x)
    costs = bc.summary(model, x.shape)
    assert costs.macs == forward
    assert costs.macs_backward == backward - grouped_overcount(model, x)
    assert costs.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_plan_costs_what_the_model_that_follows_it_costs(settings: dict[str, object]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 20, 3)
    )
    options = {k: v for k, v in settings.items() if k != "mode"}
    plan = bc.make_plan(model, ratio=0.5, **options)  # type: ignore[arg-type]
    if "mode" in settings:
        plan = bc.Plan.from_dict(plan.to_dict() | {"modes": dict.fromkeys(plan.layers, "rebuilt")})
    promised = bc.summary(model, (2, 3, 15, 13), plan)
    made = bc.summary(bc.apply_plan(model, plan), (2, 3, 15, 13))
    assert promised == made


def test_the_published_network_has_the_published_counts() -> None:
    model = build_network("resnet18", 64, 10)
    dense = bc.summary(model, (1, 3, 32, 32))
    assert dense.parameters == 11_173_962
    assert dense.macs == 555_422_720
    assert sum(row.kind == "Conv2d" for row in dense.rows) == 20
    every = bc.make_plan(model, ratio=0.25)
    assert len(every.layers) == 16
    full = bc.make_plan(model, ratio=0.25, form="full")
    assert bc.summary(model, (1, 3, 32, 32), every).parameters == 3_195_978
    assert bc.summary(model, (1, 3, 32, 32), full).parameters == 3_283_018
    assert round(bc.summary(model, (1, 3, 32, 32), full).macs / 1e6, 1) == 161.7
    stride1 = [row.macs for row in dense.rows if row.name in ("layer1.0.conv1", "layer4.1.conv2")]
    assert stride1 == [37_748_736, 37_748_736]


def test_a_layer_is_counted_for_the_whole_batch_and_bytes_follow_the_dtype() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False))
    one, three = (bc.summary(model, (n, 2, 6, 6))["0"] for n in (1, 3))
    assert three.macs == 3 * one.macs
    assert one.bytes_moved == 4 * (2 * 36 + 4 * 16 + 4 * 2 * 9)
    assert bc.summary(model.double(), (1, 2, 6, 6))["0"].bytes_moved == 2 * one.bytes_moved


def test_the_roofline_takes_the_slower_of_arithmetic_and_memory() -> None:
    row = bc.summary(nn.Sequential(nn.Conv2d(2, 4, 3)), (1, 2, 6, 6))["0"]
    assert row.roofline_seconds(1.0, 1e12) == row.macs
    assert row.roofline_seconds(1e12, 1.0) == row.bytes_moved


def test_a_summary_prints_and_frames_and_leaves_the_model_alone() -> None:
    model = build_network("resnet18", 8, 10)
    initialise(model, 0)
    model.train()
    model.layer1[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    costs = bc.summary(bc.apply_plan(model, bc.make_plan(model, ratio=0.25)), (1, 3, 32, 32))
    assert "layer4.1.conv2" in str(costs) and f"{costs.parameters:,}" in str(costs)
    assert len(costs.to_frame()) == 21 and "<table" in costs._repr_html_()
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


SIZE = (1, 1, 2, 2)


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda c: c["layer9"], "No layer 'layer9'"),
        (
            lambda _: bc.summary(nn.Sequential(nn.Conv2d(1, 2, 1)), SIZE, bc.Plan({"9": 1})),
            "names '9', which the model does not have",
        ),
        (
            lambda _: bc.summary(nn.Sequential(nn.Conv2d(1, 2, 1)), SIZE, bc.Plan({"0": 3})),
            "0: n_basis=3 is not a whole number from 1 to out_channels=2",
        ),
    ],
)
def test_unknown_layers_are_named(ask: Callable[[bc.Summary], object], words: str) -> None:
    costs = bc.summary(nn.Sequential(nn.Conv2d(1, 2, 1)), SIZE)
    with pytest.raises((KeyError, ValueError), match=words):
        ask(costs)


@pytest.mark.parametrize("plan", [bc.Plan({"idle": 1}), bc.Plan({"used": 1}), bc.Plan({})])
@pytest.mark.parametrize("before", [bc.Plan({}), bc.Plan({"idle": 1}, "full")])
def test_a_layer_that_is_not_reached_has_no_row_and_its_parameters_count(
    before: bc.Plan, plan: bc.Plan
) -> None:
    model = bc.apply_plan(Idle(), before)
    made = bc.apply_plan(model, plan)
    promised = bc.summary(model, SIZE, plan)
    assert promised == bc.summary(made, SIZE)
    assert [row.name for row in promised.rows] == ["used"]
    assert promised.parameters == sum(p.numel() for p in made.parameters())


def test_a_model_without_layers_or_parameters_has_an_empty_summary() -> None:
    costs = bc.summary(nn.Sequential(nn.ReLU()), SIZE)
    assert (costs.rows, costs.parameters, costs.macs) == ((), 0, 0)
    assert "total" in str(costs) and "<table" in costs._repr_html_()
    some = bc.summary(nn.Sequential(nn.Conv2d(1, 2, 1)), SIZE).to_frame()
    assert len(costs.to_frame()) == 0 and list(costs.to_frame()) == list(some)
    assert costs.to_frame().index.name == "name"


def test_without_pandas_a_notebook_shows_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    costs = bc.summary(nn.Sequential(OrderedDict({"a&b<c": nn.Conv2d(1, 2, 1)})), SIZE)
    page = costs._repr_html_()
    assert page == "<pre>" + str(costs).replace("&", "&amp;").replace("<", "&lt;") + "</pre>"
    assert "a&amp;b&lt;c" in page


def test_what_the_backward_pass_is_taken_to_be() -> None:
    class Stems(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = (nn.Conv2d(c, 4, 3, padding=1) for c in (2, 2, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.one(x) + self.two(x))

    model, x = Stems(), torch.randn(1, 2, 6, 6)
    costs = bc.summary(model, x.shape)
    assert costs.macs_backward == counted(model, x)[1] + costs["two"].macs
    model.requires_grad_(False)
    assert bc.summary(model, x.shape) == costs


def test_a_linear_layer_that_is_not_called_has_no_row() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.attend = nn.Conv2d(2, 4, 1), nn.MultiheadAttention(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.conv(x).flatten(2).permute(2, 0, 1)
            return self.attend(tokens, tokens, tokens)[0]

    assert [row.name for row in bc.summary(Attending(), (1, 2, 3, 3)).rows] == ["conv"]


def test_a_basis_layer_moves_its_small_output_twice() -> None:
    conv = nn.Conv2d(2, 4, 3, bias=False)
    model = nn.Sequential(bc.BasisConv2d.from_conv2d(conv, 2))
    row = bc.summary(model, (1, 2, 6, 6))["0"]
    assert row.bytes_moved == 4 * (2 * 36 + 4 * 16 + 2 * 2 * 9 + 2 * 2 + 2 * (2 * 16))
    assert row.intensity == pytest.approx((16 * 2 * 18 + 16 * 4 * 2) / row.bytes_moved)


def test_a_plans_coef_rank_is_cut_to_what_a_layer_has() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 20, 3))
    plan = bc.Plan({"1": 3, "2": 10}, "full", coef_rank=5)
    promised = bc.summary(model, (1, 3, 9, 9), plan)
    assert promised == bc.summary(bc.apply_plan(model, plan), (1, 3, 9, 9))


def test_other_convolutions_count_as_torch_counts_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2),
        nn.Flatten(2),
        nn.Conv1d(6, 4, 5, stride=3, groups=2),
        nn.Unflatten(1, (4, 1, 1)),
        nn.ConvTranspose3d(4, 2, (1, 1, 3)),
    )
    x = torch.randn(2, 3, 9, 7)
    costs = bc.summary(model, x.shape)
    assert costs.macs == counted(model, x)[0]
    kinds = ["Conv2d", "ConvTranspose2d", "Conv1d", "ConvTranspose3d"]
    assert [row.kind for row in costs.rows] == kinds
    assert costs.parameters == sum(p.numel() for p in model.parameters())


def test_what_a_layer_holds_besides_its_form_is_counted() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3))
    torch.nn.utils.parametrizations.weight_norm(model[0])
    held = sum(p.numel() for p in model.parameters())
    assert held == 2 * 4 * 9 + 4 + 4 + 4 * 4 * 9 + 4
    assert bc.summary(model, (1, 2, 9, 9)).parameters == held
    # Two basis filters and their combination into the other two.
    saved = 4 * 4 * 9 - (2 * 4 * 9 + 2 * 2)
    assert bc.summary(model, (1, 2, 9, 9), bc.Plan({"1": 2})).parameters == held - saved


def test_a_compiled_network_is_counted_and_tuned() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3))
    compiled = torch.compile(bc.apply_plan(model, bc.Plan({"1": 2})), backend="eager")
    x = torch.randn(1, 2, 9, 9)
    compiled(x)
    assert isinstance(compiled, nn.Module)
    costs = bc.summary(compiled, x.shape)
    assert costs["_orig_mod.1"].n_basis == 2
    assert [row.name for row in bc.tune(compiled, x, repeats=1)] == ["_orig_mod.1"]


def test_a_layer_called_by_keyword_is_counted() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(input=x)

    assert bc.summary(Named(), (1, 2, 6, 6))["conv"].macs == 16 * 4 * 18


@pytest.mark.parametrize(
    ("settings", "macs"),
    # 2 images of 5×4 are 40 positions. Of 8 kernels of 3·3·3 weights 2 are basis filters.
    [
        # The basis filters' gradient, but not the input's; then both of the 1×1's.
        ({}, 40 * 2 * 27 + 2 * 40 * 8 * 2),
        ({"form": "full"}, 40 * 2 * 27 + 2 * 40 * 8 * 2),
        # Both of each 1×1's, from 2 to 1 and from 1 to 8.
        ({"form": "full", "coef_rank": 1}, 40 * 2 * 27 + 2 * 40 * (2 * 1 + 1 * 8)),
        # And both factors' of the 6 other outputs' coefficients, 6×1 by 1×2.
        ({"coef_rank": 1}, 40 * 2 * 27 + 2 * 40 * 8 * 2 + 2 * 6 * 1 * 2),
        # The kernel's gradient, then both factors' of it, 8×2 by 2×27.
        ({"mode": "rebuilt"}, 40 * 8 * 27 + 2 * 8 * 2 * 27),
    ],
    ids=str,
)
def test_a_stem_in_basis_form_spares_its_inputs_gradient_alone(
    settings: dict[str, object], macs: int
) -> None:
    stem = nn.Conv2d(3, 8, 3, padding=1)
    model = nn.Sequential(bc.BasisConv2d.from_conv2d(stem, 2, **settings))  # type: ignore[arg-type]
    x = torch.randn(2, 3, 5, 4)
    assert bc.summary(model, x.shape).macs_backward == macs == counted(model, x)[1]


def test_a_summary_says_what_was_saved() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False))
    size, plan = (1, 3, 6, 6), bc.Plan({"1": 4})
    dense = bc.summary(model, size)
    assert dense.dense is None and "dense:" not in str(dense)
    for costs in (bc.summary(model, size, plan), bc.summary(bc.apply_plan(model, plan), size)):
        assert costs.dense == dense
        lines = str(costs).splitlines()
        # 4 positions of 8×72 multiplications, and in basis form of 4×72 + 8×4.
        assert [line.split()[-1] for line in lines if line.startswith(("0 ", "1 "))] == [
            "100%", f"{(4 * 72 + 32) / (8 * 72):.0%}"
        ]  # fmt: skip
        assert "of dense" in lines[1]
        ratios = dense.parameters / costs.parameters, dense.macs / costs.macs
        assert lines[-1] == (
            f"dense: {dense.parameters:,} parameters ({ratios[0]:.2f}×), "
            f"{dense.macs:,} MACs ({ratios[1]:.2f}×)"
        )
        page = costs._repr_html_()
        assert lines[-1] in page and page.count("<th>") == 8 and page.count("<tr") == 4


def test_tab_completion_offers_what_is_public() -> None:
    assert set(dir(bc)) == {*bc.__all__, "__version__"}
    assert all(hasattr(bc, name) for name in dir(bc))
