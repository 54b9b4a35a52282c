"""Parts of Hawkeye that are imported when they are first used, so that help is fast and the core needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from hawkeye.errors import MissingExtraError

# The extra that brings a package; torch and its friends are the rest.
_EXTRAS = {"fsspec": "store", "matplotlib": "report", "pyarrow": "parquet", "ray": "scale"} | dict.fromkeys(
    ("fastapi", "nicegui", "prometheus_client", "python_multipart", "starlette", "uvicorn"), "serve"
)


def load(module: str, *, extra: str | None = None) -> Any:
    """Import a module of Hawkeye; a package that it lacks is one line with the command that mends it.

    Args:
        module: full name.
        extra: that brings all that the module needs; left out, the one that brings the missing package.

    Raises:
        MissingExtraError: an optional package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "hawkeye"):
            raise
        raise MissingExtraError(extra or _EXTRAS.get(package, "compress"), package) from None


def lazy(module: str, name: str) -> Callable[..., Any]:
    """A function that imports its own implementation when it is called; see `load` for the errors."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(load(module), name)(*args, **kwargs)

    return call
