"""Where a detector loses its accuracy on the way from PyTorch to INT8, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye import keys
from hawkeye.artifact import RECORD, Artifact
from hawkeye.compress.int8_checks import distance
from hawkeye.config import EvaluateConfig, QuantizeConfig
from hawkeye.data import list_images, load_dataset, read_image, read_labels, readable, sample
from hawkeye.errors import DataError, HawkeyeError, ModelError
from hawkeye.evaluate import Matches, check_names, coco_map, detect_all, drop_interval, match
from hawkeye.geometry import Letterbox
from hawkeye.progress import progress
from hawkeye.records import RuntimeName
from hawkeye.runtime import Runtime, load_runtime

FALL = 0.5  # points of mAP@0.5 from one stage to the next that count as a fall
APART = 0.5  # distance of two means, in standard deviations, from which on pictures count as different
_SHARE = 0.25  # of all objects: a difference from which on the sizes of objects count as different
_RESAMPLES = 200
_COMPARED = 8  # pictures on which raw outputs are compared
_SMALL, _LARGE = 32**2, 96**2  # COCO's limits of object sizes, in pixels of area

_ADVICE = {
    "ONNX": "the export changes the network: export again with another --opset, or without --simplify",
    "OpenVINO": "OpenVINO computes something else than ONNX Runtime from the same graph: export with another --opset, "
                "and report it with both files",
    "OpenVINO INT8": "quantization costs the accuracy: run `hawkeye quantize --mode qat`, or calibrate on more "
                     "pictures, and more typical ones",
    "ONNX Runtime INT8": "ONNX Runtime computes INT8 differently here: use the OpenVINO file",
}  # fmt: skip


def diagnose(
    model: Artifact,
    *,
    data: Path,
    images: Path | None = None,
    original: Artifact | None = None,
    samples: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Walk PyTorch → ONNX → OpenVINO → INT8 on the same pictures and find the first place where accuracy falls.

    Args:
        model: an exported or quantized artefact.
        data: data.yaml; accuracy is measured on its validation pictures, the calibration pictures are of its training
            pictures.
        images: unlabelled pictures that were calibrated on as well.
        original: the float artefact that a quantized one was made from; looked for where left out.
        samples: validation pictures at most.
        seed: of their choice.

    Returns:
        JSON-ready: stages (name, map50, map50_95, change in points and its 95 % interval, score_difference to the
        stage before), first_fall (the first stage that surely loses, or None), spread (None for a model that is not
        quantized, or whose calibration pictures are unknown), and advice.

    Raises:
        ModelError: the float artefact of a quantized one is not to be found.
        DataError: the data cannot be used.
    """
    dataset = load_dataset(data)
    check_names(dataset, model.spec.names)
    pictures = sample(readable(dataset.split("val"))[0], samples, seed)
    walk = _walk(model, original)
    if images is not None:
        list_images(images)  # that there is no such folder is to be told before the work
    config = EvaluateConfig(data=data)
    stages: list[dict[str, Any]] = []
    advice: list[str] = []
    before: NDArray[np.float32] | None = None
    last: Matches | None = None
    for name, artifact, runtime in walk:
        opened = load_runtime(artifact, runtime)
        found, truth, read = detect_all(opened, config, pictures, title=name)
        map50, map50_95, _ = coco_map(found, truth, model.spec.names)
        raw = _raw(opened, pictures[:_COMPARED])
        matches = match(found, truth, len(model.spec.names), [path.name for path in read])
        row: dict[str, Any] = {"stage": name, "map50": map50, "map50_95": map50_95, "change": None, "ci95": None,
                               "score_difference": None}  # fmt: skip
        if before is not None and last is not None:
            low, high = drop_interval(last, matches, resamples=_RESAMPLES)
            row["change"], row["ci95"] = 100 * (map50 - stages[-1]["map50"]), [-high, -low]
            row["score_difference"] = distance(raw, before)["mean_score"]
        if not stages:
            other = detect_all(_Swapped(opened), config, pictures, title=f"{name}, red and blue swapped")[0]
            swapped = coco_map(other, truth, model.spec.names)[0]
            if 100 * (swapped - map50) > FALL:
                advice.append(f"with red and blue swapped the network finds more (mAP@0.5 {swapped:.3f} instead of "
                              f"{map50:.3f}): it was trained on BGR pictures; train it on RGB, or swap the input "
                              "channels of its first convolution")  # fmt: skip
        before, last = raw, matches
        stages.append(row)
    falls = [row for row in stages if row["change"] is not None and row["change"] < -FALL]
    first = next((row["stage"] for row in falls if row["ci95"][1] < 0), None)
    if first is not None:
        advice.append(f"accuracy falls at {first}: {_ADVICE[first]}")
    elif falls:
        advice.append(f"{falls[0]['stage']} finds less ({falls[0]['change']:.1f} points), but that can be chance: "
                      f"{len(pictures)} pictures are too few to tell")  # fmt: skip
    spread = None
    if model.stage == "quantize":
        try:
            spread = _spread(model, data, images, pictures)
            advice += spread["differences"]
        except DataError as error:  # it was calibrated on others than those named now
            advice.append(f"the calibration pictures are unknown: {error.summary} in what is named now; name --data "
                          "and --images as `hawkeye quantize` was given them")  # fmt: skip
        left = model.details.get("warnings", [])
        advice += [f"noted when it was made: {line}" for line in left]
    if not advice:
        advice.append(
            f"nothing is wrong: no stage loses more than {FALL:g} points of mAP@0.5 on {len(pictures)} pictures"
        )
    return {"name": model.name, "pictures": len(pictures), "stages": stages, "first_fall": first, "spread": spread,
            "advice": advice}  # fmt: skip


