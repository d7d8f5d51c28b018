"""The nemesis's end of the proxy's control port: arms faults, heals them, hears what became of them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

ANSWER_TIMEOUT_S = 5.0
POLL_S = 0.02


class ProxyError(Exception):
    """The proxy cannot be reached, went away, or refused a command."""


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one armed fault; times are CLOCK_MONOTONIC."""

    event: str
    fault_id: str
    time_ns: int
    evidence: dict[str, Any]


class ProxyControl:
    """One connection to the control port; safe to use from several threads.

    `listener` is called with each Happened, and `lost` once when the proxy goes away, both on a thread of
    this class; set them before the first fault is armed.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.listener: Callable[[Happened], None] = lambda _: None
        self.lost: Callable[[], None] = lambda: None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._gone = False

    def connect(self, *, timeout_s: float) -> None:
        """Connect as soon as the proxy listens; raises ProxyError when it does not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                connected = socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ProxyError(
                        f"the proxy does not listen on control port {self.port}: {error}"
                    ) from None
                time.sleep(POLL_S)  # bounded by timeout_s; the condition is the connection
        connected.settimeout(None)
        self._socket = connected
        self._thread = threading.Thread(
            target=self._read, args=(connected,), name="proxy events", daemon=True
        )
        self._thread.start()

    def arm(self, fault_id: str, fault: str, *, nth: int, options: dict[str, Any]) -> int:
        """Arm a fault for the nth matching request from now on; when it was, in ns. Raises ProxyError."""
        answer = self._ask("arm", fault_id=fault_id, fault=fault, nth=nth, options=options)
        return int(answer["time_ns"])

    def heal(self) -> None:
        """Disarm all faults; those that act are hurried to their end, of which `listener` hears."""
        self._ask("heal")

    def status(self) -> dict[str, Any]:
        """The proxy's counters."""
        answer = self._ask("status")
        return {name: value for name, value in answer.items() if name not in ("number", "time_ns")}

    def close(self) -> None:
        """End the connection, on which the proxy heals everything; idempotent."""
        if self._socket is not None and not self._gone:
            self.lost = lambda: None
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # the proxy was faster
                self._gone = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(ANSWER_TIMEOUT_S)

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        with self._changed:
            if self._socket is None or self._gone:
                raise ProxyError("the proxy has gone")
            self._number += 1
            number = self._number
            line = msgspec.json.encode({"number": number, "command": command, **arguments}) + b"\n"
            try:
                self._socket.sendall(line)
            except OSError as error:
                raise ProxyError(f"the proxy has gone: {error}") from None
            if not self._changed.wait_for(lambda: number in self._answers or self._gone, ANSWER_TIMEOUT_S):
                raise ProxyError(f"the proxy did not answer {command} within {ANSWER_TIMEOUT_S:.0f} s")
            if number not in self._answers:
                raise ProxyError("the proxy has gone")
            answer = self._answers.pop(number)
        if "error" in answer:
            raise ProxyError(str(answer["error"]))
        return answer

    def _read(self, connected: socket.socket) -> None:
        try:
            with connected, connected.makefile("rb") as lines:
                for line in lines:
                    self._take(msgspec.json.decode(line))
        except OSError:  # a reset is an end like any other
            pass
        finally:
            with self._changed:
                self._gone = True
                self._changed.notify_all()
            self.lost()

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self.listener(msgspec.convert(message, Happened))
            return
        with self._changed:
            self._answers[message["number"]] = message
            self._changed.notify_all()
