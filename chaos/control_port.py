"""A control port: JSON lines in as commands, each answered, and events to all who listen.

The other end is chaos.control_line. When the last controller has gone, `abandoned` is called: nobody is left
to heal what was armed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

COMMAND_BYTES_MAX = 64 * 1024

Answer = dict[str, Any]


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line on the control port; `number` comes back with the answer."""

    number: int
    command: str


Known = TypeVar("Known", bound=Command)


class Refused(Exception):
    """A command that cannot be obeyed; says why."""


class ControlPort(Generic[Known]):
    """All controllers of one process; calling it makes the protocol of a new one."""

    def __init__(
        self,
        known: type[Known],
        *,
        obey: Callable[[Known], Answer | Awaitable[Answer]],
        abandoned: Callable[[], None],
        refusal: type[Exception] = Refused,
    ) -> None:
        self.known = known
        self.obey = obey
        self.refusal = refusal
        self._abandoned = abandoned
        self._controllers: set[Controller[Known]] = set()

    def __call__(self) -> Controller[Known]:
        return Controller(self)

    @property
    def deserted(self) -> bool:
        """Whether there is no controller."""
        return not self._controllers

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event to all controllers."""
        for controller in self._controllers:
            controller.send(event)

    def joined(self, controller: Controller[Known]) -> None:
        self._controllers.add(controller)

    def left(self, controller: Controller[Known]) -> None:
        self._controllers.discard(controller)
        if not self._controllers:
            self._abandoned()


class Controller(asyncio.Protocol, Generic[Known]):
    """One connection to the control port."""

    def __init__(self, port: ControlPort[Known]) -> None:
        self._port = port
        self._transport: asyncio.Transport
        self._buffer = b""
        self._answering: set[asyncio.Future[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._port.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._port.left(self)

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > COMMAND_BYTES_MAX:
            self._transport.abort()
            return
        for line in lines:
            try:
                command = msgspec.json.decode(line, type=self._port.known)
            except msgspec.DecodeError as error:
                print(f"not a command: {error}", file=sys.stderr, flush=True)
                self._transport.abort()
                return
            self._obey(command)

    def send(self, message: dict[str, Any]) -> None:
        self._transport.write(msgspec.json.encode(message) + b"\n")

    def _obey(self, command: Known) -> None:
        try:
            answer = self._port.obey(command)
        except self._port.refusal as error:
            answer = {"error": str(error)}
        if isinstance(answer, dict):
            self._answer(command, answer)
            return
        answering = asyncio.ensure_future(self._answer_later(command, answer))
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    async def _answer_later(self, command: Known, coming: Awaitable[Answer]) -> None:
        try:
            answer = await coming
        except self._port.refusal as error:
            answer = {"error": str(error)}
        self._answer(command, answer)

    def _answer(self, command: Known, answer: Answer) -> None:
        self.send({"number": command.number, "time_ns": time.monotonic_ns(), **answer})