def _walk(model: Artifact, original: Artifact | None) -> list[tuple[str, Artifact, RuntimeName]]:
    """The stages that there are files for, in order."""
    base = model if model.stage != "quantize" else original or find_parent(model)
    if model.stage == "quantize" and base.sha256 != model.parent_sha256:
        raise ModelError("this is not what the INT8 model was made from", got=base.root,
                         expected=f"the artefact {str(model.parent_sha256)[:12]}")  # fmt: skip
    walk: list[tuple[str, Artifact, RuntimeName]] = []
    for name, fmt, runtime in (("PyTorch", "pytorch", "pytorch-fp32"), ("ONNX", "onnx", "onnxruntime"),
                               ("OpenVINO", "openvino", "openvino-f32")):  # fmt: skip
        if fmt in base.files:
            walk.append((name, base, runtime))  # type: ignore[arg-type]
    if model.stage == "quantize":
        walk += [("OpenVINO INT8", model, "openvino-int8"), ("ONNX Runtime INT8", model, "onnxruntime")]
    if len(walk) < 2:
        raise ModelError("there is nothing to compare", got=sorted(model.files),
                         expected="an exported or a quantized model", mend="run `hawkeye export` first")  # fmt: skip
    return walk


def find_parent(model: Artifact) -> Artifact:
    """The float artefact of a quantized one: in the same run, or where `hawkeye quantize` exports it to.

    Raises:
        ModelError: not there.
    """
    root = model.root.resolve()
    for folder in (root / "export", *sorted(root.parent.glob("*")), *sorted(root.parent.parent.glob("3-export/*"))):
        if (folder / RECORD).is_file():
            try:
                found = Artifact.load(folder)
            except HawkeyeError:
                continue
            if found.sha256 == model.parent_sha256:
                return found
    raise ModelError("the float model of this INT8 model is not to be found", got=f"nothing that fits near {root}",
                     expected=f"an artefact with the content {str(model.parent_sha256)[:12]}",
                     mend="name its folder with --original")  # fmt: skip


class _Swapped:
    """A runtime that is given its pictures with red and blue swapped."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self.spec, self.name, self.threads = runtime, runtime.spec, runtime.name, runtime.threads
        self.precision_hint, self.precision_executed = runtime.precision_hint, runtime.precision_executed

    def infer(self, canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As the runtime's own."""
        return self._runtime.infer(np.ascontiguousarray(canvas[..., ::-1]))


