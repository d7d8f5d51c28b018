"""A controller's end of a control port: JSON lines out as commands, answers and events back.

The other end is chaos.control_port, in a process of ours through which a run's traffic goes. Nothing that was
armed outlives the connection: when the last controller has gone, that process heals itself.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

ANSWER_TIMEOUT_S = 5.0
POLL_S = 0.02


class ControlError(Exception):
    """The process cannot be reached, went away, or refused a command."""


class ControlLine:
    """One connection to a control port; safe to use from several threads.

    `lost` is called once when the process goes away, on a thread of this class. `name` is who is at the other
    end, for messages; `error` is what is raised.
    """

    name = "the process"
    error: type[ControlError] = ControlError

    def __init__(self, port: int) -> None:
        self.port = port
        self.lost: Callable[[], None] = lambda: None
        self.changed = threading.Condition()  # an answer or an event has come, or the process has gone
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._gone = False

    def connect(self, *, timeout_s: float) -> None:
        """Connect as soon as the process listens; raises `error` when it does not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                connected = socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise self.error(
                        f"{self.name} does not listen on control port {self.port}: {error}"
                    ) from None
                time.sleep(POLL_S)  # bounded by timeout_s; the condition is the connection
        connected.settimeout(None)
        self._socket = connected
        self._thread = threading.Thread(
            target=self._read, args=(connected,), name=f"events of {self.name}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the connection, on which the process heals everything; idempotent."""
        if self._socket is not None and not self._gone:
            self.lost = lambda: None
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # the process was faster
                self._gone = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(ANSWER_TIMEOUT_S)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and return its answer; raises `error`."""
        with self.changed:
            if self._socket is None or self._gone:
                raise self.error(f"{self.name} has gone")
            self._number += 1
            number = self._number
            line = msgspec.json.encode({"number": number, "command": command, **arguments}) + b"\n"
            try:
                self._socket.sendall(line)
            except OSError as error:
                raise self.error(f"{self.name} has gone: {error}") from None
            if not self.changed.wait_for(lambda: number in self._answers or self._gone, ANSWER_TIMEOUT_S):
                raise self.error(f"{self.name} did not answer {command} within {ANSWER_TIMEOUT_S:.0f} s")
            if number not in self._answers:
                raise self.error(f"{self.name} has gone")
            answer = self._answers.pop(number)
        if "error" in answer:
            raise self.error(str(answer["error"]))
        return answer

    def await_event(self, has_come: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until what events tell makes it true; False when it does not in time. Raises `error`."""
        with self.changed:
            came = self.changed.wait_for(lambda: has_come() or self._gone, timeout_s)
            if came and not has_come():
                raise self.error(f"{self.name} has gone")
            return came

    def status(self) -> dict[str, Any]:
        """The process's counters."""
        answer = self.ask("status")
        return {name: value for name, value in answer.items() if name not in ("number", "time_ns")}

    def hear(self, event: dict[str, Any]) -> None:
        """Take an event, on the thread that reads."""
        raise NotImplementedError

    def _read(self, connected: socket.socket) -> None:
        try:
            with connected, connected.makefile("rb") as lines:
                for line in lines:
                    self._take(msgspec.json.decode(line))
        except OSError:  # a reset is an end like any other
            pass
        finally:
            with self.changed:
                self._gone = True
                self.changed.notify_all()
            self.lost()

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self.hear(message)
            return
        with self.changed:
            self._answers[message["number"]] = message
            self.changed.notify_all()
