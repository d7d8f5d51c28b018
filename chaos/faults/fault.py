"""What a fault is: the two kinds, their options, and the world that faults of processes act on.

A fault of a request lives in the proxy and has one request in its hands. A fault of a process is injected
and healed by the nemesis. The options of a fault are its fields; an injection that returns evidence landed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

import msgspec

from chaos.http_framing import header
from chaos.http_messages import Evidence

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from chaos.chain import Chain
    from chaos.child import Child
    from chaos.cluster import Postgres
    from chaos.http_exchange import Exchange
    from chaos.proxy_control import ProxyControl
    from chaos.receiver_control import ReceiverControl
    from chaos.rpc_control import RpcControl
    from scenarios.plan import ChainPlan


# A wait of a fault, short enough that healing stays bounded.
Seconds = Annotated[float, msgspec.Meta(ge=0, le=30)]


class FaultError(Exception):
    """A fault that does not exist, has no such option, or could not be injected or healed; says why."""


class Custody(Protocol):
    """The part of the world where money comes in and goes out: chaos.custody.Custody in a run.

    `rpc` controls the line from the system to the node, `receiver` whoever gets its alerts and notices.
    """

    @property
    def node(self) -> Chain: ...
    @property
    def rpc(self) -> RpcControl: ...
    @property
    def receiver(self) -> ReceiverControl: ...
    @property
    def relays(self) -> list[Child]: ...
    @property
    def watcher(self) -> Child: ...
    @property
    def vault(self) -> str: ...
    @property
    def usdc(self) -> str: ...
    @property
    def operator_key(self) -> str: ...
    @property
    def chain_id(self) -> int: ...
    @property
    def plan(self) -> ChainPlan: ...
    def ask(self, method: str, *params: Any) -> Any:
        """JSON-RPC straight to the node, past the line that faults hit; raises RpcError."""

    def mining(self, on: bool) -> None:
        """Blocks at the plan's interval, or none; raises RpcError."""

    def spawn_relay(self, name: str) -> Child:
        """One relay more, like the others."""

    def command(self, *arguments: str) -> CompletedProcess[str]:
        """The target's command as the owner of its database; raises FaultError when it does not end."""


class World(Protocol):
    """What the faults may reach: chaos.trial.Trial in a run. `custody` is None in a run without a chain."""

    @property
    def proxy(self) -> ProxyControl | None: ...
    @property
    def servers(self) -> Sequence[Child]: ...
    @property
    def postgres(self) -> Postgres | None: ...
    @property
    def custody(self) -> Custody | None: ...
    @property
    def admin_dsn(self) -> str: ...
    def server_healthy(self, timeout_s: float) -> bool: ...


class RequestFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault of one request that moves money: a POST with an Idempotency-Key.

    `paths` restricts it to requests of exactly these paths; empty means all.
    """

    target: ClassVar[str] = "proxy"
    paths: tuple[str, ...] = ()

    def matches(self, head: bytes) -> bool:
        """Whether a request with this head is one that the fault may hit."""
        if not head.startswith(b"POST ") or header(head, b"idempotency-key") is None:
            return False
        return not self.paths or head.split(b" ", 2)[1].decode("latin-1").partition("?")[0] in self.paths

    async def inject(self, exchange: Exchange) -> Evidence:
        """Act on the request; returns the evidence, raises Missed when it could not do what it is for."""
        raise NotImplementedError


class ProcessFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault of a process; two of them are never in effect at once."""

    target: ClassVar[str]

    def check(self, world: World) -> None:
        """Raise FaultError when this world cannot have the fault; then nothing was done to it."""

    def inject(self, world: World) -> Evidence:
        """Break it; returns the evidence that it is broken, raises FaultError when it could not be."""
        raise NotImplementedError

    def heal(self, world: World, landed: Evidence) -> Evidence:
        """Mend it, whatever `inject` left (`landed` is empty if it failed); returns the evidence.

        Raises FaultError when it stays broken.
        """
        raise NotImplementedError


Fault = RequestFault | ProcessFault


def with_options(name: str, kind: type[Fault], options: dict[str, Any]) -> Fault:
    """The fault with these options; raises FaultError naming the wrong one and those that exist."""
    try:
        return msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__) or "none"
        raise FaultError(f"fault {name}: options: {error}; its options are: {known}") from None
