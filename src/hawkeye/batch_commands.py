"""`hawkeye batch`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from hawkeye.environment import cpu_count
from hawkeye.errors import ConfigError
from hawkeye.lazy import load
from hawkeye.live_commands import named_classes
from hawkeye.options import Json, Rect
from hawkeye.tables import as_json

Address = Annotated[
    str | None, Parameter(help="Ray cluster, as host:port, ray://host:port or auto; left out, Ray is started here.")
]


def batch(
    *pictures: Annotated[str, Parameter(help="Pictures, folders, patterns such as 'shots/**/*.jpg', Parquet files, or "
                                        "URLs of such (s3://bucket/shots); several at once.")],
    model: Annotated[str, Parameter(help="Run, artefact, .xml, .onnx, or model store (folder or URL).")],
    out: Annotated[str, Parameter(help="Folder or URL to write into.")],
    workers: Annotated[int | None, Parameter(help="Workers, a detector each; as many as cores allow.")] = None,
    threads: Annotated[int, Parameter(help="CPU threads of each worker; 1 gives the most pictures per second.")] = 1,
    address: Address = None,
    conf: Annotated[float, Parameter(help="Detections must score more than this.")] = 0.25,
    iou: Annotated[float, Parameter(help="Overlap above which the weaker of two boxes is dropped.")] = 0.7,
    classes: Annotated[str | None, Parameter(help="Only these classes, with commas: names or numbers.")] = None,
    imgsz: Annotated[int | None, Parameter(help="Side of the network input; left out, the model's own.")] = None,
    rect: Rect = True,
    column: Annotated[str | None, Parameter(help="Column of Parquet files with the bytes, paths or URLs; left out, "
                                            "it is found by name and type.")] = None,
    chunk: Annotated[int | None, Parameter(help="Pictures in a partition, which a killed worker does again; left "
                                           "out, up to 1000.")] = None,
    retry: Annotated[bool, Parameter(help="Do those partitions again in which pictures could not be read.",
                                     negative=())] = False,
    price: Annotated[float | None, Parameter(help="Price of a machine for an hour, for the report.")] = None,
    json: Json = False,
) -> int:  # fmt: skip
    """Find objects in millions of pictures: Parquet partitions, one row for each picture, and a report.

    Kill it anywhere and start the same command again: it goes on where it was, no picture is looked at twice and none
    is lost. Pictures that cannot be read are listed in failed.csv; exit code 1 where they are more than 10 %. Pictures
    that are named later are added.

    For example:

        hawkeye batch pictures/ --model runs/first --out found

        hawkeye batch 's3://bucket/shots/*.jpg' --model s3://bucket/models --out s3://bucket/found --address auto \
            --workers 64

        hawkeye batch shots.parquet --model runs/first --out found --column image --price 0.40
    """
    for name, value in (("--workers", workers), ("--threads", threads)):
        if value is not None and not 1 <= value <= 10_000:
            raise ConfigError(f"{name} cannot be used", got=value, expected="1 or more")
    if workers is None and address is not None:
        raise ConfigError("how many workers?", got="--address without --workers", mend="give --workers: as a rule, the "
                          "cluster's cores divided by --threads")  # fmt: skip
    module, ray = (load(f"hawkeye.scale.{name}", extra="scale") for name in ("batch", "ray_batch"))
    count = workers or max(1, cpu_count() // threads)
    names = named_classes(classes)
    done = module.batch(model, pictures, out=out, workers=ray.RayWorkers(count, threads, address), threads=threads,
                        chunk=chunk, column=column, retry=retry, price=price, conf=conf, iou=iou, classes=names,
                        imgsz=imgsz, rect=rect)  # fmt: skip
    print(as_json(done.report) if json else module.describe(done.report))
    if not json:
        print(f"{out.rstrip('/')}/report.md")
    return 0 if done.passed else 1
