"""Where a figure was measured: processor, instruction set, memory, versions."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

# Flags that decide how fast INT8 and bfloat16 run, in the kernel's spelling; the last line is ARM's.
_INSTRUCTION_SETS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "sve", "bf16",
)  # fmt: skip
# Those that multiply 8-bit numbers and add up the products in 32 bits in one step: INT8 pays, and cannot overflow.
INT8_SETS = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
_CGROUPS = Path("/sys/fs/cgroup")
_PACKAGES = (
    "hawkeye", "numpy", "opencv-python-headless", "openvino", "faster-coco-eval",
    "torch", "torchvision", "ultralytics-opencv-headless", "torch-pruning", "nncf", "onnx", "onnxruntime",
)  # fmt: skip


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """The vector instruction sets of this CPU that matter to inference; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "").split()
    return tuple(name for name in _INSTRUCTION_SETS if name in flags)


@functools.cache
def cpu_model() -> str:
    """Name of the processor as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    line = next((line for line in text.splitlines() if line.startswith("model name")), "")
    return line.partition(":")[2].strip() or platform.processor() or "unknown"


def cpu_count() -> int:
    """Cores that this process may use: affinity, containers' cpusets, and a container's share of time, rounded up."""
    quota = cpu_quota()
    return affinity() if quota is None else max(1, min(affinity(), math.ceil(quota)))


def affinity() -> int:
    """Cores that threads of this process may run on, however little of their time it may spend."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_quota(root: Path = _CGROUPS) -> float | None:
    """How many cores' time this container may spend; None where nothing limits it."""
    spent = _cgroup_value(root, "cpu.max").split()  # version 2: quota and period
    if len(spent) != 2:
        spent = [_cgroup_value(root, f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
    try:
        quota, period = float(spent[0]), float(spent[1])
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


@functools.cache
def memory_limit_bytes(root: Path = _CGROUPS) -> int | None:
    """How much memory this container may take; None where nothing limits it."""
    text = _cgroup_value(root, "memory.max") or _cgroup_value(root, "memory/memory.limit_in_bytes")
    # Version 1 writes the largest page-aligned number for "no limit".
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def _cgroup_value(root: Path, name: str) -> str:
    # Inside a container its own group is the root of what can be seen.
    try:
        return (root / name).read_text().strip()
    except OSError:
        return ""


def cache_dir(purpose: str) -> Path | None:
    """A folder of this user for what can be made again, or None where there is to be none.

    `HAWKEYE_CACHE` names another place than `$XDG_CACHE_HOME/hawkeye` (`~/.cache/hawkeye`); `off` turns caching off,
    and so does a place that cannot be written. What is kept holds for one processor: homes are shared by machines.
    """
    named = os.environ.get("HAWKEYE_CACHE", "")
    if named.lower() in ("off", "0", "no"):
        return None
    try:
        base = Path(named).expanduser() if named else \
            Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hawkeye"  # fmt: skip
        machine = hashlib.sha256(f"{cpu_model()} {instruction_sets()}".encode()).hexdigest()[:8]
        place = base / purpose / machine
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    return place if os.access(place, os.W_OK) else None


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the installed packages that a figure depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Everything that a reader needs to judge a figure, JSON-ready."""
    import psutil

    return {
        "cpu": cpu_model(),
        "instruction_sets": list(instruction_sets()),
        "cores": cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": dict(versions()),
    }
