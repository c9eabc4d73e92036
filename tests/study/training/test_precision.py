"""Precisions that a device computes in, and the refusal of those that it only emulates."""

from __future__ import annotations

import pytest
import torch

from basisconv.study.records.environment import has_native_bfloat16
from basisconv.study.training import precision


def test_float32_is_native_everywhere_and_tf32_on_cuda_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert precision.is_native("float32")
    monkeypatch.setattr(precision, "device", lambda: torch.device("cpu"))
    assert not precision.is_native("tf32")
    monkeypatch.setattr(precision, "device", lambda: torch.device("cuda"))
    for capability, native in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert precision.is_native("tf32") == native


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_bfloat16_is_native_where_the_cpu_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_native_bfloat16() == native
    assert precision.is_native("bfloat16") == native


def test_the_refusal_names_what_was_asked_and_what_to_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="'bfloat16'.*emulates.*precision='float32'"):
        precision.check_native("bfloat16")
    precision.check_native("float32")


def test_autocast_is_bfloat16_when_asked_and_float32_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "device", lambda: torch.device("cpu"))
    a = torch.ones(2, 2)
    with precision.autocast("bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    for name in ("float32", "tf32"):
        with precision.autocast(name):  # type: ignore[arg-type]
            assert (a @ a).dtype == torch.float32


def test_float32_convolutions_are_ieee_on_cuda_and_the_setting_ends_with_the_training() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    for name, tf32 in (("float32", False), ("bfloat16", False), ("tf32", True)):
        with precision.convolution_precision(name):  # type: ignore[arg-type]
            assert torch.backends.cudnn.allow_tf32 == tf32
            assert torch.backends.cudnn.benchmark
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before
