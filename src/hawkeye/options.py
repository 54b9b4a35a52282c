"""Options that several commands share; the help of an option is the docstring of the setting that it fills."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from hawkeye.config import BenchmarkConfig, Config, GateConfig, PruneConfig, QuantizeConfig, Recipe, RecoverConfig
from hawkeye.errors import ConfigError

Kind = TypeVar("Kind", bound=Config)


def about(kind: type[Config], name: str) -> Parameter:
    """Help of an option out of the setting's docstring and default."""
    setting = kind.model_fields[name]
    value = f"{setting.default / 60:g}m" if name == "budget" else setting.default
    default = "" if value is None else f" Default: {value}."
    return Parameter(help=(setting.description or "") + default)


Out = Annotated[Path, Parameter(help="Folder to write into.")]
Data = Annotated[Path | None, about(Recipe, "data")]
Images = Annotated[Path | None, about(Recipe, "images")]
Size = Annotated[int | None, about(Recipe, "imgsz")]
OwnSize = Annotated[int | None, Parameter(help="Side of the network input in pixels; the model's own when left out.")]
Rect = Annotated[
    bool,
    Parameter(help="The network's input takes the picture's shape, in three steps, and spends little on grey padding. "
              "--no-rect: always the square, as in tables of accuracy."),
]  # fmt: skip
Seed = Annotated[int | None, about(Recipe, "seed")]
Device = Annotated[Literal["cpu", "cuda"] | None, about(Recipe, "device")]
Flops = Annotated[float | None, about(PruneConfig, "flops")]
Params = Annotated[float | None, about(PruneConfig, "params")]
Latency = Annotated[float | None, about(PruneConfig, "latency")]
Method = Annotated[Literal["obs", "l1", "bn", "taylor"] | None, about(PruneConfig, "method")]
LatencyOf = Annotated[Literal["int8", "fp32"] | None, about(PruneConfig, "latency_of")]
Align = Annotated[int | None, about(PruneConfig, "align")]
Separable = Annotated[bool | None, about(PruneConfig, "separable")]
Simpler = Annotated[float | None, about(PruneConfig, "hardswish")]
Budget = Annotated[str | None, about(RecoverConfig, "budget")]
Steps = Annotated[int | None, about(RecoverConfig, "steps")]
Teacher = Annotated[Path | None, about(RecoverConfig, "teacher")]
Threads = Annotated[int | None, about(BenchmarkConfig, "threads")]
Int8 = Annotated[Literal["auto", "ptq", "qat"] | None, about(QuantizeConfig, "mode")]
Model = Annotated[Path, Parameter(help="Checkpoint (.pt) or the folder of an artefact.")]
Until = Annotated[str | None, Parameter(help="End after this stage: original, prune, recover, export, quantize, "
                                        "evaluate, benchmark, compare or pictures.")]  # fmt: skip
Junit = Annotated[Path | None, Parameter(help="Write the gates as JUnit XML to this file, for CI.")]
Summary = Annotated[Path | None, Parameter(help="Write the outcome as Markdown to this file, for CI.")]
Store = Annotated[str, Parameter(help="Model store: a folder, or a URL such as s3://bucket/models.")]
Json = Annotated[bool, Parameter(help="Print JSON.", negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """What `optimize` and `plan` both take."""

    data: Data = None
    images: Images = None
    flops: Flops = None
    params: Params = None
    latency: Latency = None
    latency_of: LatencyOf = None
    method: Method = None
    align: Align = None
    separable: Separable = None
    hardswish: Simpler = None
    budget: Budget = None
    steps: Steps = None
    teacher: Teacher = None
    int8: Int8 = None
    max_drop: Annotated[float | None, about(GateConfig, "max_drop")] = None
    imgsz: Annotated[
        int | Literal["auto"] | None,
        Parameter(
            help="Side of the square network input in pixels; auto chooses it together with the widths, within "
            "--latency or, without one, within --max-drop, and lifts --flops and --params. "
            f"Default: {Recipe.model_fields['imgsz'].default}."
        ),
    ] = None
    seed: Seed = None
    device: Device = None
    config: Annotated[Path | None, Parameter(help="Recipe (.toml); options replace what it says.")] = None
    store: Annotated[str | None, about(Recipe, "store")] = None
    skip: Annotated[str | None, Parameter(help="Stages to leave out, with commas: prune, recover, benchmark, "
                                          "pictures.")] = None  # fmt: skip

    def recipe(self, model: Path | None) -> Recipe:
        """The recipe that was named, or the default one, with what was given in its place.

        Raises:
            ConfigError: the recipe or an option cannot be used.
        """
        base = Recipe.load(self.config) if self.config is not None else Recipe()
        if self.latency_of is not None and self.latency is None and base.prune.latency is None:
            raise ConfigError("--latency-of says of what --latency is a fraction", got="no --latency",
                              expected="both", mend="add --latency 0.6")  # fmt: skip
        if self.budget is not None:  # a clock replaces the recipe's steps, which it would otherwise lose to
            base = base.with_(recover=base.recover.with_(steps=None))
        return given(
            base, model=model, data=self.data, images=self.images, seed=self.seed,
            imgsz=None if self.imgsz == "auto" else self.imgsz,
            device=self.device, store=self.store,
            prune=given(base.prune, flops=self.flops, params=self.params, latency=self.latency,
                        latency_of=self.latency_of, method=self.method, align=self.align, separable=self.separable,
                        hardswish=self.hardswish),
            recover=given(base.recover, budget=self.budget, steps=self.steps, teacher=self.teacher),
            quantize=given(base.quantize, mode=self.int8),
            gates=given(base.gates, max_drop=self.max_drop),
        )  # fmt: skip

    @property
    def left_out(self) -> list[str]:
        """Stages of --skip."""
        return [name.strip() for name in (self.skip or "").split(",") if name.strip()]


def given(config: Kind, **values: Any) -> Kind:
    """The settings with what was given on the command line in place of what was there."""
    return config.with_(**{name: value for name, value in values.items() if value is not None})
