"""What this machine is, in words that a record can keep."""

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
    """This machine lacks what a Run needs: no fault of the Run, so there is no record of it."""


def device() -> torch.device:
    """Where training runs: CUDA when there is any, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache
def environment() -> dict[str, str]:
    """Device, software and the state of the source: told, and but for one not compared.

    `device_kind` names the kind of hardware, by which two results must agree or need not; see
    `repeats_exactly`.
    """
    return {
        "device_kind": device_kind(),
        "device": _device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "platform": platform.platform(terse=True),
        # Where the package was sent without its checkout, its sender told.
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

    CPUs of one kind compute alike. cuDNN picks kernels by their speed on the day, and some of
    them add in the order in which threads arrive; and a training that went from one kind of
    device to another ("… then …") depends on when it did.
    """
    return kind.startswith("cpu ") and " then " not in kind


def still_computes() -> bool:
    """Whether this process can still compute: some errors of a GPU are the end of its context."""
    if device().type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def has_native_bfloat16() -> bool:
    """Whether this device multiplies bfloat16 itself rather than emulating it."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def configure_cpu(threads: int) -> None:
    """Compute with so many CPU threads, in memory that a step keeps for the next.

    glibc gives a large tensor's pages back to the system as soon as it is freed, and the next
    step pays for them anew: 5 to 10 % of a training step on a CPU, most of it in the cheap
    layers. So nothing is given back; other allocators are left alone.
    """
    torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_bytes() -> int:
    """The most memory held so far, or since `reset_peak_memory`: torch's on a GPU, else ours."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        # Before getrusage's, whose peak is for the life of the process; some sandboxes lack it.
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> int:
    """Count the peak anew from here, where the system can; what is held now, or the old peak."""
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
