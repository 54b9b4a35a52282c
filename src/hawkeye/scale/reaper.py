"""Ends what Ray left behind when the process that started it is gone, however that ended; a process of its own.

    python -m hawkeye.scale.reaper FOLDER        ends when its standard input does

The kernel ends Ray's main processes with the one that started them, but its agents go on for another minute, and its
folder stays. What was started for a session is known by the files that it has open there: it renames itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress

import psutil

_GRACE_S = 1.0  # for those that are ending by themselves


def reap(folder: str, starter: int) -> None:
    """End every process of a session but the one that started it, and remove its folder."""
    left = _of(folder, starter)
    psutil.wait_procs(left, timeout=_GRACE_S)
    for _ in range(50):  # who is ended last may have started another
        left = _of(folder, starter)
        if not left:
            break
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_GRACE_S)
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


def _of(folder: str, starter: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # gone meanwhile, or somebody else's
            if process.pid in (os.getpid(), starter) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if any(file.path.startswith(f"{folder}/") for file in process.open_files()):
                found.append(process)
    return found


if __name__ == "__main__":
    for kind in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C is for the one that started it; what it leaves is seen to
        signal.signal(kind, signal.SIG_IGN)
    started_by = os.getppid()
    sys.stdin.buffer.read()
    reap(sys.argv[1], started_by)
