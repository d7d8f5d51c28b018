"""The line between the system and its node: JSON-RPC over HTTP, in which the faults of that line happen.

`python -m chaos.rpc_proxy --listen PORT --upstream URL --control PORT`, all on 127.0.0.1. Whatever no command
selects passes once and unchanged. Commands come as JSON lines on the control port (chaos.rpc_control):

1. A hold lets the next call of a method through and keeps its reply back; a repetition sends the next call
   twice. Both look at single calls only: a batch passes.
2. Frozen, the node seems to stand still at the head of that moment (chaos.rpc_lag), in batches too. No call
   is under way when it freezes, so nobody sees a newer block and then an older one.

One caller's connection has one connection to the node, ended with it: a node that refuses, or dies while a
call is open, is a reset, and the proxy never answers in its place. When the last controller has gone, every
held reply is delivered and the node thawed.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvloop

from chaos.control_port import Answer, Command, ControlPort, Refused
from chaos.http_calls import Call, CallConnection, json_reply
from chaos.http_messages import Request, UpstreamLost
from chaos.rpc_calls import Json, RpcCall, read_calls, read_reply
from chaos.rpc_holds import Holds, Keep
from chaos.rpc_lag import TOUCHED, Lag
from chaos.rpc_node import NodeConnection

BACKLOG = 1_024
LOOPBACK = frozenset({"127.0.0.1", "localhost"})
HELD_S_MAX = 15.0
METHODS_MAX = 200
OTHER = "(other)"  # no JSON-RPC, or one method too many
CALL_S_MAX = 60.0  # callers are less patient
# Shorter than a controller waits for its answer.
FREEZE_S_MAX = 4.0


class LineCommand(Command, frozen=True, kw_only=True):
    """A line on the control port."""

    method: str = ""
    hold: int = 0


class RpcProxy:
    """What all connections share."""

    def __init__(self, upstream: int, *, held_s_max: float) -> None:
        self.upstream = upstream
        self.callers: set[Caller] = set()
        self.control = ControlPort(LineCommand, obey=self._obey, abandoned=self.heal)
        self.holds = Holds(self.control.tell, held_s_max=held_s_max)
        self.lag = Lag()
        self.refused = 0  # callers whose node could not be reached
        self.lost = 0  # calls whose reply never came
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests: Counter[str] = Counter()
        self._under_way = 0
        self._changed = asyncio.Condition()
        self._freezing = False

    def heal(self) -> None:
        """Deliver what is held, disarm what waits, thaw."""
        self.holds.heal()
        self.lag.thaw()

    def count(self, calls: RpcCall | list[RpcCall] | None) -> None:
        """Count a request by its method, a batch by each of its methods."""
        for call in calls if isinstance(calls, list) else [calls]:
            name = OTHER if call is None else call.method
            known = name in self._requests or len(self._requests) < METHODS_MAX
            self._requests[name if known else OTHER] += 1

    async def enter(self) -> None:
        """Wait while the head is being frozen; what follows is under way until `leave`."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._freezing)
            self._under_way += 1

    async def leave(self) -> None:
        async with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def run(self, passing: Coroutine[Any, Any, None], call: Call) -> None:
        """Run what becomes of a call; should it fail, its caller meets a reset and the log says why."""
        task = asyncio.get_running_loop().create_task(passing)
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                asyncio.get_running_loop().call_exception_handler({"message": "a call", "exception": error})
                call.reset()

        task.add_done_callback(over)

    async def send_again(self, keep: Keep, call: Call, rpc: RpcCall, first: Json) -> None:
        """Send a call that has its reply once more, and report both replies."""
        bodies = [first]
        try:
            async with asyncio.timeout(HELD_S_MAX):
                node = await NodeConnection.connect(self.upstream)
                try:
                    second = await node.send(Request(call.raw, call.head_bytes))
                finally:
                    node.close()
        except (UpstreamLost, TimeoutError):
            self.lost += 1
        else:
            bodies.append(read_reply(second.content))
        self.holds.repeated(keep, call, rpc, bodies)

    def _obey(self, command: LineCommand) -> Answer | Awaitable[Answer]:
        match command.command:
            case "hold" | "repeat" as kind:
                return {"hold": self.holds.arm(kind, command.method)}
            case "deliver" | "drop" as what:
                return {"reached": self.holds.decide(command.hold, what)}
            case "cancel":
                return {"open": self.holds.cancel(command.hold)}
            case "freeze":
                return self._freeze()
            case "thaw":
                self.lag.thaw()
                return {}
            case "status":
                return self._status()
        raise Refused(f"no command {command.command!r}")

    def _status(self) -> Answer:
        frozen = self.lag.frozen
        return {
            "requests": dict(self._requests),
            "refused": self.refused,
            "lost": self.lost,
            "callers": len(self.callers),
            "holds": self.holds.outstanding(),
            "expired": self.holds.expired,
            "freezing": self._freezing,
            "frozen_at": None if frozen is None else frozen.number,
            "clamped": self.lag.clamped,
        }

    async def _freeze(self) -> Answer:
        if self._freezing or self.lag.frozen is not None:
            raise Refused("the node is frozen already")
        self._freezing = True
        node: NodeConnection | None = None
        try:
            async with asyncio.timeout(FREEZE_S_MAX):
                async with self._changed:
                    await self._changed.wait_for(lambda: self._under_way == 0)
                node = await NodeConnection.connect(self.upstream)
                number = await self.lag.freeze(node.ask)
                if self.control.deserted:
                    self.lag.thaw()  # who asked for it has gone meanwhile
                return {"frozen_at": number}
        except (UpstreamLost, LookupError) as error:
            raise Refused(f"cannot freeze: {error}") from None
        except TimeoutError:
            raise Refused(f"cannot freeze: the node did not answer within {FREEZE_S_MAX:.0f} s") from None
        finally:
            if node is not None:
                node.close()
            self._freezing = False
            async with self._changed:
                self._changed.notify_all()


