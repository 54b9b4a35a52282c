"""Loads a program of benchmarks/ as a module, so that tests can call its functions."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def load(name: str) -> Any:
    """The program benchmarks/{name}.py."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def told(printed: str) -> Any:
    """What a study has printed as JSON, before its table."""
    return json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
