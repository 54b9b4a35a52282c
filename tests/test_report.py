"""The report over a synthetic run folder whose every figure is known."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hawkeye.artifact import Artifact, ModelSpec, write_json
from hawkeye.config import GateConfig, PruneConfig, Recipe
from hawkeye.errors import MissingExtraError, ModelError, RunDirError
from hawkeye.records import AccuracyRecord, ClassAccuracy, LatencyRecord, LatencyRow, Percentiles
from hawkeye.report import ROWS, collect, report
from hawkeye.report_text import markdown, one_line, recovery_notes, show_drop

pytest.importorskip("matplotlib", reason="the report needs the [report] extra")

EVIL = "<script>alert(1)</script>"
NAMES = ("person", EVIL, "a|b & $x^2$", "never seen")
PARAMS = {"original": 3_151_904, "pruned": 2_100_000}
MACS = {"original": 4_371_916_800, "pruned": 3_000_000_000}
MAP50 = {"original": 0.556, "original+int8": 0.555, "pruned": 0.549, "pruned+int8": 0.543}
P50 = {
    ("original", "pytorch-fp32"): 105.0, ("original", "onnxruntime"): 40.0, ("original", "openvino-f32"): 28.0,
    ("original", "openvino-default"): 16.0, ("pruned", "pytorch-fp32"): 90.0, ("pruned", "onnxruntime"): 33.0,
    ("pruned", "openvino-f32"): 23.0, ("pruned", "openvino-default"): 13.0, ("original+int8", "onnxruntime"): 44.0,
    ("original+int8", "openvino-int8"): 12.0, ("pruned+int8", "onnxruntime"): 30.0,
    ("pruned+int8", "openvino-int8"): 10.0,
}  # fmt: skip
MACHINE = {
    "cpu": "Test CPU <9000>", "instruction_sets": ["avx2", "avx512_vnni"], "cores": 2, "memory_bytes": 8 * 2**30,
    "os": "Linux", "python": "3.11.9", "versions": {"hawkeye": "0.1.0", "openvino": "2026.4.1"},
}  # fmt: skip
SPEC = ModelSpec(imgsz=640, names=NAMES, strides=(8, 16, 32))


def interval(base: AccuracyRecord, other: AccuracyRecord, folder: Path) -> tuple[float, float, float]:
    """Stands in for the bootstrap: half a point to either side."""
    drop = 100 * (base.map50 - other.map50)
    return drop, drop - 0.5, drop + 0.5


def add_artifact(folder: Path, name: str, stage: str, files: dict[str, int], **details: object) -> Artifact:
    """A finished stage; `files` gives each format's size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for fmt, size in files.items():
        path = folder / {"pytorch": "model.pt", "onnx": "model.onnx", "openvino": "model.xml"}[fmt]
        content = (name + fmt).encode().ljust(size, b".")
        path.write_bytes(content[:1000] if fmt == "openvino" else content)
        if fmt == "openvino":
            path.with_suffix(".bin").write_bytes(content[1000:])
        paths[fmt] = path
    parent = name.removesuffix("+int8")
    artifact = Artifact.create(folder, paths, started=0.0, name=name, stage=stage, spec=SPEC, params=PARAMS[parent],
                               macs=MACS[parent], details=details)  # fmt: skip
    artifact = artifact.model_copy(update={"seconds": 12.5, "environment": MACHINE})
    write_json(folder / "artifact.json", artifact.model_dump(mode="json"))
    return Artifact.load(folder)