class Caller(CallConnection):
    """One caller, and its connection to the node."""

    def __init__(self, proxy: RpcProxy) -> None:
        super().__init__()
        self._proxy = proxy
        self._node: asyncio.Task[NodeConnection]
        self._passing = False  # a call is on its way to the node or back

    def connected(self) -> None:
        self._proxy.callers.add(self)
        self._node = asyncio.get_running_loop().create_task(
            NodeConnection.connect(self._proxy.upstream, ended=self._node_ended)
        )
        self._node.add_done_callback(self._node_found)

    def called(self, call: Call) -> None:
        self._passing = True
        self._proxy.run(self._pass(call), call)

    def left(self) -> None:
        self._proxy.callers.discard(self)
        # What was sent to the node arrives, and who holds its reply back hears of it.
        if not self._passing:
            self._close_node()

    def _node_found(self, connecting: asyncio.Task[NodeConnection]) -> None:
        if connecting.cancelled():  # the proxy ends
            return
        if connecting.exception() is not None:
            self._proxy.refused += 1
            self.reset()
        elif self.gone and not self._passing:
            connecting.result().close()

    def _node_ended(self) -> None:
        if self.idle:
            self.close()
        elif self.at_hand:
            self.close_after_answer()  # or a reset: a call that has no reply hears of it by itself
        else:
            self.reset()

    def _close_node(self) -> None:
        if self._node.done() and not self._node.cancelled() and self._node.exception() is None:
            self._node.result().close()

    async def _pass(self, call: Call) -> None:
        proxy = self._proxy
        calls = read_calls(call.body)
        proxy.count(calls)
        await proxy.enter()
        single = calls if isinstance(calls, RpcCall) else None
        keep = proxy.holds.take(single.method) if single is not None else None
        try:
            async with asyncio.timeout(CALL_S_MAX):
                node = await self._node
                reply, content = await self._forward(node, call, calls)
        except (UpstreamLost, TimeoutError):
            proxy.lost += 1
            if keep is not None:
                proxy.holds.put_back(keep)
            call.reset()
            return
        finally:
            self._passing = False
            await proxy.leave()
            if self.gone:
                self._close_node()
        if keep is None or single is None:
            call.answer(reply)
        elif keep.kind == "hold":
            proxy.holds.hold(keep, call, single, reply, read_reply(content))
        else:
            call.answer(reply)
            proxy.run(proxy.send_again(keep, call, single, read_reply(content)), call)

    async def _forward(
        self, node: NodeConnection, call: Call, calls: RpcCall | list[RpcCall] | None
    ) -> tuple[bytes, bytes]:
        """The whole reply, and its content."""
        frozen = self._proxy.lag.frozen
        if frozen is None or calls is None or not _is_touched(calls):
            reply = await node.send(Request(call.raw, call.head_bytes))
            return reply.raw, reply.content
        if isinstance(calls, RpcCall):
            content = msgspec.json.encode(calls.reply(await self._proxy.lag.answer(calls, frozen, node.ask)))
            return json_reply(content if calls.asks else b""), content
        replies: list[Json] = []
        for each in calls:
            body = await self._proxy.lag.answer(each, frozen, node.ask)
            if each.asks:
                replies.append(each.reply(body))
        content = msgspec.json.encode(replies) if replies else b""
        return json_reply(content), content


def _is_touched(calls: RpcCall | list[RpcCall]) -> bool:
    return any(call.method in TOUCHED for call in (calls if isinstance(calls, list) else [calls]))


async def serve(listen: int, upstream: int, control: int, *, held_s_max: float) -> None:
    """Serve until SIGTERM or SIGINT; raises OSError when a port is taken."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    proxy = RpcProxy(upstream, held_s_max=held_s_max)
    listener = await loop.create_server(lambda: Caller(proxy), "127.0.0.1", listen, backlog=BACKLOG)
    controls = await loop.create_server(proxy.control, "127.0.0.1", control)
    await stop.wait()
    listener.close()
    controls.close()
    proxy.heal()
    for caller in list(proxy.callers):
        caller.close()


def port_of(url: str) -> int:
    """The port of a node's URL; raises ValueError unless it is plain http on loopback, without a path."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in LOOPBACK or parts.path not in ("", "/"):
        raise ValueError(f"{url!r} is not http://127.0.0.1:PORT: the line stays on this machine")
    if parts.port is None:
        raise ValueError(f"{url!r} names no port")
    return parts.port


def main(arguments: list[str] | None = None) -> int:
    """Parse the ports and serve."""
    parser = argparse.ArgumentParser(prog="python -m chaos.rpc_proxy", description="The line to the node.")
    parser.add_argument("--listen", type=int, required=True, help="port for the system")
    parser.add_argument("--upstream", required=True, metavar="URL", help="the node's JSON-RPC endpoint")
    parser.add_argument("--control", type=int, required=True, help="port for who breaks the line")
    parser.add_argument("--held-s-max", type=float, default=HELD_S_MAX, help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    try:
        upstream = port_of(chosen.upstream)
    except ValueError as error:
        parser.error(str(error))
    try:
        uvloop.run(serve(chosen.listen, upstream, chosen.control, held_s_max=chosen.held_s_max))
    except OSError as error:
        print(f"rpc_proxy: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
