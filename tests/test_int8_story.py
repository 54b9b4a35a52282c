"""The way to INT8: calibration, layers in float, training; the better is kept and the story is told."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
for _package in ("ultralytics", "lightning_fabric", "onnx", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(_package)

from hawkeye import keys  # noqa: E402
from hawkeye.artifact import Artifact  # noqa: E402
from hawkeye.compress import calibrate, quantizers, sensitivity, training  # noqa: E402
from hawkeye.compress import quantize as module  # noqa: E402
from hawkeye.compress.quantize import quantize  # noqa: E402
from hawkeye.config import QuantizeConfig  # noqa: E402
from hawkeye.data import load_dataset  # noqa: E402
from hawkeye.errors import DataError  # noqa: E402
from hawkeye.report_text import quantization_step  # noqa: E402
from tiny_detector import settings  # noqa: E402

pytestmark = pytest.mark.compress


@pytest.fixture(scope="module")
def after_qat(tiny_exported, tiny_scenes, tmp_path_factory):
    return quantize(tiny_exported, settings(tiny_scenes, steps=8), out=tmp_path_factory.mktemp("trained"))


def test_a_tiny_network_through_calibration_training_and_export(after_qat, tiny_exported):
    told = after_qat.details
    assert [step["step"] for step in told["story"]] == ["float", "ptq", "qat", "kept"]
    assert "latency_ratio" not in told["story"][1]
    assert f"{told['story'][2]['latency_ratio']:.2f} times calibration's" in quantization_step(told["story"][2])
    assert told["int8_convolutions"] == told["convolutions"] - 1
    pairs = [told["agreement"][pair]["mean_score"] for pair in ("openvino - onnx", "torch - openvino", "torch - onnx")]
    assert max(pairs) < calibrate.AGREEMENT
    assert all(pair["mean_box_px"] < 64 * calibrate.BOX_AGREEMENT for pair in told["agreement"].values())
    assert not any("not shown that they agree" in line for line in told["warnings"])
    assert after_qat.name == "original+int8"
    assert after_qat.path("openvino").is_file()
    assert after_qat.path("onnx").is_file()
    assert not (after_qat.root / "steps").exists()
    assert not list(after_qat.root.glob("training/*"))


def test_training_that_gives_up_tells_a_true_story(tiny_exported, tiny_scenes, tmp_path, monkeypatch):
    """What was tried in float on the way is not in what is kept."""
    calls, update = [], training._Loop.update
    monkeypatch.setattr(training._Loop, "update", lambda *args: (calls.append(update(*args)), math.nan)[1])
    made = quantize(tiny_exported, settings(tiny_scenes, steps=20), out=tmp_path / "out")
    step = made.details["story"][2]
    assert (step["step"], step["float_layers"], len(calls)) == ("qat", [], 4)
    assert "in float" not in step["why"]
    assert "broke down a fourth time" in step["why"]
    assert made.details["kept"] == "ptq"


def test_auto_goes_on_while_the_gate_is_missed(tiny_exported, tiny_scenes, tmp_path):
    """A gate that cannot be reached: calibration, layers in float while the latency allows, training, the best kept."""
    config = settings(tiny_scenes, mode="auto", steps=2, checks=1, max_drop=-100.0, max_slowdown=1000.0)
    made = quantize(tiny_exported, config, out=tmp_path / "free")
    story = made.details["story"]
    assert [step["step"] for step in story[:2]] == ["float", "ptq"]
    assert [step["step"] for step in story[-2:]] == ["qat", "kept"]
    tried = [step for step in story if step["step"] == "float layers"]
    assert tried
    assert all(step["float_layers"] for step in tried)
    assert {"fidelity", "latency_ms", "distance", "judged_drop"} <= set(story[1])
    best = max((s for s in story if "distance" in s), key=lambda s: (s["fidelity"], -s["distance"]))
    assert made.details["kept"] == best["step"]
    assert story[0]["fidelity"] == pytest.approx(1.0, abs=0.01)


def test_a_layer_that_costs_too_much_time_in_float_stays_int8(tiny_exported, tiny_scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(sensitivity, "latencies_ms", lambda files, spec: [2.4 if "float-" in str(path) else 2.0
                                                                          for path in files])  # fmt: skip
    monkeypatch.setattr("hawkeye.compress.quantize._TRIES", 2)
    config = settings(tiny_scenes, mode="auto", steps=1, checks=1, max_drop=-100.0, max_slowdown=1.1)
    made = quantize(tiny_exported, config, out=tmp_path / "out")
    first, second = (step for step in made.details["story"] if step["step"] == "float layers")
    for step in (first, second):
        assert "stays INT8: in float the network takes 1.20 times as long, more than 1.1" in step["why"]
        assert step["latency_ms"] == 2.4
        assert "float_layers" not in step
    assert first["why"] != second["why"]
    assert made.details["float_layers"] == []
    assert made.details["kept"] in ("ptq", "qat")
    why = made.details["story"][-1]["why"]
    assert (
        "are lost on training pictures, more than -100" in why or "no more than -100 points could not be shown" in why
    )


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ("qat", "the best on the held-out pictures; that it loses no more than 0.5 points could not be shown"),
        ("ptq", "ptq was as good as or better than what came after it; 1.25 points are lost on training pictures, more "
                "than 0.5"),
    ],
)  # fmt: skip
def test_a_gate_that_is_not_shown_to_be_met_is_told(tiny_exported, tiny_scenes, tmp_path, kept, told):
    config = QuantizeConfig(mode="auto", data=tiny_scenes)
    key = keys.quantize(tiny_exported.sha256, config)
    story = module._Story(tiny_exported, config, *key[:2], tmp_path, key[2])
    made = tiny_exported.model_copy(update={"details": {}})
    made._root = tiny_exported.root
    ptq = module.Step("ptq", made, None, {"fidelity": 0.9, "distance": 0.1, "judged_drop": 1.25})
    qat = module.Step("qat", made, None, {"fidelity": 0.95 if kept == "qat" else 0.8, "distance": 0.05})
    result = story._finish([ptq, ptq, qat], "the best on the held-out pictures", gate=True)
    assert result.details["kept"] == kept
    assert told in result.details["story"][-1]["why"]


def test_too_few_pictures_beside_those_set_aside_are_an_error(tiny_exported, tiny_scenes, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in load_dataset(tiny_scenes).split("train")[:10]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="got: 10, of which 1 set aside to judge the result on"):
        quantize(tiny_exported, QuantizeConfig(images=few), out=tmp_path / "out")
    assert len(keys.quantize("", QuantizeConfig(images=few, mode="ptq"))[0]) == 10


def test_auto_without_labels_on_a_cpu_without_vnni(tiny_exported, tiny_scenes, tmp_path, monkeypatch):
    """Sums of products cannot overflow there: no weight is larger than 64, with one scale a layer as well."""
    monkeypatch.setattr(calibrate.environment, "instruction_sets", lambda: ("avx2", "fma"))
    config = QuantizeConfig(images=tiny_scenes.parent / "images" / "train", per_channel=False)
    made = quantize(tiny_exported, config, out=tmp_path / "out")
    assert made.details["kept"] == "ptq"
    assert "without labels" in made.details["story"][-1]["why"]
    found = quantizers.load(made.path("openvino"), tiny_exported.path("onnx"))
    assert {conv.limit for conv in found.convolutions.values()} == {64}
    assert max(abs(conv.integers().astype(int)).max() for conv in found.convolutions.values()) == 64
    assert {conv.scale.size for conv in found.convolutions.values()} == {1}
    assert made.details["weight_bits"] == 7
    assert any("no VNNI" in line and "7 bits" in line for line in made.details["warnings"])


_TOGETHER = """
import json, math, os, sys
from pathlib import Path
from hawkeye.artifact import Artifact
from hawkeye.compress import qat, training
from hawkeye.compress.quantize import quantize
from hawkeye.config import QuantizeConfig