def add_accuracy(run: Path, artifact: Artifact, runtime: str, **changes: object) -> None:
    """An accuracy record with the matches file beside it."""
    fmt = {"pytorch-fp32": "pytorch", "onnxruntime": "onnx"}.get(runtime, "openvino")
    value = MAP50[artifact.name]
    classes = [ClassAccuracy(name=n, instances=40 + i, ap50=value - 0.02 * i, ap50_95=value - 0.2) for i, n in enumerate(NAMES)]  # fmt: skip # noqa: E501
    classes[1] = classes[1].model_copy(update={"ap50": 0.5 + 3 * (value - 0.55)})
    classes[2] = classes[2].model_copy(update={"ap50": 0.5 - (value - 0.55)})
    classes[3] = ClassAccuracy(name=NAMES[3], instances=0, ap50=None, ap50_95=None)
    fields = dict(
        name=artifact.name, artifact_sha256=artifact.sha256, file_sha256=artifact.files[fmt].sha256, format=fmt,
        runtime=runtime, precision_hint="f32", dataset=f"set {EVIL}", dataset_sha256="d" * 64, split="val", images=328,
        skipped=0, imgsz=640, conf=0.001, iou=0.7, max_det=300, threads=0, map50=value, map50_95=value - 0.158,
        per_class=tuple(classes), matches=f"{artifact.name}-{runtime}.npz", seconds=3.0, environment=MACHINE,
    )  # fmt: skip
    record = AccuracyRecord(**{**fields, **changes})
    folder = run / "records" / "accuracy"
    record.save(folder / f"{artifact.name}-{runtime}.json")
    np.savez(folder / record.matches, empty=np.zeros(0))


def add_latency(run: Path, artifacts: list[Artifact], only: tuple[str, ...] = ROWS) -> None:
    """One latency record over all rows; the whole frame takes one millisecond more than the network."""
    files = {(a.name, fmt): file.sha256 for a in artifacts for fmt, file in a.files.items()}
    rows = []
    for (name, runtime), p50 in P50.items():
        fmt = {"pytorch-fp32": "pytorch", "onnxruntime": "onnx"}.get(runtime, "openvino")
        if name not in only:
            continue
        rows.append(LatencyRow(
            name=name, runtime=runtime, file_sha256=files[name, fmt], precision_hint="f32", precision_executed="f32",
            network_ms=(p50,) * 3, frame_ms=(p50 + 1,) * 3, network=Percentiles(p50=p50, p95=p50 * 1.1, p99=p50 * 1.2),
            frame=Percentiles(p50=p50 + 1, p95=p50 + 2, p99=p50 + 3), throughput_fps=1000 / p50, start_s=0.2,
            peak_rss_bytes=None,
        ))  # fmt: skip
    record = LatencyRecord(imgsz=640, batch=1, threads=0, frame_hw=(1080, 1920), rows=tuple(rows), seconds=9.0, environment=MACHINE)  # fmt: skip # noqa: E501
    record.save(run / "records" / "latency.json")


def add_head(run: Path, *, max_drop: float = 1.5, flops: float = 0.7, **more: object) -> None:
    """run.json."""
    recipe = Recipe(prune=PruneConfig(flops=flops), gates=GateConfig(max_drop=max_drop), seed=7)
    write_json(run / "run.json", {"schema_version": 1, "key": "k", "started": "2030-01-02T03:04:05Z",
                                  "recipe": recipe.model_dump(mode="json"), **more})  # fmt: skip


def write_run(run: Path, *, layers: int = 6, **head: object) -> list[Artifact]:
    """A whole, finished run."""
    widths = {f"model.{i}.conv": [16 * (1 + i % 5), 8 * (1 + i % 5)] for i in range(layers)} | {
        f"{EVIL}.conv": [64, 64]
    }
    curve = [
        {
            "step": 10 * i,
            "seconds": 4.0 * i,
            "loss": 1 / (i + 1),
            "agreement": None if i % 3 else 0.8 + i / 100,
            "lr": 5e-5,
        }
        for i in range(13)
    ]
    artifacts = [
        add_artifact(run / "0-original", "original", "original", {"pytorch": 6500}),
        add_artifact(run / "1-prune", "pruned", "prune", {"pytorch": 4400}, widths=widths),
        add_artifact(run / "2-recover", "pruned", "recover", {"pytorch": 4500}, curve=curve),
        add_artifact(run / "3-export" / "original", "original", "export", {"onnx": 12_300, "openvino": 12_400}),
        add_artifact(
            run / "3-export" / "pruned", "pruned", "export", {"pytorch": 4600, "onnx": 8300, "openvino": 8400}
        ),
        add_artifact(run / "4-quantize" / "original", "original+int8", "quantize", {"onnx": 3500, "openvino": 3400}),
        add_artifact(run / "4-quantize" / "pruned", "pruned+int8", "quantize", {"onnx": 2500, "openvino": 2400}),
    ]
    for artifact in artifacts[3:]:
        if artifact.name.endswith("int8"):
            add_accuracy(run, artifact, "openvino-int8")
        else:
            add_accuracy(run, artifact, "openvino-f32")
            add_accuracy(run, artifact, "onnxruntime", map50=MAP50[artifact.name] + 0.0004)
    add_latency(run, artifacts)
    add_head(run, **head)
    return artifacts


