"""The stages as commands of their own, over checkpoints and artefact folders."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from hawkeye.artifact import RECORD, Artifact
from hawkeye.config import (
    BenchmarkConfig,
    EvaluateConfig,
    ExportConfig,
    PruneConfig,
    QuantizeConfig,
    RecoverConfig,
    ServingConfig,
)
from hawkeye.errors import InputError, ModelError, RunDirError
from hawkeye.lazy import load
from hawkeye.options import (
    Align,
    Budget,
    Data,
    Device,
    Flops,
    Images,
    Int8,
    Json,
    Latency,
    Method,
    Model,
    Out,
    OwnSize,
    Params,
    Seed,
    Separable,
    Simpler,
    Steps,
    Threads,
    about,
    given,
)
from hawkeye.progress import say
from hawkeye.records import RuntimeName
from hawkeye.tables import as_json, latency_table, table


def prune(
    model: Model,
    /,
    *,
    out: Out,
    data: Data = None,
    images: Images = None,
    flops: Flops = None,
    params: Params = None,
    latency: Latency = None,
    method: Method = None,
    align: Align = None,
    separable: Separable = None,
    hardswish: Simpler = None,
    samples: Annotated[int | None, about(PruneConfig, "samples")] = None,
    rounds: Annotated[int | None, about(PruneConfig, "rounds")] = None,
    imgsz: OwnSize = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Remove channels, with the rest re-fitted (obs).

    For example:

        hawkeye prune yolov8n.pt --images pictures/ --out runs/pruned --flops 0.75 --params 0.8

        hawkeye prune yolov8n.pt --images pictures/ --out runs/faster --latency 0.6 --flops 1 --params 1
    """
    config = given(PruneConfig(), data=data, images=images, flops=flops, params=params, latency=latency, method=method,
                   align=align, separable=separable, hardswish=hardswish, samples=samples, rounds=rounds,
                   imgsz=imgsz, seed=seed, device=device)  # fmt: skip
    source = _source(model, out, imgsz, "prune")
    made = load("hawkeye.compress.prune").prune(source, config, out=out)
    print(f"GFLOPs {source.gflops:.2f} → {made.gflops:.2f}, parameters {source.params:,} → {made.params:,}")
    print(out)


