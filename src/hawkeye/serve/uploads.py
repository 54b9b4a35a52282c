"""Pictures out of requests: raw bodies and multipart forms, held in memory; a client's file name is never looked at."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from hawkeye.errors import DataError
from hawkeye.serve.problems import Denied

_FORM = "multipart/form-data"
_TAKEN_OUT = (b"\0", b"\n", b"\r")  # by `curl -d @FILE`; every picture has some of these
_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
RAW = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff", "application/octet-stream")


def body_schema(*, many: bool) -> dict[str, Any]:
    """`requestBody` in OpenAPI."""
    field = {"files": {"type": "array", "items": _BINARY}} if many else {"file": _BINARY}
    curl = "curl -F a=@street.jpg -F b=@yard.jpg" if many else "curl -F file=@street.jpg"
    values = {"files": ["bytes of street.jpg", "bytes of yard.jpg"]} if many else {"file": "bytes of street.jpg"}
    form = {"schema": {"type": "object", "required": list(field), "properties": field},
            "examples": {curl: {"value": values}}}  # fmt: skip
    raw = {"schema": _BINARY, "examples": {"curl --data-binary @street.jpg": {"value": "bytes of street.jpg"}}}
    return {"required": True, "content": {_FORM: form, **({} if many else dict.fromkeys(RAW, raw))}}


async def one_picture(request: Request) -> bytes:
    """The picture that a request brings, in whichever way.

    Raises:
        DataError: none, or several.
    """
    kind = _kind(request)
    if kind != _FORM:
        content = await _whole(request)
        if not content:
            raise DataError("there is no picture in the request", expected="its bytes as the body, or a form's file")
        if kind == "application/x-www-form-urlencoded" and not any(byte in content for byte in _TAKEN_OUT):
            raise DataError("not a picture", got=f"{len(content)} bytes as `curl -d` leaves them",
                            expected="the file as it is", mend="send with --data-binary @FILE")  # fmt: skip
        return content
    found = await many_pictures(request, 1)
    return found[0]


async def many_pictures(request: Request, most: int) -> list[bytes]:
    """All files of a form, whatever its fields are called.

    Raises:
        DataError: none, or no form.
        HTTPException: 400, a form that is damaged or too much.
    """
    if _kind(request) != _FORM:
        raise DataError("there is no form in the request", expected=f"{_FORM} with pictures as files")
    try:
        async with request.form(max_files=most, max_fields=20, max_part_size=100_000) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            contents = [await file.read() for file in files]
    except ClientDisconnect:
        raise Denied("the client has gone") from None
    if not contents:
        raise DataError("there is no picture in the form", expected="a file")
    return contents


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _whole(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        raise Denied("the client has gone") from None
