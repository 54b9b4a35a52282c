"""The Open Inference Protocol (KServe v2, REST) for every model that can be served.

    https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol

A model has one input, `image`, in one of two ways: UINT8 of shape [1, H, W, 3], RGB, any size; or BYTES of shape [1]:
a JPEG, PNG, WebP, BMP or TIFF file, in JSON as Base64. Its outputs are `boxes` FP32 [N, 4] (corners in pixels of the
picture), `scores` FP32 [N], `class_ids` INT32 [N] and `class_names` BYTES [N]. Thresholds are parameters of the
request: `conf`, `iou`, `classes`. Tensors may also be sent as bytes after the JSON (extension `binary_tensor_data`).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hawkeye import __version__
from hawkeye.detections import Detections
from hawkeye.errors import DataError
from hawkeye.serve.core import Service
from hawkeye.serve.pictures import decode_picture
from hawkeye.serve.problems import NotFound
from hawkeye.serve.routing import Serving, needs
from hawkeye.serve.schemas import Detecting

router = APIRouter(prefix="/v2", tags=["kserve"])
_VERSION = "1"
_HEADER = "inference-header-content-length"
_OUTPUTS: Mapping[str, tuple[str, list[int]]] = {
    "boxes": ("FP32", [-1, 4]), "scores": ("FP32", [-1]), "class_ids": ("INT32", [-1]), "class_names": ("BYTES", [-1]),
}  # fmt: skip
_MAX_JSON_ITEMS = 3 * 4096 * 4096
ModelName = Annotated[str, Path(max_length=200, examples=["pruned+int8"])]
Version = Annotated[Literal["1"], Path(examples=["1"])]


class _Protocol(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class InputTensor(_Protocol):
    """An input."""

    name: Literal["image"]
    shape: tuple[int, ...] = Field(min_length=1, max_length=4, examples=[[1]])
    datatype: Literal["UINT8", "BYTES"]
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = Field(default=None, max_length=_MAX_JSON_ITEMS)


class WantedOutput(_Protocol):
    """An output that is asked for."""

    name: Literal["boxes", "scores", "class_ids", "class_names"]
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(_Protocol):
    """A request; `parameters` may hold `conf`, `iou`, `classes` (with commas) and `binary_data_output`."""

    id: str | None = Field(default=None, max_length=200)
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: tuple[InputTensor, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[WantedOutput, ...] | None = Field(default=None, max_length=len(_OUTPUTS))


class ServerInfo(_Protocol):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: tuple[str, ...]


class ModelReady(_Protocol):
    """Whether a model is in memory."""

    name: str
    ready: bool


class TensorInfo(_Protocol):
    """What an input or output looks like; -1 is any number."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(_Protocol):
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class OutputTensor(TensorInfo):
    """An output: its `data`, or in `parameters` the `binary_data_size` of its bytes behind the JSON."""

    data: tuple[float | str, ...] = ()
    parameters: dict[str, int] = Field(default_factory=dict)


