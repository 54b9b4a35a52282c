"""The commands around a run: options to settings, then the public function, then a short answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from hawkeye import gates
from hawkeye.artifact import Artifact, write_bytes
from hawkeye.config import Recipe
from hawkeye.errors import EXIT_GATE_MISSED, ConfigError
from hawkeye.lazy import load
from hawkeye.options import Data, Images, Json, Junit, Out, OwnSize, RunOptions, Summary, Until, about
from hawkeye.summary import job_summary, junit_xml
from hawkeye.tables import as_json, run_table, table


def optimize(
    model: Annotated[Path | None, about(Recipe, "model")] = None,
    /,
    *,
    out: Out,
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
    junit: Junit = None,
    summary: Summary = None,
    until: Until = None,
) -> int:
    """Compress a detector and prove it: prune, recover, quantize, export, evaluate, benchmark, report.

    Start the same command again after an interruption: it goes on where it was. Exit code 3: a gate was missed,
    and everything is written.

    For example:

        hawkeye optimize yolov8n.pt --data data.yaml --out runs/first

        hawkeye optimize yolov8n.pt --images pictures/ --out runs/unlabelled --flops 0.8 --budget 30m

        hawkeye optimize yolov8n.pt --data data.yaml --out runs/int8 --skip prune,recover

        hawkeye optimize yolov8n.pt --data data.yaml --out runs/half --imgsz auto --latency 0.5
    """
    from hawkeye import pipeline

    recipe = options.recipe(model)
    if options.imgsz == "auto":
        if "prune" in (*recipe.skip, *options.left_out):
            raise ConfigError("--imgsz auto chooses the size together with the widths", got="pruning left out",
                              expected="a run that prunes", mend="give a number, such as --imgsz 512")  # fmt: skip
        # Before minutes of measuring; what bounds the widths is lifted, so the recipe's own say nothing.
        bare = recipe.with_(prune=recipe.prune.with_(flops=0.5, params=0.5))
        pipeline.check(bare, out=out, until=until, skip=options.left_out)
        recipe, _ = load("hawkeye.compress.search").settle(recipe, out=out.parent / f"{out.name}-search")
    result = pipeline.optimize(recipe, out=out, until=until, skip=options.left_out)
    return conclude(result, labels=recipe.data is not None, junit=junit, summary=summary)


def conclude(result: Any, *, labels: bool, junit: Path | None = None, summary: Path | None = None) -> int:
    """Print a run's table, gates and report, write what CI asked for, and return the exit code."""
    if not result.finished:
        return 0
    print(run_table(result.report))
    judged = {name: gate for name, gate in result.report["gates"].items() if labels or name != "max_drop"}
    for line in gates.lines(judged):
        print(line)
    write_summaries(result.report, result.out, junit, summary)
    if not labels:
        print("accuracy was not measured: there were no labels (--data); no gate on accuracy was judged")
    print(f"report: {result.out / 'report.html'}")
    return 0 if result.passed else EXIT_GATE_MISSED


def demo(
    *,
    out: Out = Path("runs/demo"),
    model: Annotated[Path | None, Parameter(help="Your own checkpoint instead of one trained here.")] = None,
    data: Annotated[Path | None, Parameter(help="Your own data.yaml instead of drawn pictures.")] = None,
    train_budget: Annotated[str, Parameter(help="Time to train the small detector.")] = "240s",
    budget: Annotated[str, Parameter(help="Time to recover after pruning.")] = "90s",
) -> int:
    """See it all, offline: draw pictures, train a small YOLOv8, compress it, show the report.

    For example:

        hawkeye demo

        hawkeye demo --model best.pt --data data.yaml --out runs/mine
    """
    from hawkeye import demo as module

    result = module.demo(out=out, model=model, data=data, train_budget=train_budget, budget=budget)
    return conclude(result, labels=True)


def inspect(
    model: Annotated[Path, Parameter(help="Checkpoint (.pt), artefact folder, or OpenVINO .xml.")],
    /,
    *,
    imgsz: OwnSize = None,
    sensitivity: Annotated[
        bool, Parameter(help="Measure how much each group of channels matters.", negative=())
    ] = False,  # noqa: E501
    data: Data = None,
    images: Images = None,
    json: Json = False,
) -> None:
    """Layers, sizes and coupled channels of a checkpoint; executed precisions of an OpenVINO model.

    For example:

        hawkeye inspect yolov8n.pt

        hawkeye inspect yolov8n.pt --sensitivity --images pictures/ --json

        hawkeye inspect runs/first/4-quantize/pruned
    """
    path = model
    if model.is_dir():
        artifact = Artifact.load(model)  # an INT8 one holds no checkpoint
        path = artifact.path("pytorch" if "pytorch" in artifact.files else "openvino")
    if path.suffix == ".xml":
        runtime = load("hawkeye.runtime.openvino")
        rows = runtime.execution_precisions(path)
        if json:
            print(as_json(rows))
            return
        print(table(rows, ("name", "kind", "precision", "primitive")))
        print(f"convolutions on this CPU: {runtime.convolutions(rows)} (i8 is INT8; compiled with the hint f32)")
        return
    found = load("hawkeye.compress.inspect").inspect(path, imgsz=imgsz, sensitivity=sensitivity, data=data,
                                                      images=images)  # fmt: skip
    if json:
        print(as_json(found))
        return
    print(table(found["layers"], ("name", "kind", "shape", "channels_in", "channels_out", "params", "macs",
                                  "latency_share"), digits=3))  # fmt: skip
    timing = found["latency"]
    print(f"{found['params']:,} parameters, {found['gflops']:.2f} GFLOPs at {found['imgsz']}, {timing['ms']:.1f} ms a "
          f"frame ({timing['runtime']}; {timing['threads']} threads)")  # fmt: skip
    print("\ncoupled channels")
    print(table(found["groups"], ("name", "width", "layers", "why", "protected")))
    if found.get("sensitivity"):
        curves = found["sensitivity"]
        print(f"\nsensitivity ({curves['pictures']} pictures of {curves['source']})")
        rows = [{"group": name, **point} for name, curve in curves["groups"].items() for point in curve]
        print(table(rows, ("group", "kept", "fraction", "damage", "macs_kept"), digits=4))


def write_summaries(table: dict[str, Any], run: Path, junit: Path | None, summary: Path | None) -> None:
    """The gates as JUnit XML, and the outcome as Markdown, where they were asked for."""
    if junit is not None:
        write_bytes(junit, junit_xml(table, name=run.name))
    if summary is not None:
        write_bytes(summary, job_summary(table).encode())


def report(
    run: Annotated[Path, Parameter(help="Folder of a run.")],
    /,
    *,
    junit: Junit = None,
    summary: Summary = None,
    json: Json = False,
) -> None:
    """Write report.md, report.html and report.json of a run's folder again.

    For example:

        hawkeye report runs/first

        hawkeye report runs/first --junit gates.xml --summary summary.md
    """
    result = load("hawkeye.report").report(run)
    write_summaries(result, run, junit, summary)
    if json:
        print(as_json(result))
        return
    print(run_table(result))
    print(f"report: {run / 'report.html'}")
