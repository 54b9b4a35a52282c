"""Every setting of every stage: frozen, validated, and an error where a key is unknown.

The docstring under a field is its help on the command line.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hawkeye.errors import ConfigError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(value: object) -> float:
    """Seconds from `"90s"`, `"60m"`, `"1.5h"` or a number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(value).strip())
    if match is None:
        raise ValueError(f"got {value!r}, expected a duration like 90s, 60m or 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ImageSize = Annotated[int, Field(ge=64, le=1280, multiple_of=32)]
_Stage = TypeVar("_Stage", bound="StageConfig")


class Config(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @classmethod
    def build(cls, **values: Any) -> Self:
        """Make one from keywords; a value that does not fit is a ConfigError, not a pydantic traceback."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise config_error(error) from None

    def with_(self, **changes: Any) -> Self:
        """A validated copy with some values changed."""
        return type(self).build(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


class StageConfig(Config):
    """What every stage over pictures needs."""

    data: Path | None = None
    """data.yaml of a YOLO data set; training pictures come from its `train` entry."""
    images: Path | None = None
    """Folder of unlabelled pictures, instead of or beside --data."""
    imgsz: ImageSize | None = None
    """Side of the square network input in pixels; the model's own size when left out."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network is computed."""


class PruneConfig(StageConfig):
    """Structured pruning: how much, and by which measure of importance."""

    flops: Annotated[float, Field(gt=0)] = 0.7
    """Upper bound on the fraction of multiply-accumulates kept."""
    params: Annotated[float, Field(gt=0)] = 0.7
    """Upper bound on the fraction of parameters kept."""
    latency: Annotated[float, Field(gt=0)] | None = None
    """Upper bound on the fraction of latency kept, by this CPU's table; --flops 1 --params 1 lifts the other two."""
    latency_of: Literal["int8", "fp32"] = "int8"
    """Latency of the original that this is a fraction of: in INT8, as the result is, or in OpenVINO FP32."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads that latency is measured for; 0 takes all cores."""
    method: Literal["obs", "l1", "bn", "taylor"] = "obs"
    """Saliency: optimal brain surgeon with compensation, group L1 norm, BatchNorm scale, or Taylor on the loss."""
    align: Annotated[int, Field(ge=1, le=64)] = 8
    """Widths are multiples of this."""
    samples: Annotated[int, Field(ge=8)] = 96
    """Training pictures that the saliency is measured on."""
    rounds: Annotated[int, Field(ge=1, le=16)] = 4
    """Small steps in which obs reaches the bounds, everything measured again after each; fewer where separable is on
    and has left less to do."""
    separable: bool = True
    """First make 3x3 convolutions of neck and head depthwise and pointwise, with one to three filters a channel, where
    that costs less than channels."""
    hardswish: Annotated[float, Field(ge=0)] = 0.0
    """What Hardswish instead of SiLU, where INT8 gains most by it, may cost in units of recovery's loss; 0: none."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of its accuracy that a pruned network must have left for training to begin; 0 trains whatever is left."""

    def useless(self) -> list[tuple[str, float]]:
        """Options whose bound leaves nothing to prune; a bound on latency may stand alone."""
        if self.latency is not None:
            return [("--latency", self.latency)] if self.latency >= 1 else []
        return [(name, value) for name, value in (("--flops", self.flops), ("--params", self.params)) if value >= 1]


class RecoverConfig(StageConfig):
    """Recovery by distillation from the original, with labels beside it where there are any."""

    budget: Seconds = 3600.0
    """Wall clock for training, as 90s, 60m or 1.5h."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many steps instead of by the clock; makes a run repeatable to the bit."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Pictures per step; what a step costs beside its pictures is shared by them."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon with steps relative to each layer's own scale, or AdamW."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate: the relative change of a layer per step for muon; about 5e-5 for adamw."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of the run spent warming up."""
    head_frozen: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the run that trains the trunk with the head frozen, first."""
    mosaic: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a mosaic of four pictures."""
    teacher: Path | None = None
    """Checkpoint to learn from, such as a larger detector of the same classes; left out, the original."""
    labels: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the detection loss beside distillation, over half of the labelled pictures of each step."""
    features: Annotated[float, Field(ge=0)] = 4.0
    """Weight of the distance between what the trunk's blocks give, on the kept channels."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the averaged weights that are kept."""
    freeze_bn: bool = True
    """Keep BatchNorm's running statistics as they are."""
    trunk: Literal["kept", "trained"] = "kept"
    """Keep the leading layers that pruning has not touched as they are, which saves time, or train them too."""
    holdout: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of the training pictures set aside to choose the best weights on."""
    checks: Annotated[int, Field(ge=1)] = 10
    """How often the weights are judged on the held-out training pictures."""
    save_every: Annotated[Seconds, Field(le=60)] = 40.0
    """How long a killed run has to do again at most; 0 saves after each step."""


class QuantizeConfig(StageConfig):
    """INT8."""

    mode: Literal["auto", "ptq", "qat"] = "auto"
    """How: calibration alone (ptq), with training behind it (qat), or further only while accuracy is missed (auto)."""
    samples: Annotated[int, Field(ge=10)] = 300
    """Training pictures to calibrate on; fewer are used, with a warning, where there are fewer."""
    weight_bits: Literal[7, 8] | None = None
    """Bits of weights; left out, 8 on CPUs with VNNI or ARM's dot product, 7 on others, where sums of products could
    overflow; 8 where the system does not tell, with a warning."""
    per_channel: bool = True
    """A scale for each output channel of a layer's weights; otherwise one for the layer."""
    margin: Annotated[float, Field(ge=1, le=4)] = 1.1
    """How much wider the ranges of feature maps are than the mean over pictures of their extremes; of 1 to 1.3, what
    stays nearest to float on training pictures that calibration has not seen (docs/results/int8.md)."""
    max_drop: float = 0.5
    """Points of mAP@0.5 that INT8 may lose against float on 300 training pictures before auto goes further."""
    max_slowdown: Annotated[float, Field(ge=1)] = 1.1
    """Latency with some layers in float over that of all INT8, at most; 1 leaves none in float."""
    holdout: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of the training pictures set aside to choose between the results on (auto, qat)."""
    budget: Seconds = 1200.0
    """Wall clock for quantization-aware training, as 90s, 20m or 1.5h."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Train for this many steps instead of by the clock; makes a run repeatable to the bit."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Pictures per step of quantization-aware training."""
    lr: Annotated[float, Field(gt=0)] = 5e-5
    """Peak relative change of a layer per step of quantization-aware training; 2e-4 wins back more where calibration
    has harmed much, and leads away from float where it has not (docs/results/int8.md)."""
    ranges: Literal["trained", "frozen"] = "trained"
    """Whether training moves the calibrated ranges."""
    labels: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the detection loss beside distillation, over half of the labelled pictures of each step."""
    checks: Annotated[int, Field(ge=1)] = 10
    """How often training is judged on the held-out pictures."""
    save_every: Annotated[Seconds, Field(le=60)] = 40.0
    """How long a killed run has to do again at most; 0 saves after each step."""


class ExportConfig(StageConfig):
    """ONNX and OpenVINO."""

    opset: Annotated[int, Field(ge=12, le=20)] = 17
    """ONNX operator set."""
    dynamic: bool = False
    """Leave batch and picture size open."""
    simplify: bool = True
    """Fold constants and drop what computes nothing in the ONNX graph."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-2
    """Largest allowed difference to the network in PyTorch: scores as they are, boxes as a fraction of imgsz / 100."""


class EvaluateConfig(StageConfig):
    """Accuracy on labelled pictures."""

    split: Literal["val", "train", "test"] = "val"
    """Which pictures of the data set."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many of them, drawn by the seed; left out, all."""
    conf: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """Detections below this score are dropped."""
    iou: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Overlap above which non-maximum suppression drops the weaker box."""
    max_det: Annotated[int, Field(ge=1)] = 300
    """Detections kept per picture."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the runtime; 0 takes all cores."""
    also: tuple[Literal["onnxruntime", "pytorch-fp32"], ...] = ("onnxruntime", "pytorch-fp32")
    """Where a run measures FP32 besides OpenVINO, whose figures are the table's, to show that they agree."""


class BenchmarkConfig(StageConfig):
    """Latency, interleaved over all rows."""

    runs: Annotated[int, Field(ge=3)] = 60
    """Timed frames per row."""
    warmup: Annotated[int, Field(ge=0)] = 5
    """Frames before the clock starts."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of each runtime; 0 takes all cores."""
    frame: tuple[int, int] = (1080, 1920)
    """Height and width of the frame of the whole-frame figure, in pixels."""


class ServingConfig(Config):
    """What is fixed in the graph of a model repository."""

    conf: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Detections of a served model must score more than this (--layout)."""
    iou: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Overlap above which a served model drops the weaker of two boxes of a class (--layout)."""
    max_det: Annotated[int, Field(ge=1, le=10_000)] = 300
    """Detections that a served model keeps per picture (--layout)."""


class GateConfig(Config):
    """What a run must reach; a miss ends with exit code 3 and everything written."""

    max_drop: float = 1.5
    """Points of mAP@0.5 that the judged row may lose against the original."""
    max_params: Annotated[int, Field(ge=1)] | None = None
    """Parameters at most."""
    max_gflops: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """GFLOPs at most (2 x multiply-accumulates of one picture)."""
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """Bytes of the OpenVINO model (.xml and .bin) at most."""
    class_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Points of AP@0.5 that no class may fall by, against the original and against the released model."""
    class_objects: Annotated[int, Field(ge=1)] = 20
    """Classes with fewer labelled objects are not judged one by one: chance alone moves them by many points."""
    released_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.5
    """Points of mAP@0.5 below the released model, at the upper end of the 95 % interval of the paired bootstrap."""
    released_latency: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.1
    """Median latency over the released model's, both measured in turns on this machine."""
    row: Literal["original", "original+int8", "pruned", "pruned+int8"] | None = None
    """Row that is judged and released; left out, the most compressed one."""


class SearchConfig(Config):
    """What `--imgsz auto` and `hawkeye frontier` try."""

    sizes: Annotated[tuple[ImageSize, ...], Field(min_length=1)] = tuple(range(320, 641, 32))
    """Input sizes in pixels."""
    fractions: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.5, 0.333, 0.25, 0.2, 0.167)
    """Latencies of the frontier, as fractions of the original's in OpenVINO FP32."""
    kept: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.85, 0.7, 0.55)
    """Shares of the INT8 latency that small trial prunings keep."""
    samples: Annotated[int, Field(ge=8)] = 32
    """Training pictures that those measure saliency on."""
    rounds: Annotated[int, Field(ge=1, le=16)] = 2
    """Steps of those."""
    recovered: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of pruning's loss that recovery is expected to win back; an assumption that only orders candidates."""


