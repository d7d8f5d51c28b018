"""The world that hears the system's alerts and notices: a webhook that applies each Idempotency-Key once.

`python -m chaos.receiver --port PORT --file FILE`, on 127.0.0.1. A POST on any path is an arrival.
Its row is in the file before it is answered, in one write, so what the system believes delivered can be read
there whatever dies next. Rows are in the order of the answers; `number` is the order of arrival.

Told to by its controller (chaos.receiver_control), who comes to the same port and speaks JSON lines, it keeps
one answer back, or refuses one key until it is told otherwise. An answer is kept for some seconds; when the
last controller has gone it is given, and nothing is refused any more.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from chaos.control_port import Answer, Command, ControlPort, Refused
from chaos.http_calls import Call, CallConnection, json_of, json_reply
from chaos.http_framing import header

BACKLOG = 1_024
HELD_S_MAX = 15.0
OK, REFUSED, WITHHELD = 200, 503, 0
ANSWERS = {OK: json_reply(b"{}"), REFUSED: json_reply(b"{}", status="503 Service Unavailable")}
NOT_A_POST = json_reply(b'{"error":"arrivals are POSTs"}', status="405 Method Not Allowed")


class ReceiverCommand(Command, frozen=True, kw_only=True):
    """A line on the control port."""

    prefix: str = ""
    key: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One arrival as it is kept: `status` 0 is an answer withheld, `applied` its key's first effect."""

    time_ns: int
    number: int
    key: str | None
    title: str | None
    status: int
    applied: bool


class Arrival:
    """A POST, and what it was taken for."""

    def __init__(self, call: Call, number: int) -> None:
        self.call = call
        self.number = number
        self.key = header(call.head, b"idempotency-key")
        self.title = _title(call.body)
        self.applied = False


class Receiver:
    """What all connections share; `file` is a descriptor that only ever appends."""

    def __init__(self, file: int, failed: asyncio.Event, *, held_s_max: float) -> None:
        self.control = ControlPort(ReceiverCommand, obey=self._obey, abandoned=self.heal)
        self.failed = failed
        self.arrivals = 0
        self.expired = 0
        self._file = file
        self._held_s_max = held_s_max
        self._seen: Counter[str] = Counter()  # arrivals of each key
        self._applied: set[str] = set()
        self._to_hold: str | None = None  # the prefix of the next one
        self._held: Arrival | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._to_refuse: str | None = None  # the prefix of the next new one
        self._refused: str | None = None
        self._refusals = 0

    def arrived(self, call: Call) -> None:
        """Take an arrival into effect, and answer it unless it is to be held."""
        self.arrivals += 1
        arrival = Arrival(call, self.arrivals)
        key = arrival.key
        if self._is_refused(key):
            self._refusals += 1
            self._answer(arrival, REFUSED)
            return
        arrival.applied = key is None or key not in self._applied
        if key is not None:
            self._applied.add(key)
        if self._to_hold is not None and (key or "").startswith(self._to_hold):
            self._to_hold, self._held = None, arrival
            self._timer = asyncio.get_running_loop().call_later(self._held_s_max, self._expire)
            self.control.tell(
                {
                    "event": "held",
                    "key": key,
                    "number": arrival.number,
                    "peer_port": call.peer_port,
                    "time_ns": call.time_ns,
                }
            )
            return
        self._answer(arrival, OK)

    def left(self, connection: CallConnection) -> None:
        """A caller has gone: if it is the one whose answer is held, nobody will hear it."""
        if self._held is not None and self._held.call.is_of(connection):
            self._end_hold(WITHHELD)

    def heal(self) -> None:
        """Give the answer that is held, and refuse nothing any more."""
        self._to_hold = None
        self._end_hold(OK)
        self._to_refuse = self._refused = None

    def _is_refused(self, key: str | None) -> bool:
        if key is None:
            return False
        if self._to_refuse is not None and key not in self._seen and key.startswith(self._to_refuse):
            self._to_refuse, self._refused = None, key
        self._seen[key] += 1
        return key == self._refused

    def _expire(self) -> None:
        self.expired += 1
        self._end_hold(OK)

    def _end_hold(self, status: int) -> bool:
        """Whether there was an answer to give or to withhold, and somebody to meet it."""
        arrival, self._held = self._held, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return arrival is not None and self._answer(arrival, status)

    def _answer(self, arrival: Arrival, status: int) -> bool:
        row = Row(
            time_ns=arrival.call.time_ns,
            number=arrival.number,
            key=arrival.key,
            title=arrival.title,
            status=status,
            applied=arrival.applied,
        )
        line = msgspec.json.encode(row) + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            print(f"receiver: cannot write: {error}", file=sys.stderr, flush=True)
            written = 0
        if written != len(line):
            # What is not on disk was not delivered, and a record with a hole proves nothing.
            self.failed.set()
            arrival.call.reset()
            return False
        return arrival.call.reset() if status == WITHHELD else arrival.call.answer(ANSWERS[status])

    def _obey(self, command: ReceiverCommand) -> Answer:
        match command.command:
            case "hold_next":
                if self._held is not None or self._to_hold is not None:
                    raise Refused("one answer is held at a time")
                self._to_hold = command.prefix
                return {}
            case "release":
                self._to_hold = None
                return {"reached": self._end_hold(OK)}
            case "drop":
                self._to_hold = None
                return {"reached": self._end_hold(WITHHELD)}
            case "refuse_next":
                if self._refused is not None or self._to_refuse is not None:
                    raise Refused("one key is refused at a time")
                self._to_refuse, self._refusals = command.prefix, 0
                return {}
            case "refused":
                return {"key": self._refused, "refusals": self._refusals}
            case "arrivals":
                return {"arrivals": self._seen[command.key]}
            case "accept":
                self._to_refuse = self._refused = None
                return {}
            case "status":
                return {
                    "arrivals": self.arrivals,
                    "keys": len(self._seen),
                    "applied": len(self._applied),
                    "expired": self.expired,
                }
        raise Refused(f"no command {command.command!r}")