def by_name(result: dict) -> dict[str, dict]:
    return {row["name"]: row for row in result["rows"]}


def test_every_figure_of_the_table(tmp_path: Path) -> None:
    write_run(tmp_path)
    result = report(tmp_path, interval=interval)
    assert json.loads((tmp_path / "report.json").read_text()) == result
    assert [row["name"] for row in result["rows"]] == ["original", "original+int8", "pruned", "pruned+int8"]
    rows = by_name(result)
    for name, row in rows.items():
        parent = name.removesuffix("+int8")
        assert (row["params"], row["gflops"]) == (PARAMS[parent], 2 * MACS[parent] / 1e9)
        assert (row["map50"], row["map50_95"]) == (MAP50[name], MAP50[name] - 0.158)
        assert row["latency_ms"] == {
            runtime: {"p50": p50, "p95": p50 * 1.1, "p99": p50 * 1.2} for (n, runtime), p50 in P50.items() if n == name
        }
    assert rows["original"]["map50_drop"] == 0.0
    final = rows["pruned+int8"]
    assert final["map50_drop"] == pytest.approx(1.3)
    assert final["map50_drop_ci95"] == pytest.approx([0.8, 1.8])
    assert final["speedup"]["openvino-int8"] == pytest.approx(2.8)
    assert final["file_bytes"] == {"onnx": 2500, "openvino": 2400}
    assert rows["pruned"]["file_bytes"] == {"pytorch": 4600, "onnx": 8300, "openvino": 8400}  # the last stage's .pt
    assert rows["original"]["file_bytes"] == {"pytorch": 6500, "onnx": 12_300, "openvino": 12_400}
    changes = {c["name"]: c["ap50_change"] for c in final["per_class"]}
    assert changes[EVIL] == pytest.approx(-3.9) and changes[NAMES[2]] == pytest.approx(1.3)
    assert changes["never seen"] is None
    assert result["environment"] == MACHINE
    assert result["missing"] == []
    assert any("0.04 points between ONNX Runtime, OpenVINO FP32" in note for note in result["notes"])
    assert any("slower than FP32 here (40.0 → 44.0 ms)" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("head", "passed"),
    [
        ({}, {"max_drop": True, "flops": True, "params": True}),
        ({"max_drop": 1.2}, {"max_drop": False, "flops": True, "params": True}),
        ({"flops": 0.6}, {"max_drop": True, "flops": False, "params": True}),
    ],
    ids=["all kept", "drops 1.3 of 1.2", "keeps 0.69 of 0.6"],
)
def test_gates(tmp_path: Path, head: dict, passed: dict) -> None:
    write_run(tmp_path, **head)
    result = collect(tmp_path, interval=interval)
    assert {name: gate["passed"] for name, gate in result["gates"].items()} == passed
    assert result["gates"]["max_drop"]["value"] == pytest.approx(1.3)
    assert result["gates"]["flops"]["value"] == pytest.approx(3.0 / 4.3719168)
    assert result["gates"]["flops"]["limit"] == head.get("flops", 0.7)
    assert result["gates"]["params"]["value"] == pytest.approx(2_100_000 / 3_151_904)
    assert ("Every gate is passed." in result["headline"]) is False  # kept, but the interval reaches to 1.8
    words = " ".join(result["headline"])
    assert ("Missed: " in words) == (not all(passed.values()))


