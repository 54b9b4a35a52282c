"""Which addresses may be connected to, and opening sources so that it is those that are connected to.

A name is resolved here, its address is checked, and the decoder gets the address: a name that resolves to something
else a moment later (DNS rebinding) changes nothing. HTTP requests name the host still. HTTP redirects and play lists
are refused by the decoder. What remains open to a camera that is itself hostile is an RTSP redirect, which FFmpeg
follows without asking.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2

from hawkeye.errors import ConfigError, DataError, HawkeyeError
from hawkeye.outputs import encode_jpeg
from hawkeye.runtime.source import (
    FFMPEG_OPTIONS,
    SCHEMES,
    Capture,
    PictureCapture,
    Source,
    absent_source,
    find_sources,
    is_address,
    open_source,
)
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.schemas import SourceSpec, SourceTest

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Cloud metadata beside link-local, which is refused as a whole.
_METADATA = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254",
                                                 "fd20:ce::254")))  # fmt: skip
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# For every address and file that FFmpeg opens in this process: no format that names other files or addresses (HLS,
# DASH, concat), no protocol that is none of ours, no HTTP redirect.
_FFMPEG = ("rtsp_transport;tcp|max_redirects;0|protocol_whitelist;file,tcp,udp,rtp,rtsp,http,https,tls,crypto|"
           "format_whitelist;rtsp,rtp,sdp,mpjpeg,mjpeg,mov,mp4,avi,matroska,webm,mpegts,mpeg,flv,asf,h264,hevc,m4v,"
           "mpegvideo,jpeg_pipe")  # fmt: skip
_TEST_WIDTH = 640


class Guard:
    """Decides which addresses may be connected to.

    Args:
        config: its networks, media folder and cameras count.
        lookup: resolves a name; a test hands in its own.
    """

    def __init__(
        self, config: ServeConfig, *, lookup: Callable[..., Sequence[tuple[Any, ...]]] = socket.getaddrinfo
    ) -> None:  # fmt: skip
        os.environ[FFMPEG_OPTIONS] = _FFMPEG
        self._config, self._lookup = config, lookup
        self._networks = [ipaddress.ip_network(text, strict=False) for text in config.networks]

    def refusal(self, address: Address, *, trusted: bool = False) -> str | None:
        """Why an address must not be connected to; None where it may.

        Args:
            trusted: who runs the service has named the host, so a private one is meant.
        """
        for inner in (address, *_embedded(address)):
            if inner.is_link_local or inner in _METADATA:
                return "link-local and metadata addresses are never opened"
            if inner.is_multicast or inner.is_unspecified:
                return "not the address of one host"
            if not (trusted or inner.is_global) and not any(
                inner in net for net in self._networks if net.version == inner.version
            ):
                return "a private address that is not allowed"
        return None

    def resolve(self, host: str, port: int, *, trusted: bool = False) -> str:
        """The address to connect to. Waits for the resolver.

        Raises:
            ConfigError: every address of the host is refused.
            DataError: no such host.
        """
        try:
            found = [str(entry[4][0]) for entry in self._lookup(host, port, 0, socket.SOCK_STREAM)]
        except (OSError, UnicodeError):
            raise DataError(f"there is no host {host}", got="no address", mend="check its name") from None
        why = "no address"
        for text in dict.fromkeys(found):
            why = self.refusal(ipaddress.ip_address(text.partition("%")[0]), trusted=trusted) or ""
            if not why:
                return text
        mend = f'start the service with --allow-network {found[0]}, or set networks = ["{found[0]}"]'
        raise ConfigError(f"the address of {host} is not allowed", got=f"{found[0] if found else 'nothing'}: {why}",
                          mend=mend if "private" in why else None)  # fmt: skip

    def find(self, spec: SourceSpec, *, trusted: bool = False, resolve: bool = True) -> Source:
        """The source that a spec names, allowed and with its final name.

        Args:
            resolve: hold an address against what is allowed at once, rather than when it is opened. Waits.

        Raises:
            ConfigError: not allowed here; says how to allow it.
            DataError: nothing there, or no source.
        """
        text = spec.address.strip()
        is_camera = text.isascii() and text.isdigit()
        if is_camera and not (trusted or self._config.cameras):
            raise ConfigError(
                "cameras of this machine are not allowed", got=f"camera {text}", mend="set cameras = true"
            )
        shown = text
        try:
            if not (is_address(text) or is_camera or trusted):
                text = str(self._file(text))
            sources = find_sources([text])
        except DataError as error:
            if text == shown:
                raise
            # Where the media folder lies is nobody's business.
            raise DataError(error.summary.replace(text, shown), got=str(error.got).replace(text, shown),
                            expected=error.expected, mend=error.mend) from None  # fmt: skip
        except OSError as error:
            raise DataError("this source cannot be looked for", got=error.strerror,
                            mend="let the service read its folder") from None  # fmt: skip
        if len(sources) > 1:
            raise ConfigError("one source at a time", got=f"{len(sources)} in that folder", mend="name one file")
        source = _named(sources[0], spec)
        if source.kind == "url" and resolve:
            parts = urlsplit(str(source.target))
            self.resolve(parts.hostname or "", parts.port or SCHEMES[parts.scheme.lower()], trusted=trusted)
        return source

    def absent(self, spec: SourceSpec) -> Source:
        """What stands for a source that `find` does not find now, with its final name.

        Raises:
            DataError: an address that can never be one.
        """
        return _named(absent_source(spec.address.strip()), spec)

    def open(self, source: Source, *, trusted: bool = False) -> Capture:
        """Open a source; the host of an address is resolved and checked anew each time.

        Raises:
            DataError, ConfigError: it cannot be opened, or must not be.
        """
        if source.kind == "url":
            parts = urlsplit(str(source.target))
            host, port = parts.hostname or "", parts.port or SCHEMES[parts.scheme.lower()]
            address = self.resolve(host, port, trusted=trusted)
            user, at, named = parts.netloc.rpartition("@")
            shown = f"[{address}]" if ":" in address else address
            # Servers of several sites tell them apart by it; other signs would end the option, or begin another one.
            plain = parts.scheme.lower() in ("http", "https") and re.fullmatch(r"[\w.:\[\]-]+", named, re.ASCII)
            source = replace(source, target=parts._replace(netloc=f"{user}{at}{shown}:{port}").geturl(),
                             host=named if plain else "")  # fmt: skip
        return PictureCapture(source.pictures, source.base) if source.kind == "pictures" else open_source(source)

    def test(self, spec: SourceSpec) -> SourceTest:
        """Open a source, read one picture, close it. Waits; never raises for a bad source."""
        capture: Capture | None = None
        try:
            source = self.find(spec)
            capture = self.open(source)
            shot = capture.read()
            if shot is None:
                return SourceTest(ok=False, words=f"{source.label} answers but gives no picture")
            height, width = shot.image.shape[:2]
            scale = min(1.0, _TEST_WIDTH / width)
            small = cv2.resize(shot.image, (round(width * scale), max(1, round(height * scale))))
            fps = capture.fps or None
            words = f"{source.label}: pictures of {width} x {height}" + (f", {fps:.0f} per second" if fps else "")
            picture = base64.b64encode(encode_jpeg(small, 80)).decode()
            return SourceTest(ok=True, words=words, width=width, height=height, fps=fps, jpeg_base64=picture)
        except HawkeyeError as error:
            return SourceTest(ok=False, words=str(error).replace("\n ", ";"))
        except cv2.error:
            return SourceTest(ok=False, words="its pictures cannot be decoded")
        finally:
            if capture is not None:
                capture.close()

    def _file(self, text: str) -> Path:
        media = self._config.media
        if media is None:
            raise ConfigError("files are not allowed as sources here", got="a path",
                              mend="start the service with --media FOLDER and name a file in it")  # fmt: skip
        base = media.resolve()
        path = (base / text).resolve()
        if not path.is_relative_to(base) or not path.exists():
            raise ConfigError("there is no such file in the media folder", got=text[:200],
                              expected="a path relative to that folder")  # fmt: skip
        return path


def _named(source: Source, spec: SourceSpec) -> Source:
    """With its final name; where files lie on this machine is nobody's business."""
    label = Path(source.label).name if source.kind in ("pictures", "video") else source.label
    return replace(source, name=spec.name or source.name.lstrip("-."), label=label)


def _embedded(address: Address) -> list[ipaddress.IPv4Address]:
    """IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())[1:]]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [item for item in inner if item is not None]
