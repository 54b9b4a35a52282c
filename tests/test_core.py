"""Signals are survived after networks have come and gone (see `hawkeye.runtime.core`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tiny_ir

_PROGRAM = """
import gc, os, signal, sys
from pathlib import Path
from hawkeye.artifact import Artifact
from hawkeye.runtime import load_runtime
first, second = (load_runtime(Artifact.load(Path(path)), "openvino-f32", threads=1) for path in sys.argv[1:])
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
print("alive")
"""


def test_a_signal_is_handled_after_networks_have_gone(tmp_path: Path) -> None:
    folders = [str(tiny_ir.artifact(tmp_path / name).root) for name in "ab"]
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *folders], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["handled", "alive"]), done.stderr[-2000:]
