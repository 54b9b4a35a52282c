"""The one OpenVINO core of a process. Nothing else makes one.

OpenVINO's CPU plug-in (2026.4.1) gives the thread that loads it a stack for signals, and unmaps it when the last of its
core and networks is gone. Where two cores have lived side by side, the second then brings back the stack of the first,
which is no longer there, and the next signal that Python handles (Ctrl-C, the end of a child process) kills the process
with SIGSEGV before a handler can run. A core that stays until the end leaves its stack in place.
"""

from __future__ import annotations

import threading

import openvino as ov

from hawkeye.environment import affinity

_lock = threading.Lock()
_made: list[ov.Core] = []


def core() -> ov.Core:
    """The core, made when it is first asked for; with its CPU plug-in, so that the stack for signals is the first."""
    with _lock:
        if not _made:
            made = ov.Core()
            made.set_property({"ENABLE_MMAP": False})  # a mapped file that is written over changes under our hands
            made.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plug-in
            _made.append(made)
        return _made[0]


def on_threads(threads: int) -> dict[str, int | bool]:
    """Options that compile a network for so many threads.

    Threads that are tied to cores begin with the first one, in every process: several that take a part of the cores
    each would share it. So they are tied only where a network takes all cores.
    """
    return {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": threads >= affinity()}
