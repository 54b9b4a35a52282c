"""`hawkeye serve`, and its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from hawkeye.lazy import load
from hawkeye.options import Json
from hawkeye.tables import as_json, table

if TYPE_CHECKING:
    from hawkeye.serve.config import ServeConfig

app = App()
token = App(name="token", help="Who may use the service: add, list and remove tokens.")
app.command(token)

ConfigFile = Annotated[Path | None, Parameter(name="--config", help="Settings (.toml); see docs/serve.md.")]
State = Annotated[Path | None, Parameter(help="Folder for the store: sources, rules, counts, tokens. Default: "
                                         "runs/serve.")]  # fmt: skip


@app.default
def serve(
    model: Annotated[
        str | None, Parameter(help="Folder of a run or an artefact, an .xml or .onnx, or a model store. Left out, the "
                              "demo's run.")
    ] = None,
    /,
    *,
    host: Annotated[str | None, Parameter(help="Address to listen at. Another one than this machine's own needs a "
                                          "token. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, Parameter(help="Port; 0 takes a free one. Default: 8000.")] = None,
    config: ConfigFile = None,
    token_file: Annotated[
        Path | None, Parameter(help="File with the token of an administrator, such as a container's secret.")
    ] = None,
    state: State = None,
    media: Annotated[
        Path | None, Parameter(help="Files may be added as sources from below this folder only.")
    ] = None,
    source: Annotated[
        tuple[str, ...], Parameter(help="A source from the start: a file, a camera's number, an address; may be given "
                                   "again.", negative=())
    ] = (),
    allow_network: Annotated[
        tuple[str, ...], Parameter(help="A private network that sources and webhooks may lie in, such as "
                                   "192.168.1.0/24; may be given again.", negative=())
    ] = (),
    threads: Annotated[int | None, Parameter(help="CPU threads of each network; 0 takes all cores.")] = None,
    rect: Annotated[
        bool | None, Parameter(help="The network's input takes the picture's shape. --no-rect: always the square.")
    ] = None,
) -> int:  # fmt: skip
    """Serve live detection and counting: web pages and an API.

    Ctrl-C or SIGTERM ends it within seconds, with all counts written.

    For example:

        hawkeye serve

        hawkeye serve runs/first --source rtsp://192.168.1.20/stream1 --allow-network 192.168.1.0/24

        hawkeye serve token add dashboard --role viewer && hawkeye serve runs/first --host 0.0.0.0

        hawkeye serve --config serve.toml
    """
    settings = _settings(
        config, model=model, host=host, port=port, state=state, media=media, threads=threads, rect=rect,
        networks=allow_network or None, source=tuple({"address": text} for text in source) or None,
    )  # fmt: skip
    return int(load("hawkeye.serve.server").run(settings, token_file=token_file))


@token.command
def add(
    name: Annotated[str, Parameter(help="Whose it is.")],
    /,
    *,
    role: Annotated[
        Literal["viewer", "operator", "admin"], Parameter(help="viewer: look and detect. operator: sources, lines, "
                                                          "zones and alerts too. admin: models and tokens too.")
    ] = "viewer",
    source: Annotated[
        tuple[str, ...], Parameter(help="Only this source; may be given again. Left out, every one.", negative=())
    ] = (),
    config: ConfigFile = None,
    state: State = None,
) -> None:  # fmt: skip
    """Make a token and print it, this once: only its hash is kept. A service that runs knows it within a second.

    For example:

        hawkeye serve token add dashboard

        hawkeye serve token add gatekeeper --role operator --source gate-1
    """
    with _tokens(_settings(config, state=state)) as tokens:
        print(tokens.add(name, role, source or None))


@token.command(name="list")
def list_(*, config: ConfigFile = None, state: State = None, json: Json = False) -> None:
    """Who has a token.

    For example:

        hawkeye serve token list
    """
    settings = _settings(config, state=state)
    with _tokens(settings) as tokens:
        rows = [info.model_dump() for info in tokens.list()]
    if json:
        print(as_json(rows))
    elif rows:
        shown = [{**row, "sources": "all" if row["sources"] is None else ", ".join(row["sources"])} for row in rows]
        print(table(shown, ("name", "role", "sources")))
    elif settings.private:
        print("no tokens: the service is for this machine only")
    else:
        print("no tokens: others can reach the service, and it lets nobody in without one")


@token.command
def remove(name: str, /, *, config: ConfigFile = None, state: State = None) -> None:
    """Take a token back; whoever uses it is out within a second.

    For example:

        hawkeye serve token remove dashboard
    """
    with _tokens(_settings(config, state=state)) as tokens:
        tokens.remove(name)
    print(f"removed {name}")


def _settings(file: Path | None, **flags: Any) -> ServeConfig:
    made: ServeConfig = load("hawkeye.serve.config").load_config(file, **flags)
    return made


def _tokens(settings: ServeConfig) -> Any:
    return load("hawkeye.serve.server").tokens(settings)
