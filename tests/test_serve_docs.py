"""docs/serve.md says what the service does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
import serve_world as world  # noqa: E402
from hawkeye.errors import ConfigError  # noqa: E402
from hawkeye.serve.app import build_app  # noqa: E402
from hawkeye.serve.config import ServeConfig, load_config  # noqa: E402
from hawkeye.serve.core import Service  # noqa: E402

GUIDE = (Path(__file__).parents[1] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_every_operation_has_a_row_with_its_role(tmp_path: Path) -> None:
    service = Service(world.config_of(tmp_path))
    operations = {
        f"{method.upper()} {path}": operation["x-role"].replace("public", "–")
        for path, item in build_app(service, pages=False).openapi()["paths"].items()
        for method, operation in item.items()
    }
    service.stop()
    told = {
        operation: row.split("|")[2].strip()
        for row in GUIDE.splitlines() if row.startswith("| `")
        for operation in re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`]*)`", row.split("|")[1])
    }  # fmt: skip
    assert told == operations


def test_every_setting_has_a_row(tmp_path: Path) -> None:
    table = GUIDE.partition("| setting |")[2].partition("\n\n")[0]
    told = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert told == set(ServeConfig.model_fields)


def test_the_example_of_a_configuration(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "serve.toml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "serve.toml", environ={"HAWKEYE_SERVE_PORT": "9000"}, host="127.0.0.1")
    assert (config.port, config.host, config.source[0].rules[0].name) == (9000, "127.0.0.1", "door")
    assert config.mqtt is not None and config.token[0].role == "viewer"


@pytest.mark.parametrize(
    ("environ", "flags", "words"),
    [
        ({"HAWKEYE_SERVE_PROT": "9"}, {}, "expected: HAWKEYE_SERVE_PORT, perhaps"),
        ({"HAWKEYE_SERVE_TOKEN": "x"}, {}, r"\[\[token\]\]"),
        ({"HAWKEYE_SERVE_PORT": "many"}, {}, "correct it in the environment: HAWKEYE_SERVE_PORT"),
        ({}, {"port": 70_000}, "correct it on the command line"),
        ({}, {}, "conf cannot.*correct it in .*serve.toml"),
    ],
)
def test_a_wrong_setting_is_told_where_it_is(tmp_path: Path, environ: dict[str, str], flags: dict[str, int],
                                             words: str) -> None:  # fmt: skip
    (tmp_path / "serve.toml").write_text("port = 1\nconf = 7\n" if not (environ or flags) else "port = 1\n")
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        load_config(tmp_path / "serve.toml", environ={**environ, "PORT": "2"}, **flags)
