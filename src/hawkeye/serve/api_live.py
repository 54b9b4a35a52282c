"""Routes of sources, their lines and zones, and models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Response
from pydantic import Field

from hawkeye.serve.problems import Denied, NotFound
from hawkeye.serve.routing import Serving, Slow, Source, Who, needs
from hawkeye.serve.schemas import Comparison, ModelInfo, RuleSpec, Schema, SourceInfo, SourceSpec, SourceTest

router = APIRouter()
NewSource = Annotated[SourceSpec, Body(openapi_examples={
    "camera on the network": {"value": {"address": "rtsp://192.168.1.20/stream1", "name": "gate-1"}},
    "file of the media folder": {"value": {"address": "door.mp4", "name": "door", "loop": True}},
    "camera that is plugged in": {"value": {"address": "0"}},
})]  # fmt: skip
NewRule = Annotated[RuleSpec, Body(openapi_examples={
    "line": {"value": {"kind": "line", "name": "door", "points": [[0.5, 0.0], [0.5, 1.0]], "classes": ["person"]}},
    "zone": {"value": {"kind": "zone", "name": "yard", "points": [[0.1, 0.5], [0.9, 0.5], [0.5, 0.9]], "dwell_s": 30}},
})]  # fmt: skip
ModelId = Annotated[str, Path(max_length=200, examples=["pruned+int8"])]


class Choice(Schema):
    """A model."""

    model: str = Field(min_length=1, max_length=200, examples=["original+int8"])


class Comparing(Choice):
    """An A/B on live traffic.

    Attributes:
        every: each n-th frame is looked at by both.
    """

    every: int = Field(default=10, ge=1, le=10_000)


_CHOICE = Body(openapi_examples={"the original in INT8": {"value": {"model": "original+int8"}}})
_COMPARING = Body(openapi_examples={"each tenth frame": {"value": {"model": "original+int8", "every": 10}}})


# -- sources ----------------------------------------------------------------------------------------------------------


@router.get("/v1/sources", tags=["sources"], **needs("viewer"))
def sources(service: Serving, who: Who) -> list[SourceInfo]:
    """Every source that you may see, and how it does."""
    return [info for info in service.sources() if who.sees(info.name)]


@router.post("/v1/sources", tags=["sources"], status_code=201, **needs("operator", 503, 507))
async def add_source(spec: NewSource, service: Serving, who: Who, slow: Slow) -> SourceInfo:
    """Add a source; it is remembered. Its address is checked: see `networks` and `media` of the configuration."""
    if who.sources is not None and (spec.name is None or not who.sees(spec.name)):
        raise Denied("you may add only the sources that you may see", expected=", ".join(who.sources))
    return await slow.run(service.add_source, spec)


@router.post("/v1/sources/test", tags=["sources"], **needs("operator", 503))
async def test_source(spec: NewSource, service: Serving, who: Who, slow: Slow) -> SourceTest:
    """Open a source, read one picture and close it: what comes, or what is wrong. For who sees every source."""
    if who.sources is not None:  # it shows a picture of whatever address is named, a camera of this machine too
        raise Denied("a token that is held to some sources may not test any address", got=who.name)
    return await slow.run(service.test_source, spec)


@router.get("/v1/sources/{source}", tags=["sources"], **needs("viewer", 404))
def source(source: Source, service: Serving) -> SourceInfo:
    """One source, and how it does."""
    return service.source(source)


@router.delete("/v1/sources/{source}", tags=["sources"], status_code=204, **needs("operator", 404, 503, 507))
async def remove_source(source: Source, service: Serving, slow: Slow) -> Response:
    """Stop a source and forget it; its counts stay."""
    await slow.run(service.remove_source, source)
    return Response(status_code=204)


# -- lines and zones --------------------------------------------------------------------------------------------------


@router.get("/v1/sources/{source}/rules", tags=["rules"], **needs("viewer", 404))
def rules(source: Source, service: Serving) -> tuple[RuleSpec, ...]:
    """Lines and zones of a source."""
    return service.rules(source)


@router.put("/v1/sources/{source}/rules", tags=["rules"], **needs("operator", 404, 503, 507))
async def set_rule(source: Source, rule: NewRule, service: Serving, slow: Slow) -> tuple[RuleSpec, ...]:
    """Add a line or zone, or move the one of the same name; takes effect with the next frame. Answers all of them."""
    return await slow.run(service.set_rule, source, rule)


@router.delete("/v1/sources/{source}/rules/{rule:path}", tags=["rules"], **needs("operator", 404, 503, 507))
async def remove_rule(source: Source, rule: Annotated[str, Path(max_length=200, examples=["door"])], service: Serving,
                      slow: Slow) -> tuple[RuleSpec, ...]:  # fmt: skip
    """Remove a line or zone; its history stays. Answers those that are left."""
    return await slow.run(service.remove_rule, source, rule)


# -- models -----------------------------------------------------------------------------------------------------------


@router.get("/v1/models", tags=["models"], **needs("viewer"))
def models(service: Serving) -> list[ModelInfo]:
    """What is served, first, and what could be."""
    return service.models()


@router.get("/v1/models/{model}", tags=["models"], **needs("viewer", 404))
def model(model: ModelId, service: Serving) -> ModelInfo:
    """One model."""
    known = {info.id: info for info in service.models()}
    if model not in known:
        raise NotFound("model", model, known)
    return known[model]


@router.put("/v1/served", tags=["models"], **needs("admin", 404, 503, 507))
async def switch(choice: Annotated[Choice, _CHOICE], service: Serving, slow: Slow) -> ModelInfo:
    """Serve another model. Waits for its compilation.

    No frame of a live stream is dropped if its classes are the same; if not, sources are opened again.
    """
    return await slow.run(service.switch_model, choice.model)


@router.post("/v1/rollback", tags=["models"], **needs("admin", 404, 503, 507))
async def rollback(service: Serving, slow: Slow) -> ModelInfo:
    """Serve the model before this one again."""
    return await slow.run(service.rollback_model)


@router.get("/v1/comparison", tags=["models"], **needs("viewer"))
def comparison(service: Serving) -> Comparison | None:
    """The A/B that runs, or null."""
    return service.comparison()


@router.put("/v1/comparison", tags=["models"], **needs("admin", 404, 503))
async def compare(wanted: Annotated[Comparing, _COMPARING], service: Serving, slow: Slow) -> Comparison:
    """A/B: from now on each n-th live frame is also looked at by another model."""
    return await slow.run(service.start_comparison, wanted.model, every=wanted.every)


@router.delete("/v1/comparison", tags=["models"], **needs("admin", 503))
async def stop_comparison(service: Serving, slow: Slow) -> Comparison | None:
    """End the A/B; what it found, or null."""
    return await slow.run(service.stop_comparison)
