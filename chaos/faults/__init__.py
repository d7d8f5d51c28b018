"""The faults: one module each, and the register that names them all."""

from __future__ import annotations

from typing import Any

from chaos.faults.add_relay import AddRelay
from chaos.faults.drop_reply import DropReply
from chaos.faults.drop_request import DropRequest
from chaos.faults.drop_transaction import DropTransaction
from chaos.faults.duplicate_at_once import DuplicateAtOnce
from chaos.faults.duplicate_late import DuplicateLate
from chaos.faults.duplicate_transaction import DuplicateTransaction
from chaos.faults.fault import Fault, FaultError, ProcessFault, RequestFault, World, with_options
from chaos.faults.kill_chain import KillChain
from chaos.faults.kill_postgres import KillPostgres
from chaos.faults.kill_relay import KillRelay
from chaos.faults.kill_server import KillServer
from chaos.faults.lag_chain import LagChain
from chaos.faults.lose_rpc_reply import LoseRpcReply
from chaos.faults.pause_relay import PauseRelay
from chaos.faults.plant_drift import PlantDrift
from chaos.faults.poison_event import PoisonEvent
from chaos.faults.reorganise import Reorganise
from chaos.faults.replace_transaction import ReplaceTransaction
from chaos.faults.terminate_backend import TerminateBackend

__all__ = ["FAULTS", "Fault", "FaultError", "ProcessFault", "RequestFault", "World", "make_fault"]

FAULTS: dict[str, type[Fault]] = {
    "add_relay": AddRelay,
    "drop_reply": DropReply,
    "drop_request": DropRequest,
    "drop_transaction": DropTransaction,
    "duplicate_at_once": DuplicateAtOnce,
    "duplicate_late": DuplicateLate,
    "duplicate_transaction": DuplicateTransaction,
    "kill_chain": KillChain,
    "kill_postgres": KillPostgres,
    "kill_relay": KillRelay,
    "kill_server": KillServer,
    "lag_chain": LagChain,
    "lose_rpc_reply": LoseRpcReply,
    "pause_relay": PauseRelay,
    "plant_drift": PlantDrift,
    "poison_event": PoisonEvent,
    "reorganise": Reorganise,
    "replace_transaction": ReplaceTransaction,
    "terminate_backend": TerminateBackend,
}


def make_fault(name: str, options: dict[str, Any]) -> Fault:
    """A fault by name with its options checked; raises FaultError naming what is wrong and what is known."""
    if name not in FAULTS:
        raise FaultError(f"no fault {name!r}; the faults are {', '.join(sorted(FAULTS))}")
    return with_options(name, FAULTS[name], options)
