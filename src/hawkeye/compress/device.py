"""Where networks are trained: on the CPU, or on a GPU, of which each process that torchrun starts has one.

And how processes that train, and those that read pictures for them, share memory and cores.
"""

from __future__ import annotations

import ctypes
import os

import torch

from hawkeye.errors import ConfigError

_MOST_LOADERS = 8


def claim(device: str) -> None:
    """Make "cuda" mean this process's own GPU from here on.

    To be called before anything is put there: Fabric sets the device too, but only once training starts, when the
    teacher is already on a GPU.

    Raises:
        ConfigError: there is no GPU.
    """
    if device != "cuda":
        return
    if not torch.cuda.is_available():
        raise ConfigError("there is no GPU to train on", got=f"--device cuda, torch {torch.__version__}",
                          expected="a CUDA GPU with its driver, and a build of torch for it",
                          mend="leave --device out, or choose cpu")  # fmt: skip
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def loaders(device: str) -> int:
    """Processes that prepare pictures. On a CPU they take cores from training, so one; a GPU waits for them."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 1 if device == "cpu" else max(1, min(_MOST_LOADERS, (os.cpu_count() or 1) // local - 1))


def give_way(_worker: int) -> None:
    """Pictures are prepared while training leaves a core alone, some steps ahead.

    A thread that has to share its core keeps all the others of its step waiting.
    """
    os.nice(19)


def keep_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the kernel.

    Every map of a training step is larger than the size from which glibc asks the kernel for fresh pages, which are
    faulted in and zeroed each time: without that a step on two cores takes a sixth less time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent outside glibc
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: from the heap, always
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap
