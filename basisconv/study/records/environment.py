"""What this machine is and can do."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]

_STATUS = Path("/proc/self/status")  # on Linux

# Of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


class UnsuitableMachine(RuntimeError):
    """This machine lacks what a Run needs. The Run has not failed, and gets no record."""


def device() -> torch.device:
    """Where training runs: CUDA when there is any, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache
def environment() -> dict[str, str]:
    """Device, software and the state of the source, for records.

    `device_kind` decides whether two results must agree; see `repeats_exactly`.
    """
    return {
        "device_kind": device_kind(),
        "device": _device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "platform": platform.platform(terse=True),
        # A package sent without its checkout has its commit in the environment.
        "commit": _git("rev-parse", "HEAD") or os.environ.get("BASISCONV_COMMIT", "unknown"),
        "tree": {"": "clean", None: "unknown"}.get(_git("status", "--porcelain"), "modified"),
    }


@lru_cache
def device_kind() -> str:
    """The GPU's name, or the CPU's architecture and the instructions that torch computes with."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def repeats_exactly(kind: str) -> bool:
    """Whether a Run has one result, to the last bit, on all devices of such a kind.

    CPUs of one kind compute alike. On GPUs cuDNN picks kernels by their speed, and some add in
    the order in which threads arrive. A training that moved from one kind of device to another
    ("… then …") depends on when it did.
    """
    return kind.startswith("cpu ") and " then " not in kind


def still_computes() -> bool:
    """Whether this process can still compute: some errors end a GPU's context."""
    if device().type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def has_native_bfloat16() -> bool:
    """Whether this device has instructions for bfloat16, rather than emulating it."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def configure_cpu(threads: int) -> None:
    """Set the number of CPU threads, and keep freed memory for the next step.

    glibc returns a large tensor's pages to the system as soon as it is freed, and the next step
    has to get them again: 5 to 10 % of a training step on a CPU. So nothing is returned; other
    allocators are left alone.
    """
    torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_bytes() -> int:
    """Peak memory since the start or `reset_peak_memory`: torch's on a GPU, else the process's."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        # Preferred to getrusage, whose peak cannot be reset; some sandboxes lack this line.
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> int:
    """Start a new peak, where the system can; returns the memory in use, or the old peak."""
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif _STATUS.exists():
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_bytes()


def _device_name() -> str:
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