def _raw(runtime: Runtime, pictures: Sequence[Path]) -> NDArray[np.float32]:
    """Raw outputs (N, 4 + nc, A)."""
    size = runtime.spec.imgsz
    canvas: NDArray[np.uint8] = np.empty((size, size, 3), np.uint8)
    outputs = []
    for path in pictures:
        image = read_image(path)
        Letterbox.fit((image.shape[0], image.shape[1]), size).apply_(image, canvas)
        outputs.append(runtime.infer(canvas).copy())
    return np.stack(outputs)


def _spread(model: Artifact, data: Path, images: Path | None, pictures: Sequence[Path]) -> dict[str, Any]:
    """What the calibration pictures look like beside those that accuracy is measured on."""
    known = {key: value for key, value in model.config.items() if key in QuantizeConfig.model_fields}
    config = QuantizeConfig.build(**(known | {"data": data, "images": images}))
    calibration = keys.quantize(model.parent_sha256 or "", config)[0]
    drawn = keys.pictures_digest(calibration)
    classes = len(model.spec.names)
    with progress("pictures", len(calibration) + len(pictures)) as task:
        a, b = (_look(group, classes, model.spec.imgsz, task.advance) for group in (calibration, pictures))
    differences = []
    if model.details.get("calibration_digest", drawn) != drawn:  # older models do not tell
        differences.append("it was calibrated on other pictures than would be chosen of those named now, which are "
                           "compared here: name --data and --images as `hawkeye quantize` was given them")  # fmt: skip
    for what in ("brightness", "contrast"):
        x, y = a[what], b[what]
        apart = abs(x["mean"] - y["mean"]) / max(1e-9, ((x["sd"] ** 2 + y["sd"] ** 2) / 2) ** 0.5)
        if apart > APART:
            differences.append(f"calibration pictures differ in {what}: {x['mean']:.0f} against {y['mean']:.0f} of "
                               "255; calibrate on pictures of the place and hours where it will be used")  # fmt: skip
    if sum(a["sizes"].values()):
        mine = _shares(a["sizes"])
        for size, share in _shares(b["sizes"]).items():
            if abs(share - mine[size]) > _SHARE:
                differences.append(f"{share:.0%} of the objects to be found are {size}, but {mine[size]:.0%} of those "
                                   "calibrated on; calibrate on pictures from the same distance")  # fmt: skip
        missing = [model.spec.names[c] for c, n in sorted(b["classes"].items(), key=lambda item: -item[1])
                   if not a["classes"].get(c)]  # fmt: skip
        if missing:
            differences.append(f"{len(missing)} classes are in no calibration picture, such as "
                               f"{', '.join(missing[:5])}; add pictures of them")  # fmt: skip
    for look in (a, b):
        look["classes"] = len(look["classes"])
    return {"calibration": a, "evaluation": b, "differences": differences}


def _look(pictures: Sequence[Path], classes: int, imgsz: int, advance: Any) -> dict[str, Any]:
    """Brightness and contrast (0 to 255), sizes of objects at the network's input, and classes of some pictures."""
    bright, contrast = [], []
    sizes = dict.fromkeys(("small", "medium", "large"), 0)
    counts: Counter[int] = Counter()
    for path in pictures:
        image = read_image(path)
        grey = cv2.cvtColor(cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        bright.append(float(grey.mean()))
        contrast.append(float(grey.std()))
        labels = read_labels(path, classes)
        height, width = image.shape[:2]
        scale = imgsz / max(height, width)
        for cls, _, _, w, h in labels:
            area = w * width * h * height * scale**2
            sizes["small" if area < _SMALL else "medium" if area < _LARGE else "large"] += 1
            counts[int(cls)] += 1
        advance()
    return {"pictures": len(pictures), "brightness": _mean(bright), "contrast": _mean(contrast), "sizes": sizes,
            "classes": dict(counts)}  # fmt: skip


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values))}


def _shares(counts: dict[str, int]) -> dict[str, float]:
    total = max(1, sum(counts.values()))
    return {name: count / total for name, count in counts.items()}
