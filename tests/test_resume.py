"""A whole run, killed at ten random moments and started again each time, ends as an uninterrupted one."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "onnx", "onnxruntime", "openvino", "nncf", "lightning_fabric", "torch_pruning"):
    pytest.importorskip(_package)

import tiny_detector  # noqa: E402
from hawkeye.artifact import Artifact, file_sha256  # noqa: E402
from hawkeye.compress import yolo  # noqa: E402
from hawkeye.scenes import draw_dataset  # noqa: E402

pytestmark = [pytest.mark.compress, pytest.mark.slow]
RECIPE = """
imgsz = 64
[prune]
samples = 8
rounds = 2
[recover]
steps = 30
batch = 4
checks = 4
save_every = 0
[quantize]
samples = 10
mode = "ptq"
"""
# Ten kills, in the stages' order so that the run moves on; at which moment of the stage is drawn by chance.
KILLS = ("prune", "prune", "recover", "recover", "recover", "recover", "export", "export", "quantize", "quantize")
FOLDERS = ("0-original", "1-prune", "2-recover", "3-export/original", "3-export/pruned", "4-quantize/original",
           "4-quantize/pruned")  # fmt: skip
STARTED = re.compile(r"^\[\d/\d\] (\w+)$", re.MULTILINE)


class Run:
    """`hawkeye optimize` in a process of its own; tells when each stage began, by its own words."""

    def __init__(self, root: Path, out: Path, log: Path) -> None:
        options = ["--data", root / "scenes/data.yaml", "--config", root / "recipe.toml", "--until", "quantize"]
        command = [sys.executable, "-m", "hawkeye.cli", "optimize", root / "tiny.pt", "--out", out, *options]
        self.log, self.began = log, dict[str, float]()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env=environment)

    def watch(self, stage: str | None = None, delay: float = 0.0) -> int | None:
        """Wait until `delay` seconds into a stage, or the end; returns the exit status, None while it runs."""
        deadline = time.monotonic() + 120
        while self.process.poll() is None:
            now = time.monotonic()
            for name in STARTED.findall(self.log.read_text()):
                self.began.setdefault(name, now)
            if stage in self.began and now - self.began[stage] >= delay:
                return None
            if now > deadline:
                self.process.kill()
                self.process.wait()
                pytest.fail(f"hangs: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)
        self.began["end"] = time.monotonic()
        return self.process.returncode


@pytest.fixture
def root(tmp_path):
    tiny_detector.fresh(tmp_path / "tiny.pt")
    draw_dataset(tmp_path / "scenes", train=12, val=2, imgsz=96, seed=2)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def contents(out: Path) -> dict[str, object]:
    """What must not depend on kills; the other bytes of the files hold dates."""
    found: dict[str, object] = {"widths": Artifact.load(out / "1-prune").details["widths"]}
    for folder in FOLDERS:
        artifact = Artifact.load(out / folder)
        assert artifact.intact()
        if "pytorch" in artifact.files:
            state = yolo.load_checkpoint(artifact.path("pytorch")).model.state_dict()
            found[f"{folder} weights"] = {name: value.numpy().tobytes() for name, value in state.items()}
        if "openvino" in artifact.files:
            found[f"{folder} openvino"] = file_sha256(artifact.path("openvino").with_suffix(".bin"))
        if "onnx" in artifact.files:
            found[f"{folder} onnx"] = onnx_graph(artifact.path("onnx"))
    return found


def onnx_graph(path: Path) -> bytes:
    import onnx

    return onnx.load(path).graph.SerializeToString(deterministic=True)


def test_a_run_killed_at_ten_random_moments_ends_as_an_uninterrupted_one(root):
    whole = Run(root, root / "whole", root / "whole.log")
    assert whole.watch() == 0, (root / "whole.log").read_text()
    stages = [*whole.began]
    lasted = {a: whole.began[b] - whole.began[a] for a, b in zip(stages, stages[1:], strict=False)}
    chance, killed_in, went_on = random.Random(0), [], 0
    for number, stage in enumerate(KILLS):
        attempt = Run(root, root / "cut", root / f"cut-{number}.log")
        # Not late in the stage: what an earlier attempt finished is not done again, and the machine may be faster now.
        # Recovery goes on where it was, so it is cut later, when training has begun.
        low, high = (0.4, 0.9) if stage == "recover" else (0.0, 0.45)
        delay = chance.uniform(low, high) * min(lasted[stage], 5.0)
        assert attempt.watch(stage, delay) is None, (root / f"cut-{number}.log").read_text()
        attempt.process.kill()
        attempt.process.wait()
        text = attempt.log.read_text()
        killed_in.append(STARTED.findall(text)[-1])
        went_on += "going on at step" in text
    last = Run(root, root / "cut", root / "last.log")
    assert last.watch() == 0, (root / "last.log").read_text()
    assert {"prune", "recover", "quantize"} <= set(killed_in)
    assert went_on >= 1  # recovery was cut in the middle, and did not begin anew
    expected, got = contents(root / "whole"), contents(root / "cut")
    assert got.keys() == expected.keys()
    assert [name for name in expected if got[name] != expected[name]] == []
    assert not list((root / "cut").rglob("training/*.pt"))
