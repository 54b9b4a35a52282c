"""Model repositories that OpenVINO Model Server and NVIDIA Triton serve as they are.

    OUT/config.json                       ovms
       /NAME/labels.txt
       /NAME/1/model.xml, model.bin

    OUT/NAME/config.pbtxt                 triton, ONNX Runtime backend
            /labels.txt
            /1/model.onnx

A version's folder appears whole, by one rename; servers watch for new ones. The same content is no new version. Before
a version counts it is loaded back and held against `Detector` on a picture.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hawkeye.artifact import RECORD, Artifact, digest, file_sha256, storage_errors, write_bytes, write_json
from hawkeye.benchmark import synthetic_frame
from hawkeye.config import ServingConfig
from hawkeye.errors import ConfigError, ExportError, ModelError, RunDirError
from hawkeye.lazy import load
from hawkeye.runtime.detector import BEST, Detector, local

Layout = Literal["ovms", "triton"]
_AGREE, _SCORE_GAP, _BOX_GAP = 0.95, 0.02, 0.01  # resizing in the graph may differ by one grey level

_PBTXT = """name: "{name}"
backend: "onnxruntime"
max_batch_size: 0
input [
  {{
    name: "image"
    data_type: TYPE_UINT8
    dims: [ 1, -1, -1, 3 ]
  }}
]
output [
  {{
    name: "boxes"
    data_type: TYPE_FP32
    dims: [ -1, 4 ]
  }},
  {{
    name: "scores"
    data_type: TYPE_FP32
    dims: [ -1 ]
  }},
  {{
    name: "classes"
    data_type: TYPE_INT32
    dims: [ -1 ]
  }}
]
instance_group [
  {{
    count: 1
    kind: KIND_CPU
  }}
]
version_policy: {{ latest: {{ num_versions: 1 }} }}
"""


def find_artifact(source: str | Path) -> Artifact:
    """The exported artefact that a person means by a run, an artefact, or a model store.

    Raises:
        ModelError: nothing of the kind there.
        StoreError: a store that cannot be reached, or has nothing released.
    """
    folder = local(source)
    for place in (".", *BEST):
        if (folder / place / RECORD).is_file():
            return Artifact.load(folder / place)
    raise ModelError(f"{folder} is no exported model", got="no artifact.json", mend="name a finished run, the folder "
                     "that `hawkeye export` or `hawkeye quantize` wrote, or a model store")  # fmt: skip


def write(source: Artifact, layout: Layout, config: ServingConfig, *, out: Path, name: str = "hawkeye") -> Path:
    """Add a version of a model to a model repository.

    Args:
        source: an exported or quantized artefact.
        layout: whose repository.
        config: what is fixed in the graph.
        out: the repository; others' models in it stay as they are.
        name: of the model.

    Returns:
        The version's folder.

    Raises:
        ModelError: the artefact has no file of the kind that this server reads.
        ExportError: the graph finds something else than `Detector` does.
        RunDirError: the folder is something else.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ConfigError("--name cannot be used", got=name, expected="letters, digits, . _ and -")
    head = _read_head(out) if layout == "ovms" else None
    model = out / name
    graph, file = ("hawkeye.runtime.serving", "model.xml") if layout == "ovms" else \
        ("hawkeye.compress.serving_onnx", "model.onnx")  # fmt: skip
    module = load(graph)
    with storage_errors(out):
        model.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=model, prefix=".new-") as folder:
            made = Path(folder) / "version"
            made.mkdir()
            made.chmod(0o755)
            module.save(source.path("openvino" if layout == "ovms" else "onnx"), source.spec, config, made / file)
            check(module.load(made / file), source, layout, config)
            version = _place(made, model)
        write_bytes(model / "labels.txt", ("\n".join(source.spec.names) + "\n").encode())
        if head is not None:
            write_json(out / "config.json", _with_model(head, name))
        else:
            write_bytes(model / "config.pbtxt", _PBTXT.format(name=name).encode())
    return version


def check(detect: Any, source: Artifact, layout: Layout, config: ServingConfig) -> None:
    """Hold a served graph against `Detector` on pictures of two shapes.

    Raises:
        ExportError: they find different things.
    """
    runtime: Any = None if layout == "ovms" else "onnxruntime"
    detector = Detector(source, runtime=runtime, rect=False, conf=config.conf, iou=config.iou, max_det=config.max_det,
                        threads=1, cache=False)  # fmt: skip
    for hw in ((360, 640), (500, 375)):
        image = synthetic_frame(hw, 0)
        ours, theirs = detector(image), detect(image)
        if len(ours) == len(theirs) == 0:
            continue
        # Not by class: where two classes score alike, one grey level decides between them.
        same = np.abs(ours.xyxy[:, None] - theirs.xyxy[None]).max(2, initial=0) <= _BOX_GAP * max(hw)
        same &= np.abs(ours.score[:, None] - theirs.score[None]) <= _SCORE_GAP
        found = same.any(1).sum() + same.any(0).sum()
        if found < _AGREE * (len(ours) + len(theirs)):
            raise ExportError(f"the {layout} graph finds something else than the detector",
                              got=f"{len(theirs)} objects", expected=f"{len(ours)}, the same ones")  # fmt: skip


def _place(made: Path, model: Path) -> Path:
    """Give a finished version the next number, unless the newest one is the same."""
    numbers = sorted(int(path.name) for path in model.iterdir() if path.is_dir() and path.name.isdigit())
    if numbers and _content(model / str(numbers[-1])) == _content(made):
        return model / str(numbers[-1])
    version = model / str(numbers[-1] + 1 if numbers else 1)
    if version.exists():  # another process was faster
        shutil.rmtree(made)
        return version
    return made.rename(version)


def _content(folder: Path) -> str:
    return digest({path.name: file_sha256(path) for path in sorted(folder.iterdir())})


def _read_head(out: Path) -> dict[str, Any]:
    try:
        head = json.loads((out / "config.json").read_text())
    except FileNotFoundError:
        return {"model_config_list": []}
    except ValueError as error:
        raise RunDirError(f"{out / 'config.json'} is not JSON", got=error, mend="name another --out") from None
    if not isinstance(head, dict) or not isinstance(head.get("model_config_list"), list):
        raise RunDirError(f"{out / 'config.json'} is not a configuration of OpenVINO Model Server",
                          got=type(head).__name__, mend="name another --out")  # fmt: skip
    return head


def _with_model(head: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration with this model in it; an entry that somebody has tuned stays as it is."""
    if any(entry.get("config", {}).get("name") == name for entry in head["model_config_list"]):
        return head
    # Left alone, the server computes in bfloat16 where the CPU has it.
    entry = {"name": name, "base_path": name, "plugin_config": {"INFERENCE_PRECISION_HINT": "f32"}}
    return {**head, "model_config_list": [*head["model_config_list"], {"config": entry}]}
