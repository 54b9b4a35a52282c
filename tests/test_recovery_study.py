"""benchmarks/recovery.py: several recipes from one pruned network, and the networks along their curves."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
for _package in ("ultralytics", "lightning_fabric", "torch_pruning"):
    pytest.importorskip(_package)

import benchmark_programs  # noqa: E402
from hawkeye.compress import yolo  # noqa: E402
from hawkeye.errors import ConfigError  # noqa: E402
from test_recover import original, pruned, same, scenes  # noqa: E402, F401  # fixtures

pytestmark = pytest.mark.compress


@pytest.fixture(scope="module")
def program():
    return benchmark_programs.load("recovery")


def test_recipes_are_trained_evaluated_and_not_trained_again(program, pruned, original, scenes, tmp_path, capsys):  # noqa: F811
    words = [str(pruned.root), "--original", str(original.root), "--data", str(scenes), "--out", str(tmp_path),
             "--steps", "4", "--checks", "2", "--evaluate", "--try", "batch=2", "labels=0", "--try"]  # fmt: skip
    program.main(words)
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[:3] for line in lines[2:4]] == [
        ["| batch=2 labels=0", "4", "8"],
        ["| defaults", "4", "16"],
    ]
    rows = benchmark_programs.told(text)["rows"]
    for row in rows:
        assert [point["step"] for point in row["curve"]] == [0, 2, 4]
        assert all(0 <= point["map50"] <= 1 for point in row["curve"])
        assert row["after"] == min(point["held_out"] for point in row["curve"])
        best = min(row["curve"], key=lambda point: point["held_out"])
        folder = tmp_path / row["recipe"]
        weights = [yolo.load_checkpoint(folder / place).model.state_dict()
                   for place in ("recovered/recovered.pt", f"points/{best['step']}/network.pt")]  # fmt: skip
        assert same(*weights)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    program.main(words)
    assert benchmark_programs.told(capsys.readouterr().out)["rows"] == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")} == stamps


def test_the_baseline_learns_from_labels_alone(program, pruned, original, scenes, tmp_path, capsys):  # noqa: F811
    words = [str(pruned.root), "--original", str(original.root), "--out", str(tmp_path), "--fine-tune", "1e-4"]
    with pytest.raises(ConfigError, match="labels"):
        program.main(words)
    words += ["--data", str(scenes), "--budget", "2s", "--evaluate"]
    program.main(words)
    text = capsys.readouterr().out
    (row,) = benchmark_programs.told(text)["rows"]
    assert row["curve"][0]["step"] == 0 and row["curve"][-1]["seconds"] >= 2
    assert all(0 <= point["map50"] <= 1 for point in row["curve"])
    assert len([line for line in text.splitlines() if line.startswith("| labels alone")]) == 1 + len(row["curve"])
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    program.main(words)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")} == stamps


@pytest.mark.parametrize("wrong", ["batch", "no_such_key=1", "batch=0"])
def test_a_wrong_recipe_is_told_before_anything_is_trained(program, pruned, original, scenes, tmp_path, wrong):  # noqa: F811
    words = [str(pruned.root), "--original", str(original.root), "--data", str(scenes), "--out", str(tmp_path)]
    with pytest.raises(ConfigError):
        program.main([*words, "--steps", "1", "--try", "batch=4", "--try", wrong])
    assert not list(tmp_path.iterdir())