class Recipe(Config):
    """The whole description of a run of `hawkeye optimize`."""

    schema_version: Literal[1] = 1
    model: Path | None = None
    """Checkpoint of the trained detector."""
    model_sha256: Sha256 | None = None
    """Content that the checkpoint must have; `hawkeye plan` shows it."""
    data: Path | None = None
    """data.yaml of a YOLO data set."""
    data_sha256: Sha256 | None = None
    """Content that the data set must have: class names, pictures and labels of all splits."""
    images: Path | None = None
    """Folder of unlabelled pictures."""
    images_sha256: Sha256 | None = None
    """Content that the unlabelled pictures must have."""
    store: str | None = None
    """Model store (folder or URL); its released model is one that the gates compare with."""
    skip: tuple[Literal["prune", "recover", "benchmark", "pictures"], ...] = ()
    """Stages to leave out."""
    imgsz: ImageSize = 640
    """Side of the square network input in pixels."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where networks are trained."""
    prune: PruneConfig = PruneConfig()
    recover: RecoverConfig = RecoverConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    export: ExportConfig = ExportConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    gates: GateConfig = GateConfig()
    search: SearchConfig = SearchConfig()

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a TOML recipe.

        Raises:
            ConfigError: not TOML, an unknown key, or a value that does not fit.
        """
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError("cannot read the recipe", got=error, mend="name an existing .toml file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML", got=error, mend="see configs/ for working recipes") from None
        try:
            return cls(**values)
        except ValidationError as error:
            raise config_error(error, f"{path} cannot be used") from None

    def stage(self, config: _Stage) -> _Stage:
        """A stage's settings with the run's data, size, seed and device filled in."""
        return config.with_(data=self.data, images=self.images, imgsz=self.imgsz, seed=self.seed, device=self.device)


def config_error(error: ValidationError, summary: str = "a setting cannot be used") -> ConfigError:
    """One readable error out of pydantic's list."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "value"
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key")
        else:
            lines.append(f"{where}: {item['msg']} (got {item.get('input')!r})")
    return ConfigError(
        summary, got="; ".join(lines), mend="correct it; the command's --help says what each setting takes"
    )
