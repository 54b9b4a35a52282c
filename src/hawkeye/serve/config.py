"""Settings of the service: one TOML file, then environment (`HAWKEYE_SERVE_PORT` and so on), then flags."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hawkeye.environment import cpu_count
from hawkeye.errors import ConfigError
from hawkeye.serve.schemas import Role, RuleSpec

_MAX_FILE_BYTES = 1_000_000
_PREFIX = "HAWKEYE_SERVE_"
_LISTS, _TABLES = ("models", "networks", "allowed_hosts"), ("token", "source", "mqtt")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class TokenConfig(_Settings):
    """A token that is always there: its SHA-256 in hexadecimal digits, never the token itself."""

    name: str = Field(min_length=1, max_length=80)
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    sources: tuple[str, ...] | None = None


class SourceConfig(_Settings):
    """A source that is added when the service starts."""

    address: str = Field(min_length=1, max_length=2000, repr=False)
    name: str | None = Field(None, pattern=r"^\w[\w.-]*$", max_length=80)
    loop: bool = False
    rules: tuple[RuleSpec, ...] = ()


class MqttConfig(_Settings):
    """The broker that alerts are published to."""

    host: str
    port: int = Field(1883, ge=1, le=65535)
    user: str | None = None
    password: str | None = Field(None, repr=False)
    tls: bool = False


class ServeConfig(_Settings):
    """Everything that can be set; the docstring under a field is its help."""

    model: str | None = None
    """Folder of a run or an artefact, an .xml or .onnx, or a model store. Left out, the demo's run."""
    models: tuple[str, ...] = ()
    """More models to choose from; of a run's folder, all its finished results are offered anyway."""
    follow_s: float = Field(30, ge=0)
    """Seconds between two looks for a new release in the model store; 0 serves what is chosen, and nothing else."""
    host: str = "127.0.0.1"
    """Address to listen at. Another one than loopback needs a token, and so does a `public_url`."""
    port: int = Field(8000, ge=0, le=65535)
    """Port; 0 takes a free one."""
    public_url: str | None = None
    """Where browsers reach the service if a proxy stands before it, such as https://hawkeye.example.com."""
    state: Path = Path("runs/serve")
    """Folder for the store: sources, rules, counts, tokens."""
    runs: Path = Path("runs")
    """Folder whose runs are shown."""
    media: Path | None = None
    """Files may be added as sources from below this folder only; left out, none by API or page."""
    networks: tuple[str, ...] = ()
    """Private networks that sources and webhooks may lie in, such as 192.168.1.0/24. Public addresses are always
    allowed; link-local and metadata addresses never."""
    cameras: bool = True
    """Whether cameras that are plugged in may be added."""
    rect: bool = True
    """The network's input takes the picture's shape; false: always the square, which costs more for wide pictures."""
    conf: float = Field(0.25, ge=0, le=1)
    """Threshold of requests that name none, and of A/B comparisons."""
    iou: float = Field(0.7, gt=0, le=1)
    """Overlap above which the weaker of two boxes is dropped."""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads of each network; 0 takes all cores."""
    engine: Literal["auto", "sync", "async"] = "sync"
    """How live streams share the network; "auto" measures both for a second at the start."""
    workers: int = Field(0, ge=0, le=64)
    """Detectors that work on requests at the same time; 0: all cores for a request that is alone, and as many detectors
    as the runtime thinks best when there are several."""
    waiting: int = Field(1, ge=0, le=1000)
    """Requests that may wait for each worker; more are answered 503 with Retry-After."""
    patience: float = Field(0.1, ge=0, le=100)
    """How long a request may wait for its turn while more come than can be worked on, in parts of what one usually
    takes; then it is answered 503. In a short burst it may wait a whole turn."""
    max_body_bytes: int = Field(20_000_000, ge=1000)
    """Largest body of a request."""
    max_pixels: int = Field(50_000_000, ge=64 * 64, le=50_000_000)
    """Largest picture of a request."""
    max_batch: int = Field(16, ge=1, le=1000)
    """Pictures in one batch."""
    max_sources: int = Field(16, ge=1, le=1000)
    """Sources at the same time."""
    max_viewers: int = Field(32, ge=1, le=10_000)
    """Live pictures and event streams sent at the same time."""
    rate_per_minute: int = Field(6000, ge=1)
    """Requests of one client per minute."""
    keep_days: float = Field(365, gt=0)
    """Counts older than this are removed."""
    keep_seconds_days: float = Field(2, gt=0)
    """Counts of each second are summed to minutes after this, and minutes to hours after thirty times this."""
    max_store_bytes: int = Field(2_000_000_000, ge=1_000_000)
    """The oldest counts are removed where the store would become larger."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names under which browsers may reach the service."""
    token: tuple[TokenConfig, ...] = ()
    """Tokens, as [[token]] tables."""
    source: tuple[SourceConfig, ...] = ()
    """Sources, as [[source]] tables."""
    mqtt: MqttConfig | None = None
    """MQTT broker for alerts."""

    @property
    def private(self) -> bool:
        """Whether only this machine can reach the service: by loopback, and with no proxy before it."""
        if self.public_url is not None:
            return False
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def most_requests(self) -> int:
        """Requests that may be worked on or wait, at most: a worker has one core at least."""
        return (self.workers or cpu_count()) * (1 + self.waiting)

    @field_validator("networks")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for text in networks:
            ipaddress.ip_network(text, strict=False)
        return networks


def load_config(
    file: Path | None = None, *, environ: Mapping[str, str] | None = None, **flags: Any
) -> ServeConfig:  # fmt: skip
    """Settings from a TOML file, the environment and flags, the later ones winning; flags of None do not count.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or variable, or a value that cannot be; says where.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            if file.stat().st_size > _MAX_FILE_BYTES:
                raise ConfigError(f"{file} is too large", got=f"{file.stat().st_size} bytes", expected=_MAX_FILE_BYTES)
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the settings in {file}", got=error.strerror) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is not TOML", got=error) from None
    places = dict.fromkeys(values, f"in {file}")
    for key, text in (os.environ if environ is None else environ).items():
        if key.startswith(_PREFIX):
            name = _named(key)
            values[name] = [part.strip() for part in text.split(",") if part.strip()] if name in _LISTS else text
            places[name] = f"in the environment: {key}"
    given = {name: value for name, value in flags.items() if value is not None}
    values |= given
    places |= dict.fromkeys(given, "on the command line")
    try:
        return ServeConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the setting {where} cannot be used", got=first["msg"],
                          expected=", ".join(ServeConfig.model_fields) if first["type"] == "extra_forbidden" else None,
                          mend=f"correct it {places.get(where.partition('.')[0], '')}".rstrip()) from None  # fmt: skip


def _named(key: str) -> str:
    """The setting that a variable of the environment is for.

    Raises:
        ConfigError: none; a typing error must not leave a limit or an address as it was without a word.
    """
    name = key.removeprefix(_PREFIX).lower()
    if name in _TABLES:
        table = "[mqtt]" if name == "mqtt" else f"[[{name}]]"
        raise ConfigError(f"{key} cannot be set in the environment", mend=f"write {table} into the file of --config")
    right = [field for field in ServeConfig.model_fields if field not in _TABLES]
    if name not in right:
        near = get_close_matches(name, right, 1, 0.0)[0]
        raise ConfigError(f"there is no setting {key}", expected=f"{_PREFIX}{near.upper()}, perhaps",
                          mend="correct its name, or unset it; docs/serve.md has all")  # fmt: skip
    return name