source, out = Artifact.load(Path(sys.argv[1])), Path(sys.argv[2])
told, seen, train, update = [], [], qat.train, training._Loop.update

def watched(*args, **more):
    result = train(*args, **more)
    told.append(result[1])
    return result

def broken(loop, objective, batches):
    batch = next(batches)
    seen.append(len(batch["img"]))
    loss = update(loop, objective, iter([batch]))
    return math.nan if loop.step == 3 else loss  # as all would see it, since losses are averaged over the processes

qat.train, training._Loop.update = watched, broken
config = QuantizeConfig.model_validate_json(sys.argv[3])
easy = quantize(source, config.with_(mode="auto", max_drop=100.0), out=out / "easy")
hard = quantize(source, config, out=out / "hard")
(out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps({
    "easy": easy.sha256, "hard": hard.sha256, "pictures": seen, "told": told}))
"""


@pytest.mark.slow
def test_two_processes_make_one_result(tiny_exported, tiny_scenes, tmp_path):
    """Calibration that is enough; and training with a breakdown, which both must mend in the same way."""
    config = settings(tiny_scenes, steps=8, per_channel=False, seed=3)
    (tmp_path / "program.py").write_text(_TOGETHER)
    arguments = [str(tmp_path / "program.py"), str(tiny_exported.root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = {}
    for name, program in (("alone", [sys.executable]), ("together", torchrun)):
        out = tmp_path / name
        done = subprocess.run([*program, *arguments, str(out), config.model_dump_json()], env=environment,
                              capture_output=True, text=True, timeout=600)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found[name] = [json.loads(path.read_text()) for path in sorted(out.glob("rank*.json"))]
    (alone,), (first, second) = found["alone"], found["together"]
    assert (first["easy"], first["hard"]) == (second["easy"], second["hard"])
    assert Artifact.load(tmp_path / "together" / "easy").details["kept"] == "ptq"
    assert sum(first["pictures"]) == sum(second["pictures"]) == sum(alone["pictures"]) // 2
    ours, theirs = first["told"][0], second["told"][0]
    assert [item["node"] for item in ours["excluded"]] == [item["node"] for item in theirs["excluded"]]
    assert [p["held_out"] for p in ours["curve"]] == [p["held_out"] for p in theirs["curve"]]
    assert ours["distance_before"] == pytest.approx(alone["told"][0]["distance_before"], rel=1e-4)
    assert ours["distance_after"] < ours["distance_before"]
    made = Artifact.load(tmp_path / "together" / "hard")
    assert [step["step"] for step in made.details["story"]] == ["float", "ptq", "qat", "kept"]
    assert not (made.root / "steps").exists()
