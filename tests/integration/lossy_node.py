"""A node with a bad line: passes JSON-RPC on to a real one, and loses requests or replies as it is told."""

from __future__ import annotations

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

TIMEOUT_S = 10.0


class LossyNode:
    """Listens on loopback while its block lasts; `lose` may be changed at any time."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._lost = threading.Semaphore(0)
        # method -> 'request' (the node never gets it) or 'reply' (the node executes it, nobody hears)
        self.lose: dict[str, str] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LossyNode:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(TIMEOUT_S)
        self._server.server_close()

    def await_loss(self) -> None:
        """Return when one more request or reply has been lost."""
        assert self._lost.acquire(timeout=TIMEOUT_S), "nothing was lost"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        node = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                method = json.loads(body)["method"]
                node.asked.append(method)
                loss = node.lose.get(method)
                reply = b"" if loss == "request" else node.forward(body)
                if loss is not None:
                    self.close_connection = True
                    node._lost.release()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                """The test says what it saw."""

        return Handler

    def forward(self, body: bytes) -> bytes:
        """The real node's reply."""
        connection = http.client.HTTPConnection(self._host, timeout=TIMEOUT_S)
        try:
            connection.request("POST", "/", body, {"Content-Type": "application/json"})
            return connection.getresponse().read()
        finally:
            connection.close()
