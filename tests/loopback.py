"""A real HTTP server on the loopback that continues files, and misbehaves as a test asks."""

from __future__ import annotations

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """Serves `files` (path -> bytes); `faults[path]` is a list of what goes wrong with the next requests, in order.

    A fault is a status (503, or (503, headers)), ("cut", n): the connection ends after n bytes, ("stall", n, seconds),
    ("slow", bytes, seconds): so many bytes at a time, "no range": all of it from the start, "no length": no
    Content-Length, ("cut no length", n), or ("body", bytes): another content, whole. `log` holds (path, first byte
    asked for).
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list] = {}
        self.log: list[tuple[str, int]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with contextlib.suppress(ConnectionError):
                    site._answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request) -> None:
        path = request.path
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.log.append((path, start))
        fault = self.faults[path].pop(0) if self.faults.get(path) else None
        kind, *values = fault if isinstance(fault, tuple) else (fault,)
        content = self.files.get(path)
        if isinstance(kind, int) or content is None:
            return self._send(request, kind or 404, values[0] if values else {}, b"<html>sorry</html>")
        if kind == "body":
            content, start = values[0], 0
        if kind == "no range":
            start = 0
        if start >= len(content) and start:
            return self._send(request, 416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        status, body = 206 if start else 200, content[start:]
        if kind in ("no length", "cut no length"):
            request.close_connection = True
            return self._send(request, status, headers, body[: values[0]] if values else body, length=None)
        self._head(request, status, headers, len(body))
        if kind == "cut":
            request.wfile.write(body[: values[0]])
            request.close_connection = True
        elif kind == "stall":
            request.wfile.write(body[: values[0]])
            request.wfile.flush()
            time.sleep(values[1])
            request.close_connection = True
        elif kind == "slow":
            for at in range(0, len(body), values[0]):
                request.wfile.write(body[at : at + values[0]])
                request.wfile.flush()
                time.sleep(values[1])
        else:
            request.wfile.write(body)
        return None

    def _send(self, request, status: int, headers: dict, body: bytes, length: int | None = 0) -> None:
        self._head(request, status, headers, None if length is None else len(body))
        request.wfile.write(body)

    @staticmethod
    def _head(request, status: int, headers: dict, length: int | None) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        if length is not None:
            request.send_header("Content-Length", str(length))
        request.end_headers()
