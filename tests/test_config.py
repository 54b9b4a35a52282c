"""Settings: shipped recipes, refusals that name the key, durations, and the run's values in every stage."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pydantic import ValidationError

from hawkeye.config import EvaluateConfig, PruneConfig, Recipe, RecoverConfig, parse_duration
from hawkeye.errors import ConfigError
from hawkeye.options import RunOptions

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
STAGES = ("prune", "recover", "quantize", "export", "evaluate", "benchmark")


def test_recipes_are_shipped() -> None:
    assert {path.name for path in RECIPES} >= {"yolov8n-cpu.toml", "blood-cells.toml", "demo.toml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_can_be_used(path: Path) -> None:
    recipe = Recipe.load(path)
    assert 0 < recipe.prune.flops < 1 and 0 < recipe.prune.params < 1
    assert recipe.model is None and recipe.data is None, "paths are given on the command line"
    assert recipe.quantize.samples >= 300
    text = path.read_text()
    assert "#" in text and f"configs/{path.name}" in text, "a recipe explains itself and shows its command"


def test_recipes_differ_where_they_say_so() -> None:
    cells, coco = (Recipe.load(RECIPES[0].parent / f"{name}.toml") for name in ("blood-cells", "yolov8n-cpu"))
    assert cells.prune.flops < coco.prune.flops and coco.recover.steps == 3000
    assert cells.gates.max_drop < coco.gates.max_drop == 1.5


def test_a_budget_on_the_command_line_replaces_the_steps_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[recover]\nsteps = 12000\n")
    assert RunOptions(config=path).recipe(None).recover.steps == 12000
    assert RunOptions(config=path, budget="11m").recipe(None).recover == RecoverConfig(budget=660.0)
    assert RunOptions(config=path, budget="11m", steps=50).recipe(None).recover.steps == 50


def test_demo_recipe_is_what_the_demo_does() -> None:
    from hawkeye.demo import demo, recipe

    model, data = Path("m.pt"), Path("d.yaml")
    budget = parse_duration(inspect.signature(demo).parameters["budget"].default)
    shipped = Recipe.load(next(path for path in RECIPES if path.stem == "demo"))
    assert shipped.with_(model=model, data=data) == recipe(model, data, budget, own=False)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("90s", 90), ("60m", 3600), ("1.5h", 5400), ("45", 45), (" 2 m ", 120), (7, 7), (0.5, 0.5)],
)
def test_duration(given: object, seconds: float) -> None:
    assert parse_duration(given) == seconds
    assert RecoverConfig.build(budget=given).budget == seconds


@pytest.mark.parametrize("given", ["", "m", "1d", "-5s", "1h30m", "nan", True, None, [1]])
def test_what_is_no_duration(given: object) -> None:
    with pytest.raises(ConfigError, match="budget"):
        RecoverConfig.build(budget=given)


# (TOML, what the message must name)
REFUSED = [
    pytest.param("[prune]\nflop = 0.7", "prune.flop: unknown key", id="a slip in a key"),
    pytest.param("[prunes]\nflops = 0.7", "prunes: unknown key", id="a slip in a table"),
    pytest.param("[prune]\nflops = 0", "prune.flops", id="nothing kept"),
    pytest.param('[prune]\nmethod = "magic"', "prune.method", id="a method that does not exist"),
    pytest.param("imgsz = 100", "imgsz", id="not a multiple of the stride"),
    pytest.param("imgsz = 64000", "imgsz", id="a picture that fills the memory"),
    pytest.param('device = "tpu"', "device", id="a device that is not supported"),
    pytest.param("schema_version = 2", "schema_version", id="a recipe from the future"),
    pytest.param("[quantize]\nsamples = 1", "quantize.samples", id="too few to calibrate on"),
    pytest.param('[recover]\nbudget = "soon"', "recover.budget", id="not a duration"),
    pytest.param("[recover]\nholdout = 0.0", "recover.holdout", id="nothing to choose weights on"),
    pytest.param("[evaluate]\niou = 1.0", "evaluate.iou", id="an open bound"),
    pytest.param("prune = 3", "prune", id="a number for a table"),
    pytest.param("[prune\n", "is not TOML", id="not TOML"),
]


@pytest.mark.parametrize(("text", "named"), REFUSED)
def test_refused_recipe_names_the_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    assert named in str(caught.value) and str(path) in str(caught.value) and caught.value.exit_code == 2


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("imgsz = 1\n[prune]\nflops = -1\nspeed = 2\n")
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    assert all(name in str(caught.value) for name in ("imgsz", "prune.flops", "prune.speed"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["no file", "not text"])
def test_recipe_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="to mend it|not TOML"):
        Recipe.load(path)


def test_settings_are_frozen_and_copies_are_validated() -> None:
    config = PruneConfig()
    with pytest.raises(ValidationError):
        config.flops = 0.5  # type: ignore[misc]
    assert config.with_(flops=0.5).flops == 0.5 and config.flops == 0.7
    with pytest.raises(ConfigError, match="flops"):
        config.with_(flops=-0.5)
    with pytest.raises(ConfigError, match="unknown key"):
        config.with_(flop=0.5)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_gets_the_runs_values_and_keeps_its_own(stage: str) -> None:
    own: dict[str, dict[str, object]] = {
        "prune": {"rounds": 2}, "recover": {"batch": 3}, "quantize": {"samples": 11},
        "export": {"opset": 13}, "evaluate": {"split": "test"}, "benchmark": {"runs": 5},
    }  # fmt: skip
    recipe = Recipe.build(data=Path("d.yaml"), images=Path("pictures"), imgsz=320, seed=9, device="cuda", **own)
    config = recipe.stage(getattr(recipe, stage))
    assert (config.data, config.images, config.imgsz, config.seed, config.device) == (
        Path("d.yaml"), Path("pictures"), 320, 9, "cuda",
    )  # fmt: skip
    for name, value in own[stage].items():
        assert getattr(config, name) == value


def test_recipe_survives_being_written_and_read() -> None:
    recipe = Recipe.build(data=Path("d.yaml"), prune=PruneConfig(flops=0.6), evaluate=EvaluateConfig(split="test"))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("stage", ["", *STAGES, "gates", "search"])
def test_every_setting_explains_itself(stage: str) -> None:
    """The docstring under a field is its help on the command line, so none may lack it."""
    model = type(getattr(Recipe(), stage)) if stage else Recipe
    nested = {*STAGES, "gates", "search", "schema_version"} if not stage else set()
    silent = [name for name, field in model.model_fields.items() if name not in nested and not field.description]
    assert not silent