def test_headline_says_what_was_gained_and_lost(tmp_path: Path) -> None:
    write_run(tmp_path)
    gain, loss, rival, verdict = collect(tmp_path, interval=interval)["headline"]
    assert "2.80 times as fast" in gain and "28.0 → 10.0 ms" in gain and "69 % of its computation" in gain
    assert "loses 1.30 points of mAP@0.5 (0.556 → 0.543 on 328 pictures; 95 % confidence interval 0.80 to 1.80)" in loss
    assert "saves 17 % of the time and costs 1.20 points" in rival
    assert "the confidence interval reaches beyond it" in verdict


def test_a_slower_and_worse_result_is_called_so(tmp_path: Path) -> None:
    artifacts = write_run(tmp_path)
    path = tmp_path / "records" / "latency.json"
    record = LatencyRecord.load(path)
    slow = Percentiles(p50=56.0, p95=57.0, p99=58.0)
    rows = [r.model_copy(update={"network": slow}) if r.name == "pruned+int8" else r for r in record.rows]
    record.model_copy(update={"rows": tuple(rows)}).save(path)
    add_accuracy(tmp_path, artifacts[5], "openvino-int8", map50=0.558)
    words = " ".join(collect(tmp_path, interval=interval)["headline"])
    assert "slower than (0.50 times the speed of) the FP32 original" in words
    assert "pruning brought nothing here" in words


def test_a_runtime_that_computes_in_less_than_asked_is_told_of(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "records" / "latency.json"
    record = LatencyRecord.load(path)
    rows = [r.model_copy(update={"precision_executed": "bf16 x57, f32 x7"}) if r.runtime == "openvino-f32" else r for r in record.rows]  # fmt: skip # noqa: E501
    record.model_copy(update={"rows": tuple(rows)}).save(path)
    told = [n for n in collect(tmp_path, interval=interval)["notes"] if "was asked for f32 and ran in bf16 x57" in n]
    assert len(told) == 2


def test_an_empty_run_has_nulls_and_dashes_but_no_zeros(tmp_path: Path) -> None:
    add_head(tmp_path)
    result = report(tmp_path)
    assert [row["name"] for row in result["rows"]] == list(ROWS)
    for row in result["rows"]:
        assert [row[k] for k in ("params", "gflops", "map50", "map50_95", "map50_drop", "map50_drop_ci95")] == [
            None
        ] * 6
        assert set(row["latency_ms"].values()) == set(row["file_bytes"].values()) == {None}
    assert result["environment"] is None
    assert {gate["passed"] for gate in result["gates"].values()} == {None}
    assert "pruned+int8: map50" in result["missing"] and "original: latency_ms.openvino-f32" in result["missing"]
    table = markdown(result).split("## ")[0]
    assert re.search(r"\| original \| – \| – \|", table)
    assert not re.search(r"\| 0(\.0+)? \|", table)
    assert "could not be judged" in table
    assert "No compressed detector" in (tmp_path / "report.html").read_text()


def test_a_run_that_stopped_after_pruning(tmp_path: Path) -> None:
    add_head(tmp_path)
    add_artifact(tmp_path / "0-original", "original", "original", {"pytorch": 6500})
    add_artifact(tmp_path / "1-prune", "pruned", "prune", {"pytorch": 4400}, widths={"model.0.conv": [16, 8]})
    result = report(tmp_path)
    rows = by_name(result)
    assert rows["pruned"]["params"] == rows["pruned+int8"]["params"] == PARAMS["pruned"]
    assert rows["pruned"]["file_bytes"] == {"pytorch": 4400, "onnx": None, "openvino": None}
    assert result["gates"]["flops"]["passed"] is True and result["gates"]["max_drop"]["passed"] is None
    assert "has not been measured" in " ".join(result["headline"])


def test_what_was_skipped_is_neither_missing_nor_judged(tmp_path: Path) -> None:
    add_head(tmp_path, skip=["prune"], labels=False)
    add_artifact(tmp_path / "0-original", "original", "original", {"pytorch": 6500})
    result = collect(tmp_path)
    assert [row["name"] for row in result["rows"]] == ["original", "original+int8"]
    assert result["gates"] == {}
    assert not any("map50" in item for item in result["missing"])


def test_an_outdated_record_is_left_out_and_told_of(tmp_path: Path) -> None:
    artifacts = write_run(tmp_path)
    add_accuracy(tmp_path, artifacts[-1], "openvino-int8", file_sha256="0" * 64)
    result = collect(tmp_path, interval=interval)
    assert by_name(result)["pruned+int8"]["map50"] is None
    assert "pruned+int8: map50" in result["missing"]
    assert any("another version of its file" in note for note in result["notes"])
    assert result["gates"]["max_drop"]["passed"] is None


def test_other_pictures_give_no_drop(tmp_path: Path) -> None:
    artifacts = write_run(tmp_path)
    add_accuracy(tmp_path, artifacts[-1], "openvino-int8", dataset_sha256="e" * 64)
    row = by_name(collect(tmp_path, interval=interval))["pruned+int8"]
    assert row["map50"] == MAP50["pruned+int8"] and row["map50_drop"] is None


def test_without_matches_the_drop_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "records" / "accuracy" / "pruned+int8-openvino-int8.npz").unlink()
    result = collect(tmp_path, interval=interval)
    row = by_name(result)["pruned+int8"]
    assert row["map50_drop"] == pytest.approx(1.3) and row["map50_drop_ci95"] is None
    assert show_drop(row) == "1.30 [–]"
    assert "pruned+int8: map50_drop_ci95" in result["missing"]