class Sender(CallConnection):
    """One connection of who delivers."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__()
        self._receiver = receiver

    def called(self, call: Call) -> None:
        if call.head.startswith(b"POST "):
            self._receiver.arrived(call)
        else:
            call.answer(NOT_A_POST)

    def left(self) -> None:
        self._receiver.left(self)


class Newcomer(asyncio.Protocol):
    """A connection before its first byte, by which a controller is told from an HTTP client."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        controls = data.startswith(b"{")
        protocol = self._receiver.control() if controls else Sender(self._receiver)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(data)


def _title(body: bytes) -> str | None:
    """The title of an alert or a notice, None where the body has none."""
    said = json_of(body)
    title = said.get("title") if isinstance(said, dict) else None
    return title if isinstance(title, str) else None


async def serve(port: int, file: int, *, held_s_max: float) -> int:
    """Serve until SIGTERM or SIGINT, or until a row can not be written; the exit code."""
    loop = asyncio.get_running_loop()
    stop, failed = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    receiver = Receiver(file, failed, held_s_max=held_s_max)
    listener = await loop.create_server(lambda: Newcomer(receiver), "127.0.0.1", port, backlog=BACKLOG)
    ends = [asyncio.ensure_future(event.wait()) for event in (stop, failed)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    listener.close()
    receiver.heal()
    return 1 if failed.is_set() else 0


def main(arguments: list[str] | None = None) -> int:
    """Parse the options and serve."""
    parser = argparse.ArgumentParser(prog="python -m chaos.receiver", description="Hears alerts and notices.")
    parser.add_argument("--port", type=int, required=True, help="port for deliveries, and for commands")
    parser.add_argument("--file", type=Path, required=True, help="where each arrival is written down")
    parser.add_argument("--held-s-max", type=float, default=HELD_S_MAX, help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    try:
        file = os.open(chosen.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            return uvloop.run(serve(chosen.port, file, held_s_max=chosen.held_s_max))
        finally:
            os.close(file)
    except OSError as error:
        print(f"receiver: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
