"""The nemesis's end of the proxy's control port: arms faults, heals them, hears what became of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from chaos.control_line import ControlError, ControlLine


class ProxyError(ControlError):
    """The proxy cannot be reached, went away, or refused a command."""


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one armed fault; times are CLOCK_MONOTONIC."""

    event: str
    fault_id: str
    time_ns: int
    evidence: dict[str, Any]


class ProxyControl(ControlLine):
    """One connection to the control port; safe to use from several threads.

    `listener` is called with each Happened, and `lost` once when the proxy goes away, both on a thread of
    this class; set them before the first fault is armed.
    """

    name = "the proxy"
    error = ProxyError

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.listener: Callable[[Happened], None] = lambda _: None

    def arm(self, fault_id: str, fault: str, *, nth: int, options: dict[str, Any]) -> int:
        """Arm a fault for the nth matching request from now on; when it was, in ns. Raises ProxyError."""
        answer = self.ask("arm", fault_id=fault_id, fault=fault, nth=nth, options=options)
        return int(answer["time_ns"])

    def heal(self) -> None:
        """Disarm all faults; those that act are hurried to their end, of which `listener` hears."""
        self.ask("heal")

    def hear(self, event: dict[str, Any]) -> None:
        self.listener(msgspec.convert(event, Happened))