def recover(
    model: Model,
    /,
    *,
    teacher: Annotated[
        Path,
        Parameter(
            help="The original, or a larger detector of the same classes: checkpoint (.pt) or folder of an artefact."
        ),
    ],
    out: Out,
    data: Data = None,
    images: Images = None,
    budget: Budget = None,
    steps: Steps = None,
    batch: Annotated[int | None, about(RecoverConfig, "batch")] = None,
    lr: Annotated[float | None, about(RecoverConfig, "lr")] = None,
    imgsz: OwnSize = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Win back accuracy by distillation from the original; needs no labels.

    For example:

        hawkeye recover runs/pruned --teacher yolov8n.pt --images pictures/ --out runs/recovered --budget 30m
    """
    config = given(RecoverConfig(), data=data, images=images, budget=budget, steps=steps, batch=batch, lr=lr,
                    imgsz=imgsz, seed=seed, device=device)  # fmt: skip
    source = _source(model, out, imgsz, "recover", name="pruned")
    original = _source(teacher, out, imgsz or source.spec.imgsz, "recover", folder="teacher")
    load("hawkeye.compress.recover").recover(source, config, teacher=original, out=out)
    print(out)


def export(
    model: Annotated[str, Parameter(help="Checkpoint (.pt) or the folder of an artefact; with --layout also a run or a "
                                    "model store (folder or URL).")],
    /,
    *,
    out: Out,
    data: Data = None,
    images: Images = None,
    opset: Annotated[int | None, about(ExportConfig, "opset")] = None,
    dynamic: Annotated[bool | None, about(ExportConfig, "dynamic")] = None,
    simplify: Annotated[bool | None, about(ExportConfig, "simplify")] = None,
    imgsz: OwnSize = None,
    layout: Annotated[Literal["ovms", "triton"] | None, Parameter(help="Write a model repository that OpenVINO Model "
                                                                  "Server or Triton serves as it is.")] = None,
    name: Annotated[str, Parameter(help="Name of the model in the repository.")] = "hawkeye",
    conf: Annotated[float | None, about(ServingConfig, "conf")] = None,
    iou: Annotated[float | None, about(ServingConfig, "iou")] = None,
    max_det: Annotated[int | None, about(ServingConfig, "max_det")] = None,
) -> None:  # fmt: skip
    """Write ONNX and OpenVINO, each compared with PyTorch on real pictures; or a repository for a model server.

    A repository's model takes a picture of any size as uint8 (1, H, W, 3) in BGR order and answers with boxes in its
    pixels, scores and classes. A new version gets the next number, which a running server notices.

    For example:

        hawkeye export yolov8n.pt --images pictures/ --out runs/exported

        hawkeye export runs/first --layout ovms --out served

        hawkeye export s3://bucket/models --layout triton --out served --name door --conf 0.4
    """
    serving = given(ServingConfig(), conf=conf, iou=iou, max_det=max_det)
    path = Path(model)
    if layout is not None and path.suffix != ".pt":
        layouts = load("hawkeye.layouts")
        print(layouts.write(layouts.find_artifact(model), layout, serving, out=out, name=name))
        return
    config = given(ExportConfig(), data=data, images=images, opset=opset, dynamic=dynamic, simplify=simplify,
                    imgsz=imgsz)  # fmt: skip
    if layout is not None:
        with tempfile.TemporaryDirectory() as folder:
            source = _source(path, Path(folder), imgsz, "export")
            made = load("hawkeye.compress.export").export(source, config, out=Path(folder) / "export")
            print(load("hawkeye.layouts").write(made, layout, serving, out=out, name=name))
        return
    made = load("hawkeye.compress.export").export(_source(path, out, imgsz, "export"), config, out=out)
    for fmt in made.files:
        print(made.path(fmt))


def quantize(
    model: Model,
    /,
    *,
    out: Out,
    data: Data = None,
    images: Images = None,
    mode: Annotated[Int8, Parameter(name=("--mode", "--int8"))] = None,
    samples: Annotated[int | None, about(QuantizeConfig, "samples")] = None,
    budget: Annotated[str | None, about(QuantizeConfig, "budget")] = None,
    imgsz: OwnSize = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Make INT8 of an exported model; a checkpoint is exported first.

    For example:

        hawkeye quantize runs/exported --data data.yaml --out runs/int8

        hawkeye quantize best.pt --mode qat --data data.yaml --budget 30m --out runs/int8
    """
    config = given(QuantizeConfig(), data=data, images=images, mode=mode, samples=samples, budget=budget, imgsz=imgsz,
                   seed=seed, device=device)  # fmt: skip
    source = _source(model, out, imgsz, "quantize")
    if "openvino" not in source.files:
        load("hawkeye.keys").quantize("", config)  # pictures that are missing or too few, before the export's minute
        say("the model is not exported yet: exporting it first")
        settings = given(ExportConfig(), data=data, images=images, imgsz=imgsz)
        source = load("hawkeye.compress.export").export(source, settings, out=out / "export")
    made = load("hawkeye.compress.quantize").quantize(source, config, out=out)
    for fmt in made.files:
        print(made.path(fmt))


def diagnose(
    model: Annotated[Path, Parameter(help="Folder of an exported or a quantized artefact.")],
    /,
    *,
    data: Annotated[
        Path, Parameter(help="data.yaml: accuracy on its validation pictures, spread of its training ones.")
    ],
    images: Images = None,
    original: Annotated[
        Path | None, Parameter(help="Float artefact that the INT8 one was made from, where it is not found by itself.")
    ] = None,
    samples: Annotated[int, Parameter(help="Validation pictures at most.")] = 200,
    json: Json = False,
) -> None:
    """Find where accuracy is lost on the way from PyTorch over ONNX and OpenVINO to INT8, and what to do.

    For example:

        hawkeye diagnose runs/first/4-quantize/pruned --data data.yaml
    """
    if samples < 1:
        raise InputError("nothing to measure on", got=f"--samples {samples}", expected="1 or more")
    if model.is_file() and model.name != RECORD:
        raise ModelError("this is not the folder of an artefact", got=model,
                         expected="what `hawkeye export` or `hawkeye quantize` wrote",
                         mend="name the folder given as --out")  # fmt: skip
    parent = Artifact.load(original) if original is not None else None
    found = load("hawkeye.compress.diagnose").diagnose(
        Artifact.load(model), data=data, images=images, original=parent, samples=samples
    )
    if json:
        print(as_json(found))
        return
    print(f"{found['name']}, {found['pictures']} validation pictures")
    print(table(found["stages"], ("stage", "map50", "map50_95", "change", "score_difference"), digits=3))
    if found["spread"]:
        print()
        rows = [
            {"pictures": f"{name} ({look['pictures']})", "brightness": look["brightness"]["mean"],
             "contrast": look["contrast"]["mean"], **look["sizes"], "classes": look["classes"]}
            for name, look in found["spread"].items() if name != "differences"
        ]  # fmt: skip
        print(table(rows, ("pictures", "brightness", "contrast", "small", "medium", "large", "classes"), digits=1))
    print()
    for line in found["advice"]:
        print(f"- {line}")


def evaluate(
    model: Model,
    /,
    *,
    data: Annotated[Path, Parameter(help="data.yaml of a YOLO data set.")],
    runtime: Annotated[
        RuntimeName | None, Parameter(help="Runtime; left out, the best for the files there are.")
    ] = None,  # noqa: E501
    split: Annotated[Literal["val", "train", "test"] | None, about(EvaluateConfig, "split")] = None,
    conf: Annotated[float | None, about(EvaluateConfig, "conf")] = None,
    iou: Annotated[float | None, about(EvaluateConfig, "iou")] = None,
    imgsz: OwnSize = None,
    threads: Threads = None,
    out: Annotated[Path | None, Parameter(help="Folder to keep the record in.")] = None,
    json: Json = False,
) -> None:
    """Measure mAP on labelled pictures, with the runtime's own pre- and post-processing.

    For example:

        hawkeye evaluate runs/first/4-quantize/pruned --data data.yaml

        hawkeye evaluate yolov8n.pt --data data.yaml --imgsz 512
    """
    with tempfile.TemporaryDirectory() as name:
        source = _source(model, Path(name), imgsz, "evaluate")
        config = given(EvaluateConfig(), data=data, split=split, conf=conf, iou=iou, threads=threads,
                        imgsz=imgsz or source.spec.imgsz)  # fmt: skip
        chosen = runtime or _best_runtime(source)
        folder = out or Path(name) / "records"
        record = load("hawkeye.evaluate").evaluate(source, config, runtime=chosen, out=folder)
    if json:
        print(as_json(record.model_dump(mode="json")))
        return
    rows = [{"class": c.name, "objects": c.instances, "mAP@0.5": c.ap50, "mAP@0.5:0.95": c.ap50_95}
            for c in record.per_class if c.instances]  # fmt: skip
    total = sum(c.instances for c in record.per_class)
    rows.insert(0, {"class": "all", "objects": total, "mAP@0.5": record.map50, "mAP@0.5:0.95": record.map50_95})
    print(f"{record.name} in {record.runtime}, {record.images} pictures of {record.dataset} ({record.split})")
    print(table(rows, ("class", "objects", "mAP@0.5", "mAP@0.5:0.95"), digits=3))


def benchmark(
    *models: Model,
    out: Annotated[Path | None, Parameter(help="File (.json) to keep the record in.")] = None,
    runs: Annotated[int | None, about(BenchmarkConfig, "runs")] = None,
    threads: Threads = None,
    imgsz: OwnSize = None,
    json: Json = False,
) -> None:
    """Measure latency at batch 1, interleaved over all models and runtimes.

    For example:

        hawkeye benchmark runs/first/3-export/original runs/first/4-quantize/pruned --runs 200
    """
    if not models:
        raise InputError("no model", expected="one or more checkpoints or artefact folders")
    with tempfile.TemporaryDirectory() as name:
        sources = [_source(m, Path(name), imgsz, "benchmark", folder=str(i)) for i, m in enumerate(models)]
        config = given(BenchmarkConfig(), runs=runs, threads=threads, imgsz=imgsz or sources[0].spec.imgsz)
        path = out or Path(name) / "latency.json"
        record = load("hawkeye.benchmark").benchmark(sources, config, out=path)
    print(as_json(record.model_dump(mode="json")) if json else latency_table(record))


def _source(
    path: Path, out: Path, imgsz: int | None, stage: str, *, name: str = "original", folder: str = "source"
) -> Artifact:
    """The artefact that was named; a checkpoint is taken in as one, under `out`."""
    _check_out(out, stage)
    if path.is_dir() or path.name == RECORD:
        return Artifact.load(path)
    if path.suffix != ".pt":
        raise ModelError("not a model that this command takes", got=path,
                         expected="a checkpoint (.pt) or the folder of an artefact")  # fmt: skip
    size = imgsz if imgsz is not None else load("hawkeye.compress.yolo").load_checkpoint(path).imgsz
    made: Artifact = load("hawkeye.compress.original").import_original(path, imgsz=size, out=out / folder)
    if name == made.name:
        return made
    named = made.model_copy(update={"name": name})
    named._root = made.root
    return named


def _check_out(out: Path, stage: str) -> None:
    """A folder with another stage's result is not to be written over."""
    if (out / RECORD).is_file() and Artifact.load(out).stage != stage:
        raise RunDirError(f"{out} holds the result of another stage", got=Artifact.load(out).stage, expected=stage,
                          mend="name another --out")  # fmt: skip


def _best_runtime(artifact: Artifact) -> RuntimeName:
    if "openvino" in artifact.files:
        return "openvino-int8" if artifact.stage == "quantize" else "openvino-f32"
    return "onnxruntime" if "onnx" in artifact.files else "pytorch-fp32"
