"""What a sweep tries: settings of a recipe with several values each, as trials with names that stay."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawkeye.artifact import digest
from hawkeye.config import Config, Recipe
from hawkeye.errors import ConfigError

Space = Mapping[str, Sequence[Any]]
# Settings that are no description of a run, or that a sweep sees to itself.
_OWN = {"schema_version", "skip", "store", "model", "data", "images", "seed", "gates"}


@dataclass(frozen=True)
class Trial:
    """One combination.

    Attributes:
        name: of its folder: its values in short, and a hash of what they are.
        changes: values by setting, such as {"prune.flops": 0.7}.
        recipe: the whole run.
    """

    name: str
    changes: dict[str, Any]
    recipe: Recipe


def make_trials(base: Recipe, space: Space, *, limit: int | None = None, seed: int = 0) -> list[Trial]:
    """All combinations, or a random choice of `limit` of them that the seed decides, in a random order.

    Raises:
        ConfigError: nothing varies, a setting that does not exist, or a value that does not fit.
    """
    if not space or not all(space.values()):
        raise ConfigError("a sweep needs something to vary", got="no values",
                          mend="give some values with commas, such as --flops 0.6,0.7,0.8")  # fmt: skip
    for key in space:
        if key.partition(".")[0] in _OWN:
            raise ConfigError(f"a sweep cannot vary {key}", expected="a setting of a stage, or imgsz",
                              mend="start a sweep of its own for each")  # fmt: skip
    combinations = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    random.Random(seed).shuffle(combinations)  # so that what is stopped early is stopped by all kinds of rivals
    return [Trial(_name(changes), changes, apply(base, changes)) for changes in combinations[:limit]]


def apply(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with some settings changed.

    Raises:
        ConfigError: a setting that does not exist, or a value that does not fit.
    """
    recipe = base
    for key, value in changes.items():
        stage, _, name = key.rpartition(".")
        part: Config = getattr(recipe, stage) if stage in Recipe.model_fields else recipe
        if name not in type(part).model_fields or (stage and part is recipe):
            raise ConfigError(f"there is no setting {key!r}", got=key,
                              expected="such as prune.flops, recover.lr or imgsz")  # fmt: skip
        changed = part.with_(**{name: value})
        recipe = recipe.with_(**{stage: changed}) if stage else changed  # type: ignore[assignment]
    return recipe


def parse_values(text: str) -> list[Any]:
    """Values with commas, as numbers where they are some.

    Raises:
        ConfigError: an empty one.
    """
    values = [part.strip() for part in text.split(",")]
    if not all(values):
        raise ConfigError("an empty value", got=text, expected="values with commas, such as 0.6,0.7")
    return [_value(part) for part in dict.fromkeys(values)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _name(changes: Mapping[str, Any]) -> str:
    words = [f"{key.rpartition('.')[2]}-{Path(str(value)).stem if isinstance(value, str) else value}"
             for key, value in changes.items()]  # fmt: skip
    short = re.sub(r"[^\w.-]+", "-", "_".join(words))[:80]
    return f"{short}_{digest(dict(changes))[:6]}"
