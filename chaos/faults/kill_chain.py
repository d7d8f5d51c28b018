"""The chain's node killed with SIGKILL, away for a while, and back with all its blocks."""

from __future__ import annotations

import signal
import time

from chaos.chain import ChainError
from chaos.faults.fault import Custody, FaultError, ProcessFault, World
from chaos.faults.on_chain import Wait, asking, custody_of, let_go
from chaos.http_messages import Evidence
from chaos.rpc import RpcError
from chaos.supervisor import SupervisorError


class KillChain(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SIGKILL the node, and start it again after `down_s`; healed when the block that was its head is there.

    What waited in its pool is lost. No undo of its own: with the harness gone the watchdog ends the node.
    """

    target = "chain"
    down_s: Wait = 2.0

    def check(self, world: World) -> None:
        _node_of(custody_of(world))

    def inject(self, world: World) -> Evidence:
        custody = custody_of(world)
        _node_of(custody)
        child = custody.node.child
        if child is None or not child.alive:
            raise FaultError("the chain had ended before")
        with asking():
            # no block between the look and the kill
            custody.mining(False)
            head = custody.ask("eth_getBlockByNumber", "latest", False)
            pool = custody.ask("txpool_status")
        pid, began_ns = child.pid, time.monotonic_ns()
        try:
            custody.node.kill()
        except (ChainError, SupervisorError) as error:
            raise FaultError(str(error)) from None
        if child.returncode != -signal.SIGKILL:
            raise FaultError(f"the chain ended by itself, exit {child.returncode}")
        time.sleep(self.down_s)  # bounded by its type; how long the others are without a node
        if (answer := _answer(custody)) is not None:
            raise FaultError(f"the chain still answers, {answer}, after SIGKILL")
        return {
            "pid": pid,
            "returncode": child.returncode,
            "kill_ns": began_ns,
            "down_s": round((time.monotonic_ns() - began_ns) / 1e9, 3),
            "head": int(head["number"], 16),
            "head_hash": head["hash"],
            "waiting": int(pool["pending"], 16) + int(pool["queued"], 16),
        }

    def heal(self, world: World, landed: Evidence) -> Evidence:
        custody = custody_of(world)
        evidence: Evidence = {}
        child = custody.node.child
        if child is not None and not child.alive:
            try:
                evidence["recovery_s"] = round(custody.node.restart_after_kill(), 3)
            except (ChainError, SupervisorError) as error:
                raise FaultError(str(error)) from None
            evidence |= {"pid": child.pid, "pid_before": landed.get("pid")}
        evidence |= let_go(custody)
        if landed:
            with asking():
                found = custody.ask("eth_getBlockByNumber", hex(landed["head"]), False)
            evidence["head_hash_before"] = None if found is None else found["hash"]
            if evidence["head_hash_before"] != landed["head_hash"]:
                raise FaultError(f"block {landed['head']} was {landed['head_hash']} before the kill: {found}")
        return evidence


def _node_of(custody: Custody) -> None:
    if not custody.node.can_kill:
        raise FaultError("kill_chain needs a chain that keeps its blocks: --chain embedded")


def _answer(custody: Custody) -> str | None:
    try:
        return str(custody.ask("eth_blockNumber"))
    except RpcError:
        return None
