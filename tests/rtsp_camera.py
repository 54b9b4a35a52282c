"""A camera that speaks RTSP on this machine, as small as can be: one client each, JPEG over RTP inside the connection.

RTSP: RFC 2326 with interleaved data (section 10.12) and Basic authentication. JPEG in RTP packets: RFC 2435.
"""

from __future__ import annotations

import base64
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import cv2
import numpy as np

USER, PASSWORD = "operator", "geheim"
_LOGIN = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_PACKET = 1200  # bytes of picture data in one packet
_JPEG = 26  # RTP's payload type

Play = Callable[[Callable[[np.ndarray], None], int], None]


def packets(image: np.ndarray, moment_s: float, number: int) -> list[bytes]:
    """RTP packets of one picture, whose sides are multiples of 8, from sequence number `number` on."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    tables, at = b"", 2
    while data[at + 1] != 0xDA:  # the segments before the scan
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        if data[at + 1] == 0xDB:  # quantization tables: a byte that names each, then 64 values
            body = data[at + 4 : at + 2 + length]
            tables += b"".join(body[i + 1 : i + 65] for i in range(0, len(body), 65))
        at += 2 + length
    scan = data[at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0] : -2]
    height, width = image.shape[:2]
    result = []
    for offset in range(0, len(scan), _PACKET):
        last = offset + _PACKET >= len(scan)
        rtp = struct.pack(">BBHII", 0x80, _JPEG | (last << 7), (number + len(result)) & 0xFFFF,
                          int(moment_s * 90_000) & 0xFFFFFFFF, 1)  # fmt: skip
        # Type 1 is 4:2:0 with the standard Huffman tables; 255 says that the quantization tables follow.
        head = struct.pack(">I", offset) + struct.pack(">BBBB", 1, 255, width // 8, height // 8)
        if offset == 0:
            head += struct.pack(">BBH", 0, 0, len(tables)) + tables
        result.append(rtp + head + scan[offset : offset + _PACKET])
    return result


@contextmanager
def rtsp_camera(play: Play) -> Iterator[str]:
    """Calls `play(send, visit)` for each client that begins to play; returning closes the connection.

    Gives the address, which holds a user's name and password.
    """
    visits = [0]

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the client has gone
                while request := self._request():
                    method, url, fields = request
                    if fields.get("authorization") != _LOGIN:
                        self._answer(fields, 'WWW-Authenticate: Basic realm="camera"', status="401 Unauthorized")
                    elif method == "OPTIONS":
                        self._answer(fields, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
                    elif method == "DESCRIBE":
                        self._answer(fields, "Content-Type: application/sdp", body=(
                            f"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
                            f"m=video 0 RTP/AVP {_JPEG}\r\na=control:{url.rstrip('/')}/video\r\n"))  # fmt: skip
                    elif method == "SETUP":
                        self._answer(fields, "Session: 1", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
                    elif method == "PLAY":
                        self._answer(fields, "Session: 1")
                        visits[0] += 1
                        self._sent, self._begun_s = 0, time.monotonic()
                        play(self._send, visits[0])
                        return
                    else:
                        self._answer(fields, "Session: 1")

        def _request(self) -> tuple[str, str, dict[str, str]] | None:
            lines = []
            while (line := self.rfile.readline().decode().strip()) or not lines:
                if not line:
                    return None
                lines.append(line)
            pairs = (line.partition(":") for line in lines[1:])
            method, url, _ = lines[0].split()
            return method, url, {name.lower(): value.strip() for name, _, value in pairs}

        def _answer(self, fields: dict[str, str], *lines: str, status: str = "200 OK", body: str = "") -> None:
            head = [f"RTSP/1.0 {status}", f"CSeq: {fields.get('cseq', 0)}", *lines, f"Content-Length: {len(body)}"]
            self.wfile.write(("\r\n".join(head) + "\r\n\r\n" + body).encode())

        def _send(self, image: np.ndarray) -> None:
            for packet in packets(image, time.monotonic() - self._begun_s, self._sent):
                self.wfile.write(b"$\0" + struct.pack(">H", len(packet)) + packet)
                self._sent += 1

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        allow_reuse_address = True

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"rtsp://{USER}:{PASSWORD}@127.0.0.1:{server.server_address[1]}/live"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
