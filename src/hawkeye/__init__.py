"""Hawkeye: makes a trained YOLO detector small and fast on ordinary CPUs, proves it, and runs it.

Public names are resolved on first use, so that `import hawkeye` loads neither OpenVINO nor torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Artifact": "artifact",
    "ModelSpec": "artifact",
    "BenchmarkConfig": "config",
    "EvaluateConfig": "config",
    "ExportConfig": "config",
    "PruneConfig": "config",
    "QuantizeConfig": "config",
    "Recipe": "config",
    "RecoverConfig": "config",
    "Detections": "detections",
    "HawkeyeError": "errors",
    "Detector": "runtime.detector",
    "benchmark": "benchmark",
    "evaluate": "evaluate",
    "export": "compress.export",
    "optimize": "pipeline",
    "prune": "compress.prune",
    "quantize": "compress.quantize",
    "recover": "compress.recover",
    "report": "report",
}
__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hawkeye' has no attribute {name!r}")
    return getattr(import_module(f"hawkeye.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `hawkeye.evaluate` the function, whoever has imported the module of that name.

    Python sets a submodule as an attribute of its package, which would hide the function of the same name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
