"""A misbehaving world: a real HTTP server on the loopback that continues files, and a full disk."""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """Serves `files` (path -> bytes); `faults[path]` is a list of what goes wrong with the next requests, in order.

    A fault is a status (503, or (503, headers)), ("cut", n): the connection ends after n bytes, ("stall", n, seconds),
    ("slow", n, seconds): n bytes at a time, "no range": all of it from the start, "no length": no Content-Length, or
    ("cut no length", n). `log` holds (path, first byte asked for).
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

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.log.append((request.path, start))
        content, faults = self.files.get(request.path), self.faults.get(request.path)
        kind, *values = fault if isinstance(fault := faults.pop(0) if faults else "", tuple) else (fault,)
        if isinstance(kind, int) or content is None:
            status, headers, body = kind or 404, values[0] if values else {}, b"<html>sorry</html>"
        elif start and kind != "no range":
            status, headers, body = 206, {"Content-Range": f"bytes {start}-{len(content) - 1}/"}, content[start:]
        else:
            status, headers, body = 200, {}, content
        if status == 206 and not body:
            status = 416
        if "no length" in str(kind) or kind in ("cut", "stall"):
            request.close_connection = True
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        if "no length" not in str(kind):
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if kind in ("cut", "cut no length", "stall"):
            body = body[: values[0]]
        piece = values[0] if kind == "slow" else max(len(body), 1)
        for at in range(0, len(body), piece):
            request.wfile.write(body[at : at + piece])
            request.wfile.flush()
            time.sleep(values[1] if kind == "slow" else 0)
        if kind == "stall":
            time.sleep(values[1])


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Let writing beyond `size` bytes fail, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
