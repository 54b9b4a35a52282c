"""The tier of a machine with a GPU: what is trained there is what the CPU trains. Left out everywhere else."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "lightning_fabric", "torch_pruning"):
    pytest.importorskip(_package)

import tiny_detector  # noqa: E402
from hawkeye.compress import yolo  # noqa: E402
from hawkeye.compress.original import import_original  # noqa: E402
from hawkeye.compress.prune import prune  # noqa: E402
from hawkeye.compress.recover import recover  # noqa: E402
from hawkeye.config import PruneConfig, RecoverConfig  # noqa: E402
from hawkeye.scenes import draw_dataset  # noqa: E402

pytestmark = [pytest.mark.compress, pytest.mark.cuda]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """data.yaml, the original and the pruned one."""
    folder = tmp_path_factory.mktemp("cuda")
    scenes = draw_dataset(folder / "scenes", train=24, val=4, imgsz=96, seed=1)
    original = import_original(tiny_detector.checkpoint(scenes, folder), imgsz=64, out=folder / "original")
    config = PruneConfig(data=scenes, method="l1", flops=0.6, params=0.6, separable=False)
    pruned = prune(original, config, out=folder / "pruned")
    return scenes, original, pruned


@pytest.mark.parametrize("trunk", ["kept", "trained"])
def test_recovery_on_a_gpu_does_what_it_does_on_a_cpu(networks, tmp_path, trunk):
    scenes, original, pruned = networks
    config = RecoverConfig(data=scenes, steps=40, batch=4, lr=1e-2, labels=0.001, ema=0.9, trunk=trunk, checks=4,
                           holdout=0.2)  # fmt: skip
    results = {device: recover(pruned, config.model_copy(update={"device": device}), teacher=original,
                               out=tmp_path / device) for device in ("cpu", "cuda")}  # fmt: skip
    curves = {device: [point["held_out"] for point in result.details["curve"]] for device, result in results.items()}
    assert curves["cuda"][0] == pytest.approx(curves["cpu"][0], rel=0.02)
    # At this rate bfloat16's rounding alone had taken the two 7.7 % apart half way.
    assert curves["cuda"] == pytest.approx(curves["cpu"], rel=0.2)
    assert curves["cuda"][-1] < 0.9 * curves["cuda"][0]
    weights = yolo.load_checkpoint(results["cuda"].path("pytorch")).model.state_dict()
    assert {value.device.type for value in weights.values()} == {"cpu"}


def test_a_run_on_a_gpu_goes_on_after_a_kill(networks, tmp_path):
    scenes, original, pruned = networks

    class Killed(Exception):
        pass

    def kill(_network, point):
        if point["step"] >= 10:
            raise Killed

    config = RecoverConfig(data=scenes, steps=20, batch=4, checks=4, holdout=0.2, device="cuda", save_every=0.0)
    with pytest.raises(Killed):
        recover(pruned, config, teacher=original, out=tmp_path / "out", look=kill)
    steps = []
    result = recover(pruned, config, teacher=original, out=tmp_path / "out",
                     look=lambda _network, point: steps.append(point["step"]))  # fmt: skip
    assert min(steps) >= 10
    assert result.details["curve"][-1]["step"] == 20
