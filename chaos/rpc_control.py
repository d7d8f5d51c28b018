"""The harness's end of the line to the node: keeps replies back, repeats calls, makes the node stand still.

The other end is chaos.rpc_proxy. Everything that raises raises ControlError.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chaos.control_line import ControlLine

SEND = "eth_sendRawTransaction"


class HeldCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was selected, and what the node replied: `replies` are two for a repeated one.

    `peer_port` is the caller's source port, `time_ns` (CLOCK_MONOTONIC) when the last reply was in. A
    repeated call has one reply only where the second was lost. A reply that is not JSON is empty.
    """

    method: str
    params: list[Any]
    replies: list[dict[str, Any]]
    peer_port: int
    time_ns: int

    @property
    def reply(self) -> dict[str, Any]:
        """The first reply."""
        return self.replies[0]


class Hold:
    """One call that was asked for; made by RpcControl."""

    def __init__(self, control: RpcControl, number: int, method: str) -> None:
        self.method = method
        self._control = control
        self._number = number

    def wait(self, timeout_s: float) -> HeldCall | None:
        """The call, once its reply is in (for a repeated one: both); None when it does not come in time."""
        return self._control.held(self._number, timeout_s)

    def deliver(self) -> bool:
        """Give the caller its reply; False when it has gone, or the hold is over. Raises before it is in."""
        return bool(self._control.ask("deliver", hold=self._number)["reached"])

    def drop(self) -> bool:
        """Reset the caller's connection, without the reply; False when it has gone, or the hold is over."""
        return bool(self._control.ask("drop", hold=self._number)["reached"])

    def cancel(self) -> None:
        """Disarm, and deliver what is held; idempotent."""
        self._control.ask("cancel", hold=self._number)


class RpcControl(ControlLine):
    """One connection to the line's control port; safe to use from several threads."""

    name = "the line to the node"

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._held: dict[int, HeldCall] = {}

    def hold(self, method: str = SEND) -> Hold:
        """Keep back the reply to the next call of this method, at most 15 s; then it is delivered."""
        return Hold(self, int(self.ask("hold", method=method)["hold"]), method)

    def repeat(self, method: str = SEND) -> Hold:
        """Send the next call of this method twice; its caller gets the first reply at once."""
        return Hold(self, int(self.ask("repeat", method=method)["hold"]), method)

    def freeze(self) -> int:
        """Make the node stand still at its present head; its number. Raises when the node does not answer."""
        return int(self.ask("freeze")["frozen_at"])

    def thaw(self) -> None:
        """Show the node as it is; idempotent."""
        self.ask("thaw")

    def held(self, number: int, timeout_s: float) -> HeldCall | None:
        """What a hold's `wait` waits for."""
        if not self.await_event(lambda: number in self._held, timeout_s):
            return None
        return self._held[number]

    def hear(self, event: dict[str, Any]) -> None:
        with self.changed:
            self._held[event["hold"]] = msgspec.convert(event, HeldCall)
            self.changed.notify_all()
