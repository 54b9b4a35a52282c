"""Ray, started and ended: embedded on this machine, or a cluster that runs already.

Quiet and alone: no dashboard, no usage statistics, no plots of its own, a bounded object store, a folder that is
removed afterwards, and no process left behind however this one ends (see `reaper.py`).
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hawkeye.environment import cpu_count
from hawkeye.errors import ConfigError, MissingExtraError
from hawkeye.scale import reaper

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_TQDM": "0", "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1", "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}  # fmt: skip
for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)  # Ray reads them when it is imported

try:
    import ray
except ModuleNotFoundError as error:
    raise MissingExtraError("scale", error.name or "ray") from None

OBJECT_STORE_BYTES = 128 * 2**20  # numbers of parts and figures go through it, never pictures
_CONNECT_S = 5.0
_MEND = "start one with `ray start --head` there, or leave --address out"


@contextmanager
def session(
    address: str | None, *, cpus: int | None = None, resources: dict[str, float] | None = None
) -> Iterator[Any]:
    """Ray while the block runs.

    Args:
        address: of a running cluster, as host:port, ray://host:port or auto; None starts Ray here.
        cpus: that Ray may hand out here; left out, all.
        resources: of this machine by name, beside its cores.

    Raises:
        ConfigError: nothing answers at the address.
    """
    if ray.is_initialized():  # a test's cluster, or a program that has Ray already
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": True}
    with _cluster(address, quiet) if address is not None else _embedded(cpus, resources, quiet):
        for part in ("ray.data", "ray.tune", "ray.train"):
            logging.getLogger(part).setLevel(logging.ERROR)
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _cluster(address: str, quiet: dict[str, Any]) -> Iterator[None]:
    _check(address)
    try:
        with _silence():
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray has many kinds for one thing
        raise ConfigError(f"no Ray cluster answers at {address}", got=str(error).splitlines()[0], mend=_MEND) from None
    yield


@contextmanager
def _embedded(cpus: int | None, resources: dict[str, float] | None, quiet: dict[str, Any]) -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="hawkeye-ray-")
    # Its input ends when this process does.
    guard = subprocess.Popen([sys.executable, "-m", reaper.__name__, folder], stdin=subprocess.PIPE)
    try:
        with _silence():
            ray.init(num_cpus=cpus or cpu_count(), resources=resources, include_dashboard=False,
                     object_store_memory=OBJECT_STORE_BYTES, _temp_dir=folder, **quiet)  # fmt: skip
        yield
    finally:
        guard.communicate()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Ray's C++ parts from writing to standard error while they start; what is wrong comes as an exception."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check(address: str) -> None:
    """Knock at the address first: Ray itself would wait for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster answers at {address}", got=error, expected="host:port of a Ray head node",
                          mend=_MEND) from None  # fmt: skip


def machines() -> int:
    """Machines of the session that are alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(node["Alive"] for node in nodes)
