"""The harness's end of the receiver: keeps an answer back, refuses a key.

The other end is chaos.receiver. Everything that raises raises ControlError.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chaos.control_line import ControlLine


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery whose answer is held: its `number` is the one of its row, `peer_port` the sender's port."""

    key: str | None
    number: int
    peer_port: int
    time_ns: int


class ReceiverControl(ControlLine):
    """One connection to the receiver's port; safe to use from several threads."""

    name = "the receiver"

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._held: Arrival | None = None

    def hold_next(self, prefix: str = "") -> None:
        """Keep back the answer to the next arrival whose key begins so, at most 15 s; then it is given.

        An arrival that is refused is not held. Raises while another is held or waited for.
        """
        with self.changed:
            self._held = None
        self.ask("hold_next", prefix=prefix)

    def await_held(self, timeout_s: float) -> Arrival | None:
        """The arrival that is held, taken into effect but not answered; None when none comes in time."""
        if not self.await_event(lambda: self._held is not None, timeout_s):
            return None
        return self._held

    def release(self) -> bool:
        """Answer what is held, or hold nothing any more; False when nobody was there to hear an answer."""
        return bool(self.ask("release")["reached"])

    def drop(self) -> bool:
        """Reset the sender whose answer is held; False when there is none, or it has gone by itself."""
        return bool(self.ask("drop")["reached"])

    def refuse_next(self, prefix: str = "") -> None:
        """Refuse (503) each arrival of the next new key that begins so. Raises while another is refused."""
        self.ask("refuse_next", prefix=prefix)

    def refused(self) -> tuple[str, int] | None:
        """The key that is refused and how often it was; None before it has come, and after `accept`."""
        answer = self.ask("refused")
        return None if answer["key"] is None else (answer["key"], int(answer["refusals"]))

    def arrivals(self, key: str) -> int:
        """How often this key has arrived, refusals and answers withheld included."""
        return int(self.ask("arrivals", key=key)["arrivals"])

    def accept(self) -> None:
        """Refuse nothing any more; idempotent."""
        self.ask("accept")

    def hear(self, event: dict[str, Any]) -> None:
        with self.changed:
            self._held = msgspec.convert(event, Arrival)
            self.changed.notify_all()