class Inferred(_Protocol):
    """An answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: tuple[OutputTensor, ...]


_BODY = {"required": True, "content": {
    "application/json": {"schema": {"type": "object", "required": ["inputs"], "properties": {
        "id": {"type": "string"}, "parameters": {"type": "object"}, "outputs": {"type": "array"},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": {
            "type": "object", "required": ["name", "shape", "datatype"], "properties": {
                "name": {"const": "image"}, "datatype": {"enum": ["UINT8", "BYTES"]}, "data": {"type": "array"},
                "shape": {"type": "array", "items": {"type": "integer"}}, "parameters": {"type": "object"}}}}}},
        "example": {"parameters": {"conf": 0.4},
                    "inputs": [{"name": "image", "shape": [1, 1, 2, 3], "datatype": "UINT8",
                                "data": [0, 0, 0, 255, 255, 255]}]}},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}, "examples": {
        "JSON, then a file": {"value": "the JSON with binary_data_size instead of data, then the bytes"}}},
}}  # fmt: skip


# -- who is there -----------------------------------------------------------------------------------------------------


@router.get("", **needs("viewer"))
def server() -> ServerInfo:
    """Name, version and extensions of the server."""
    return ServerInfo(name="hawkeye", version=__version__, extensions=("binary_tensor_data",))


@router.get("/health/live", openapi_extra={"x-role": "public"})
async def live() -> dict[str, bool]:
    """Whether the process lives."""
    return {"live": True}


@router.get("/health/ready", openapi_extra={"x-role": "public"}, responses={503: {"description": "Not ready."}})
async def ready(service: Serving, response: Response) -> dict[str, bool]:
    """Whether it detects."""
    yes, _ = service.ready()
    response.status_code = 200 if yes else 503
    return {"ready": yes}


@router.get("/models/{model}/versions/{version}", **needs("viewer", 404))
def of_version(model: ModelName, version: Version, service: Serving) -> ModelMetadata:
    """The same as without a version: a model has one."""
    return metadata(model, service)


@router.get("/models/{model}", **needs("viewer", 404))
def metadata(model: ModelName, service: Serving) -> ModelMetadata:
    """What a model takes and gives."""
    _known(service, model)
    outputs = (TensorInfo(name=name, datatype=kind, shape=tuple(shape)) for name, (kind, shape) in _OUTPUTS.items())
    return ModelMetadata(
        name=model, versions=(_VERSION,), platform="openvino", outputs=tuple(outputs),
        inputs=(TensorInfo(name="image", datatype="UINT8", shape=(1, -1, -1, 3)),),
    )  # fmt: skip


@router.get("/models/{model}/ready", **needs("viewer", 404, 503))
@router.get("/models/{model}/versions/{version}/ready", **needs("viewer", 404, 503))
def model_ready(model: ModelName, service: Serving, response: Response) -> ModelReady:
    """Whether a model is in memory; others are opened by the first request that names them."""
    yes = _known(service, model) != "available" and service.ready()[0]
    response.status_code = 200 if yes else 503
    return ModelReady(name=model, ready=yes)


def _known(service: Service, model: str) -> str:
    roles = {info.id: info.role for info in service.models()}
    if model not in roles:
        raise NotFound("model", model, roles)
    return roles[model]


# -- inference --------------------------------------------------------------------------------------------------------


_INFER = needs("viewer", 404, 503, requestBody=_BODY)
_INFER["responses"][200] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.post("/models/{model}/infer", response_model=Inferred, **_INFER)
@router.post("/models/{model}/versions/{version}/infer", response_model=Inferred, **_INFER)
async def infer(model: ModelName, request: Request, service: Serving) -> Response:
    """Detect in one picture."""
    body = await request.body()
    limiter = request.app.state.detecting
    return await to_thread.run_sync(_infer, service, model, body, request.headers.get(_HEADER), limiter=limiter)


def _infer(service: Service, model: str, body: bytes, header: str | None) -> Response:
    wanted, rest = _read(body, header)
    image = _image(wanted.inputs[0], rest, service.config.max_pixels)
    found, _ = service.detect_image(image, _how(wanted.parameters, model))
    tensors = _tensors(found, service.names_of(model))
    names: list[str] = [output.name for output in wanted.outputs] if wanted.outputs else list(_OUTPUTS)
    binary: set[str] = {output.name for output in wanted.outputs or () if output.parameters.get("binary_data") is True}
    if wanted.parameters.get("binary_data_output") is True:
        binary |= set(names)
    outputs, parts = [], []
    for name in names:
        tensor: dict[str, Any] = {"name": name, "datatype": _OUTPUTS[name][0], "shape": list(tensors[name].shape)}
        if name in binary:
            parts.append(_binary(tensors[name]))
            outputs.append(tensor | {"parameters": {"binary_data_size": len(parts[-1])}})
        else:
            outputs.append(tensor | {"data": tensors[name].ravel().tolist()})
    answer: dict[str, Any] = {"model_name": model, "model_version": _VERSION, "outputs": outputs}
    head = json.dumps(answer | ({"id": wanted.id} if wanted.id is not None else {})).encode()
    if not parts:
        return Response(head, media_type="application/json")
    headers = {_HEADER: str(len(head))}
    return Response(b"".join((head, *parts)), media_type="application/octet-stream", headers=headers)


def _read(body: bytes, header: str | None) -> tuple[InferRequest, bytes]:
    """The JSON at the front, and the tensors behind it."""
    length = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit() and int(header[:12]) <= len(body)):
            raise DataError(f"the header {_HEADER} is wrong", got=header[:20], expected="the length of the JSON")
        length = int(header[:12])
    try:
        return InferRequest.model_validate_json(body[:length]), body[length:]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError("the request does not keep to the protocol", got=f"{where}: {first['msg']}") from None


def _image(tensor: InputTensor, rest: bytes, max_pixels: int) -> NDArray[np.uint8]:
    size = tensor.parameters.get("binary_data_size")
    if (size is None) == (tensor.data is None) or (size is not None and size != len(rest)):
        raise DataError("the input `image` has no data", got=f"binary_data_size {size}" if size is not None else None,
                        expected="`data`, or all the bytes behind the JSON")  # fmt: skip
    if tensor.datatype == "BYTES":
        if tensor.shape not in ((1,), (1, 1)):
            raise DataError("one picture at a time", got=f"shape {list(tensor.shape)}", expected="[1]")
        return decode_picture(_file_of(tensor.data, rest), max_pixels)
    shape = tensor.shape[1:] if len(tensor.shape) == 4 and tensor.shape[0] == 1 else tensor.shape
    if len(shape) != 3 or shape[2] != 3 or min(shape) < 1 or shape[0] * shape[1] > max_pixels:
        raise DataError("not the shape of a picture", got=list(tensor.shape),
                        expected=f"[1, H, W, 3] of at most {max_pixels:,} pixels")  # fmt: skip
    if tensor.data is None:
        flat = np.frombuffer(rest, np.uint8)
    else:
        try:
            numbers = np.asarray(tensor.data)
        except ValueError:
            numbers = np.empty(0)
        if numbers.dtype.kind not in "iu" or (numbers.size and not 0 <= numbers.min() <= numbers.max() <= 255):
            raise DataError("the data is not UINT8", expected="whole numbers from 0 to 255")
        flat = numbers.astype(np.uint8).ravel()
    if flat.size != shape[0] * shape[1] * 3:
        raise DataError("shape and data do not fit", got=f"{flat.size} values", expected=shape[0] * shape[1] * 3)
    return np.ascontiguousarray(flat.reshape(shape)[:, :, ::-1])  # RGB to BGR


def _file_of(data: Sequence[Any] | None, rest: bytes) -> bytes:
    if data is None:  # elements of BYTES have their length before them
        if len(rest) < 4 or int.from_bytes(rest[:4], "little") != len(rest) - 4:
            raise DataError("the element of BYTES has another length", got=len(rest), expected="4 bytes and the file")
        return rest[4:]
    while len(data) == 1 and isinstance(data[0], list):
        data = data[0]
    if len(data) != 1 or not isinstance(data[0], str):
        raise DataError("the input `image` is not one file", expected="one text of Base64")
    try:
        return base64.b64decode(data[0], validate=True)
    except (binascii.Error, ValueError):
        raise DataError("the input `image` is not Base64") from None


def _how(parameters: Mapping[str, Any], model: str) -> Detecting:
    classes = parameters.get("classes")
    try:
        return Detecting(conf=parameters.get("conf"), iou=parameters.get("iou"), model=model,
                         classes=tuple(classes.split(",")) if isinstance(classes, str) else classes)  # fmt: skip
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise DataError("a parameter cannot be used", got=f"{first['loc'][0]}: {first['msg']}") from None


def _tensors(found: Detections, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    words = np.array([names[cls] for cls in found.class_id], dtype=object)
    return {"boxes": found.xyxy, "scores": found.score, "class_ids": found.class_id, "class_names": words}


def _binary(tensor: NDArray[Any]) -> bytes:
    if tensor.dtype != object:
        return tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
    words = [str(word).encode() for word in tensor]
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)
