"""Servers for tests: S3 by moto on the loopback interface, and a proxy in front of it that fails as asked."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_SLOW = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
_DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


@dataclass
class Faults:
    """What the proxy does to requests whose path contains a text: `{"a.png": ["slow", "break"]}`, one a request.

    "slow": 503 SlowDown. "busy": 429. "break": closes the connection within the body. "deny": 403. The last one of a
    list that ends in "always" is kept. `seen`: paths of all requests.
    """

    planned: dict[str, list[str]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, path: str) -> str:
        with self.lock:
            self.seen.append(path)
            for part, plan in self.planned.items():
                if part in path and plan:
                    return plan[0] if plan[-1] == "always" else plan.pop(0)
        return ""


@contextmanager
def serve_proxy(target: str) -> Iterator[tuple[str, Faults]]:
    """Yield the address of a proxy of a server, and its faults."""
    faults, there = Faults(), urlsplit(target)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

        def do_GET(self) -> None:
            fault = faults.next(self.path)
            if fault in ("slow", "busy", "deny"):
                body = _DENIED if fault == "deny" else _SLOW
                self.send_response({"slow": 503, "busy": 429, "deny": 403}[fault])
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                return
            connection = http.client.HTTPConnection(there.hostname or "", there.port)
            connection.request(self.command, self.path, headers=dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", size or "0")
            self.end_headers()
            if fault == "break":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            else:
                self.wfile.write(body)
            connection.close()

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