class Page(HTMLParser):
    """Tags, addresses and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_escapes_strangers_names(tmp_path: Path) -> None:
    write_run(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    stem = '"><img src=x onerror=alert(1)>&lt;'
    for word in ("original", "compressed"):
        (folder / f"{stem}-{word}.jpg").write_bytes(b"\xff\xd8" + word.encode())
    (folder / "half-original.jpg").write_bytes(b"\xff\xd8")
    report(tmp_path, interval=interval)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert "script" not in page.tags and "link" not in page.tags
    assert page.tags.count("img") == 2 and page.tags.count("svg") == 3
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert "<script" not in html and "onerror" not in re.sub(r"&lt;img src=x onerror=alert\(1\)&gt;", "", html)
    assert EVIL in page.text and stem in page.text and NAMES[2] in page.text
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', html)) <= set(ids)
    assert "<script" not in (tmp_path / "report.md").read_text()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    write_run(tmp_path)
    names = ("report.json", "report.md", "report.html")
    report(tmp_path, interval=interval)
    first = [(tmp_path / name).read_bytes() for name in names]
    report(tmp_path, interval=interval)
    assert [(tmp_path / name).read_bytes() for name in names] == first


def test_markdown_cells_stay_in_their_table() -> None:
    assert one_line("a|b\n<i>&") == "a\\|b &lt;i&gt;&amp;"


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="not the folder of a run"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 2, "recipe": {}}', '{"schema_version": 1}',
                                     '{"schema_version": 1, "recipe": {"unknown": 1}}'])  # fmt: skip
def test_a_run_json_that_cannot_be_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunDirError, match=r"run\.json"):
        report(tmp_path)


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "records" / "accuracy" / "original-openvino-f32.json").write_text("{}")
    with pytest.raises(ModelError, match="original-openvino-f32"):
        report(tmp_path, interval=interval)


def test_without_matplotlib_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # the only way to be without an installed package
    with pytest.raises(MissingExtraError, match=r"hawkeye\[report\]"):
        report(tmp_path, interval=interval)
    assert not list(tmp_path.glob("report.*"))


@pytest.mark.parametrize(
    ("held_out", "said"), [([0.4, 0.3, 0.35], False), ([0.002, 0.01, 0.004], True), ([0.4], False)]
)
def test_a_recovery_that_found_nothing_better_says_so(held_out, said):
    notes = recovery_notes([{"step": step, "held_out": value} for step, value in enumerate(held_out)])
    assert bool(notes) == said
    assert all("0.0020 before, 0.0040 at best" in note for note in notes)
    assert recovery_notes(None) == []
