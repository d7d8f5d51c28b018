"""The world that a relay speaks to, as a process: a webhook that applies each Idempotency-Key once.

    python -m tests.integration.webhook_receiver PORT JOURNAL

Every arrival, effect and answer is a line of the journal. PUT /conduct says how to behave from now on: to
hold back the answers of keys that begin so until they are no longer held, to refuse them, to take a while.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOLD_S_MAX = 60.0


class Receiver(ThreadingHTTPServer):
    """What all requests share."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, journal: Path) -> None:
        super().__init__(("127.0.0.1", port), Webhook)
        self.conduct: dict[str, Any] = {}
        self.changed = threading.Condition()
        self._applied: set[str] = set()
        self._journal = journal.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()

    def note(self, what: str, key: str, number: int) -> None:
        """One line of the journal."""
        line = {"what": what, "key": key, "number": number, "time_ns": time.monotonic_ns()}
        with self._lock:
            self._journal.write(json.dumps(line) + "\n")

    def apply(self, key: str, number: int) -> None:
        """The effect, unless this key had it: the receiver's half of exactly once."""
        with self._lock:
            if key in self._applied:
                return
            self._applied.add(key)
        self.note("effect", key, number)

    def asked_to(self, verb: str, key: str) -> bool:
        """Whether the conduct names this key."""
        return any(key.startswith(prefix) for prefix in self.conduct.get(verb, []))


class Webhook(BaseHTTPRequestHandler):
    """One connection."""

    server: Receiver

    def do_POST(self) -> None:
        """An event: applied once, answered as the conduct says."""
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        key, number = self.headers["Idempotency-Key"], self.client_address[1]
        assert f"[{key}]" in body["message"], body
        self.server.note("arrival", key, number)
        time.sleep(self.server.conduct.get("take_s", 0.0))  # as long as the test says
        if self.server.asked_to("refuse", key):
            self.server.note("refusal", key, number)
            self.answer(503)
            return
        self.server.apply(key, number)
        with self.server.changed:
            self.server.changed.wait_for(lambda: not self.server.asked_to("hold", key), HOLD_S_MAX)
        self.server.note("answer", key, number)
        self.answer(200)

    def do_PUT(self) -> None:
        """A new conduct."""
        conduct = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.changed:
            self.server.conduct = conduct
            self.server.changed.notify_all()
        self.answer(200)

    def answer(self, status: int) -> None:
        """An empty answer; who asked may be dead by now."""
        try:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
        except ConnectionError as error:
            self.log_message("not answered: %s", error)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("journal", type=Path)
    options = parser.parse_args()
    Receiver(options.port, options.journal).serve_forever()


if __name__ == "__main__":
    main()
