"""INT8: calibration, and where that loses too much, some layers in float or training with fake quantization.

Which result is kept is judged on training pictures that neither calibration nor training has seen. They are few, and on
a few dozen pictures mAP is known to a point or two only, so results are told apart by their fidelity: mAP@0.5:0.95 with
what the float network finds there as the truth, which needs no labels either. Whether calibration loses too much is
judged by mAP on up to 300 labelled training pictures: it has learned from them nothing but ranges.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawkeye import artifact, keys
from hawkeye.artifact import Artifact, Format, digest
from hawkeye.compress.calibrate import calibrate, check_input, write_int8
from hawkeye.compress.device import claim
from hawkeye.compress.diagnose import find_parent
from hawkeye.compress.export import canvas_of, openvino_infer
from hawkeye.compress.int8_checks import CONFIDENT, distance
from hawkeye.compress.quantizers import Quantization, load, read_ir
from hawkeye.config import EvaluateConfig, QuantizeConfig
from hawkeye.data import sample, training_images
from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, ModelError
from hawkeye.evaluate import Truth, coco_map, detect_all
from hawkeye.progress import say
from hawkeye.records import RuntimeName
from hawkeye.report_text import quantization_step
from hawkeye.runtime import open_file

_TRIES = 8  # layers that may be left in float
_LOOKED_AT = 16  # held-out pictures that the distance from float is measured on
_JUDGED = 300  # labelled pictures at most that the loss of calibration is judged on


def quantize(source: Artifact, config: QuantizeConfig, *, out: Path) -> Artifact:
    """Quantize an exported detector to INT8, as OpenVINO IR and as Q/DQ ONNX that hold the same integers.

    Pictures come from the training split or the folder of unlabelled pictures, never from validation.

    Args:
        source: an artefact with ONNX and OpenVINO files; for more than calibration, with its checkpoint as well.
        config: settings; `data` or `images` is needed.
        out: folder that everything is written to.

    Returns:
        The artefact that was kept. Its details hold the `story`: each step's accuracy on held-out training pictures,
        its latency, and which layers stayed in float and why.

    Raises:
        DataError: fewer than 10 calibration pictures.
        ModelError: the artefact is not exported, is INT8 already, or takes pictures in another layout than RGB planes.
        ConfigError: another imgsz than the export's, or a GPU is asked for and there is none.
        ExportError: a convolution was not quantized, the decode was, or PyTorch and the two files disagree.
    """
    if source.stage == "quantize":
        raise _int8_already(source)
    source.path("openvino"), source.path("onnx")
    if config.imgsz not in (None, source.spec.imgsz):
        raise ConfigError("the export has another input size", got=config.imgsz, expected=source.spec.imgsz,
                          mend="export at that size first")  # fmt: skip
    check_input(read_ir(source.path("openvino")))
    pictures, held, key = keys.quantize(source.sha256, config)
    if (done := artifact.reuse(out, key)) is not None:
        return done
    if config.mode != "ptq":
        source.path("pytorch")
        claim(config.device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by torchrun
        return _with_others(source, config, pictures, held, out, key)
    return _alone(source, config, pictures, held, out, key)


def _int8_already(source: Artifact) -> ModelError:
    """The error that names what should have been given."""
    try:
        mend = f"name {find_parent(source).root}"
    except ModelError:
        mend = "name the folder that `hawkeye export` wrote"
    return ModelError(f"{source.root} is INT8 already", got=f"{source.name}, of the stage quantize",
                      expected=f"the float artefact {str(source.parent_sha256)[:12]}, of the stage export",
                      mend=mend)  # fmt: skip


def _alone(source: Artifact, config: QuantizeConfig, pictures: Sequence[Path], held: tuple[list[Path], list[Path]],
           out: Path, key: str) -> Artifact:  # fmt: skip
    if config.mode == "ptq":
        return calibrate(source, config, pictures, out=out, key=key)
    return _Story(source, config, pictures, held, out, key).run()


def _with_others(source: Artifact, config: QuantizeConfig, pictures: Sequence[Path],
                 held: tuple[list[Path], list[Path]], out: Path, key: str) -> Artifact:  # fmt: skip
    """The first process does everything; the others train with it, if it comes to that."""
    from hawkeye.compress import ranks
    from hawkeye.compress.training import first_rank, wait_for_all

    ranks.meet()
    if first_rank():
        made = _alone(source, config, pictures, held, out, key)
        ranks.from_first("made")
    elif ranks.from_first("") == "train":
        _Story(source, config, pictures, held, out, key).train(Artifact.load(out / "steps" / "ptq"))
        ranks.from_first("")
    wait_for_all()
    return made if first_rank() else Artifact.load(out)


@dataclass(frozen=True)
class Step:
    """One result on the way: its artefact and what was found on the held-out pictures."""

    name: str
    made: Artifact
    quantization: Quantization
    found: dict[str, Any]


class _Story:
    """Calibration, then further while accuracy is missed; at the end the better is kept."""

    def __init__(self, source: Artifact, config: QuantizeConfig, pictures: Sequence[Path],
                 held: tuple[list[Path], list[Path]], out: Path, key: str) -> None:  # fmt: skip
        self.source, self.config, self.pictures, self.held = source, config, pictures, held
        self.out, self.key, self.started = out, key, time.perf_counter()
        self.told: list[dict[str, Any]] = []
        labelled, _ = training_images(config.data, config.images)
        self.judged = sample(labelled, _JUDGED, config.seed)
        self.float_figures: dict[str, Any] = {}
        self.float_truth: list[Truth] = []
        self.canvases: NDArray[np.float32] | None = None

    def run(self) -> Artifact:
        """All steps that are needed."""
        path = self.source.path("openvino")
        self.float_figures = self._judge(path, "openvino-f32") | self._judge_widely(path, "openvino-f32")
        self._tell("float", "the network before quantization", self.float_figures)
        steps = [self._calibrated()]
        if self.config.mode == "auto" and not self._missed(steps[0]):
            return self._finish(steps, self._why_enough(steps[0]))
        if self.config.mode == "auto":
            steps.append(self._with_float_layers(steps[0]))
            if not self._missed(steps[-1]):
                return self._finish(steps, f"within {self.config.max_drop:g} points with some layers in float")
        steps.append(self._trained(steps[0]))
        return self._finish(steps, "the best on the held-out pictures", gate=self.config.mode == "auto")

    def _calibrated(self) -> Step:
        key = digest("ptq", self.key)
        made = calibrate(self.source, self.config, self.pictures, out=self.out / "steps" / "ptq", key=key)
        quantization = load(made.path("openvino"), self.source.path("onnx"))
        return self._step("ptq", "calibration alone", made, quantization)

    def _with_float_layers(self, ptq: Step) -> Step:
        """The worst layers in float, one after another, while each helps and the latency allows."""
        from hawkeye.compress.sensitivity import latencies_ms, sensitivity

        best, left = ptq, 0
        worst = [layer for layer in sensitivity(self.source, ptq.quantization, self.pictures) if layer.gain > 0]
        for layer in worst[:_TRIES]:
            quantization = best.quantization.without(layer.maps)
            folder = self.out / "steps" / f"float-{left}"
            made = self._written(quantization, folder, {"left_in_float": layer.name})
            quick, slow = latencies_ms([ptq.made.path("openvino"), made.path("openvino")], self.source.spec)
            if slow > self.config.max_slowdown * quick:
                why = (
                    f"{layer.name} stays INT8: in float the network takes {slow / quick:.2f} times as long, more than "
                )
                self._tell("float layers", f"{why}{self.config.max_slowdown:g}", {"latency_ms": round(slow, 3)})
                continue
            tried = self._step("float layers", f"{layer.name} in float: INT8 there costs most of what is left",
                               made, quantization, base=ptq.made)  # fmt: skip
            if self._value(tried) > self._value(best):
                best, left = tried, left + 1
                if not self._missed(best):
                    break
        return best

    def train(self, ptq: Artifact) -> tuple[Quantization, dict[str, Any]]:
        """Train behind fake quantization, from calibration's record."""
        from hawkeye.compress import qat

        labelled, unlabelled = training_images(self.config.data, self.config.images)
        aside = {*self.held[0], *self.held[1]}
        learn = ([p for p in labelled if p not in aside], [p for p in unlabelled if p not in aside])
        quantization = load(ptq.path("openvino"), self.source.path("onnx"))
        return qat.train(self.source, quantization, self.config, learn, sum(self.held, []), state=self._state)

    @property
    def _state(self) -> Path:
        return self.out / "training" / f"{self.key[:16]}.pt"

    def _trained(self, ptq: Step) -> Step:
        from hawkeye.compress import ranks

        folder = self.out / "steps" / "qat"
        ranks.from_first("train")
        quantization, told = self.train(ptq.made)
        made = self._written(quantization, folder, {"qat": told})
        why = "quantization-aware training"
        if told["excluded"]:
            why += "; left in float: " + ", ".join(f"{item['node']} ({item['why']})" for item in told["excluded"])
        if told["gave_up"]:
            why += "; it broke down a fourth time, after three roll-backs, so this is calibration's result"
        step = self._step("qat", why, made, quantization, base=ptq.made)
        self._state.unlink(missing_ok=True)
        return step

    def _written(self, quantization: Quantization, folder: Path, details: dict[str, Any]) -> Artifact:
        """Both files of a record of quantizers, made over calibration's."""
        ptq = Artifact.load(self.out / "steps" / "ptq")
        started = time.perf_counter()
        of_calibration = ("calibration_images", "calibration_digest", "calibration_seconds", "weight_bits",
                          "weight_scales", "warnings")  # fmt: skip
        kept = {name: value for name, value in ptq.details.items() if name in of_calibration}
        return write_int8(self.source, read_ir(ptq.path("openvino")), quantization, self.pictures, self.config,
                          kept | details, out=folder, key=digest(folder.name, self.key), started=started)  # fmt: skip

    def _step(self, name: str, why: str, made: Artifact, quantization: Quantization, *,
              base: Artifact | None = None) -> Step:  # fmt: skip
        from hawkeye.compress.sensitivity import latencies_ms

        path = made.path("openvino")
        found = self._judge(path, "openvino-int8")
        if name != "qat":  # which has learned from most of them
            found |= self._judge_widely(path, "openvino-int8")
        found["distance"] = self._distance(path)
        own, *others = latencies_ms([path, *([base.path("openvino")] if base is not None else [])], made.spec)
        found["latency_ms"] = round(own, 3)
        for other in others:  # measured in turns: what another step took at another time tells nothing
            found["latency_ratio"] = round(own / other, 3)
        found["float_layers"] = quantization.in_float()
        for figure, drop in (("map50", "drop"), ("judged_map50", "judged_drop")):
            if figure in found:
                found[drop] = round(100 * (self.float_figures[figure] - found[figure]), 3)
        self._tell(name, why, found)
        return Step(name, made, quantization, found)

    def _judge(self, path: Path, runtime: RuntimeName) -> dict[str, Any]:
        """On the held-out pictures: fidelity, and accuracy where there are labels."""
        spec, labelled = self.source.spec, len(self.held[0])
        opened = open_file(path, runtime=runtime, spec=spec)
        pictures = [*self.held[0], *self.held[1]]
        found, truth, _ = detect_all(opened, EvaluateConfig(), pictures, title=f"held-out pictures, {path.stem}")
        if not self.float_truth:
            self.float_truth = [_as_truth(d, t) for d, t in zip(found, truth, strict=True)]
        figures = {}
        if any(len(item.class_id) for item in self.float_truth):
            figures["fidelity"] = round(coco_map(found, self.float_truth, spec.names)[1], 5)
        if any(len(item.class_id) for item in truth[:labelled]):
            map50, map50_95, _ = coco_map(found[:labelled], truth[:labelled], spec.names)
            figures |= {"map50": round(map50, 5), "map50_95": round(map50_95, 5)}
        return figures

    def _judge_widely(self, path: Path, runtime: RuntimeName) -> dict[str, Any]:
        """Accuracy on many labelled training pictures; nothing where there are none."""
        if not self.judged:
            return {}
        opened = open_file(path, runtime=runtime, spec=self.source.spec)
        found, truth, _ = detect_all(opened, EvaluateConfig(), self.judged, title=f"training pictures, {path.stem}")
        if not any(len(item.class_id) for item in truth):
            return {}
        map50 = coco_map(found, truth, self.source.spec.names)[0]
        return {"judged_map50": round(map50, 5), "judged_pictures": len(truth)}

    def _distance(self, path: Path) -> float:
        """Mean score difference from the float network on held-out pictures; needs no labels."""
        if self.canvases is None:
            pictures = [*self.held[0], *self.held[1]][:_LOOKED_AT]
            self.canvases = np.stack([canvas_of(p, self.source.spec.imgsz) for p in pictures])
            self.exact = openvino_infer(self.source.path("openvino"))(self.canvases)
        return float(distance(openvino_infer(path)(self.canvases), self.exact)["mean_score"] or 0.0)

    def _value(self, step: Step) -> tuple[float, float]:
        """Higher is better: fidelity, and where that is equal or unknown, closeness to float."""
        return step.found.get("fidelity", 0.0), -step.found["distance"]

    def _missed(self, step: Step) -> bool:
        return step.found.get("judged_drop", -1.0) > self.config.max_drop

    def _why_enough(self, step: Step) -> str:
        if "judged_drop" in step.found:
            return f"calibration is within {self.config.max_drop:g} points, so nothing further was needed"
        return "without labels accuracy cannot be judged, so calibration stays; --int8 qat trains all the same"

    def _tell(self, name: str, why: str, found: dict[str, Any]) -> None:
        self.told.append({"step": name, "why": why, **found})
        say(f"  {self.source.name}+int8, {quantization_step(self.told[-1])}")

    def _gate(self, best: Step) -> str:
        """What is known of the accuracy that auto was to reach, where nothing has been shown to reach it."""
        if "judged_drop" in best.found:
            return (f"; {best.found['judged_drop']:.2f} points are lost on training pictures, more than "
                    f"{self.config.max_drop:g}")  # fmt: skip
        return (f"; that it loses no more than {self.config.max_drop:g} points could not be shown: it has learned from "
                "the pictures that this is judged on")  # fmt: skip

    def _finish(self, steps: Sequence[Step], why: str, *, gate: bool = False) -> Artifact:
        best = max(steps, key=self._value)  # of equals the first, which is the simpler
        if best is not steps[-1]:
            why = f"{best.name} was as good as or better than what came after it"
        if gate:
            why += self._gate(best)
        self.told.append({"step": "kept", "why": why, "kept": best.name})
        say(f"  {self.source.name}+int8: kept {best.name}, {why}")
        files: dict[Format, Path] = {}
        with artifact.storage_errors(self.out):
            for fmt in best.made.files:
                path = best.made.path(fmt)
                files[fmt] = self.out / path.relative_to(best.made.root)
                if fmt == "openvino":
                    shutil.copytree(path.parent, files[fmt].parent, dirs_exist_ok=True)
                else:
                    shutil.copyfile(path, files[fmt])
        held = {"labelled": len(self.held[0]), "unlabelled": len(self.held[1])}
        result = Artifact.create(
            self.out, files, started=self.started, name=best.made.name, stage="quantize", spec=best.made.spec,
            params=best.made.params, macs=best.made.macs, parent_sha256=self.source.sha256, key=self.key,
            config=keys.settings(self.config), seed=self.config.seed,
            details={**best.made.details, "story": self.told, "kept": best.name, "held_out": held},
        )  # fmt: skip
        shutil.rmtree(self.out / "steps", ignore_errors=True)
        return result


def _as_truth(found: Detections, labels: Truth) -> Truth:
    """What a network is sure of in a picture, as if it were the picture's labels."""
    sure = found.score > CONFIDENT
    return Truth(labels.hw, found.xyxy[sure], found.class_id[sure])
