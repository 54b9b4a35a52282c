"""Several processes that train as one (torchrun): what they must tell each other outside of training."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import torch

_T = TypeVar("_T")
_PATIENCE = timedelta(hours=12)  # the others wait while the first calibrates and tries layers in float


def several() -> bool:
    """Whether torchrun started more than this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def meet() -> None:
    """Let the processes know of each other before training does; Fabric takes over the group that it finds."""
    if several() and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(timeout=_PATIENCE)


def from_first(value: _T) -> _T:
    """What the first process gave; the value itself where there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]
