"""The side of a trial where money comes in and goes out: a chain, the target's processes on it, the world.

    clients, harness ───────────────▶ node ◀── rpc proxy ◀── relays, watcher, reconciler ──▶ receiver

Clients and harness talk to the node itself, the target's processes through a proxy: faults of that line hit
the system alone. The receiver is who gets alerts and notices. Blocks are mined by the harness, one each
`block_time_s`, on any node alike: so faults can hold them back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from chaos.chain import ChainOptions, choose_chain
from chaos.control_line import ControlError
from chaos.faults.fault import FaultError
from chaos.miner import Miner
from chaos.ports import free_port
from chaos.receiver_control import ReceiverControl
from chaos.rpc import Rpc, RpcError
from chaos.rpc_control import RpcControl
from chaos.supervisor import Child, Supervisor, SupervisorError
from chaos.target import Access, TargetError
from chaos.vault import load_libraries
from scenarios.plan import ChainPlan

COMMAND_DEADLINE_S = 60.0
LINE_DEADLINE_S = 15.0
LOOK_S = 0.1
OPERATOR_VARIABLE = "SEATRIAL_OPERATOR_KEY"
WALLET_DOMAIN = "localhost"


class Contracts(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON that `deploy` prints: two addresses, and the first block that concerns them."""

    usdc: str
    vault: str
    block: int


class Custody:
    """The chain of one trial and everything on it; faults reach it as World.custody."""

    def __init__(
        self,
        spec: str,
        plan: ChainPlan,
        *,
        supervisor: Supervisor,
        scratch: Path,
        run: Path,
        command: Sequence[str],
        seed: int,
    ) -> None:
        self.plan = plan
        self.run = run
        self.relays: list[Child] = []
        self.node = choose_chain(
            spec, supervisor=supervisor, data_dir=scratch / "chain", options=ChainOptions(seed=seed)
        )
        self._supervisor = supervisor
        self._target = list(command)
        self._contracts: Contracts | None = None
        self._access: Access | None = None
        self._direct: Rpc | None = None
        self._miner: Miner | None = None
        self._watcher: Child | None = None
        self._reconciler: Child | None = None
        self._stopped = False
        self._key = ""
        self.rpc = RpcControl(free_port())
        self.receiver = ReceiverControl(free_port())
        self._line = f"http://127.0.0.1:{free_port()}"

    # --- its beginning, step by step

    def start_node(self) -> None:
        """Start node, line and receiver; raises ChainError, SupervisorError, TargetError and others."""
        self.node.start()
        self._key = self._operator_key()
        self._direct = Rpc(self.node.url)
        try:
            # a block for each transaction, until the load begins
            self._direct.ask("evm_setAutomine", True)
        except RpcError as error:
            raise TargetError(
                f"--chain {self.node.kind}: a run needs a development node, which is mined on demand: {error}"
            ) from None
        line = urlsplit(self._line).port
        self._supervisor.spawn(
            "rpc-proxy",
            [
                *(sys.executable, "-m", "chaos.rpc_proxy", "--listen", str(line)),
                *("--upstream", self.node.url, "--control", str(self.rpc.port)),
            ],
        )
        deliveries = self.run / "deliveries.jsonl"
        self._supervisor.spawn(
            "receiver",
            [
                *(sys.executable, "-m", "chaos.receiver", "--port", str(self.receiver.port)),
                *("--file", str(deliveries)),
            ],
        )
        self.rpc.connect(timeout_s=LINE_DEADLINE_S)
        self.receiver.connect(timeout_s=LINE_DEADLINE_S)

    def deploy(self) -> None:
        """Have the target deploy its contracts; raises TargetError."""
        done = self._run_target(["deploy", "--rpc", self.node.url, "--key-env", OPERATOR_VARIABLE])
        if done.returncode != 0:
            raise TargetError(f"deploy exited {done.returncode}: {done.stderr.strip()[-2000:]}")
        try:
            self._contracts = msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=Contracts)
        except (IndexError, msgspec.DecodeError) as error:
            raise TargetError(f"deploy printed no JSON with usdc, vault, block: {error}") from None

    def admit(self, access: Access) -> None:
        """Take the target's access; raises TargetError when relay and watcher could not work with it."""
        if access.relay_dsn is None:
            raise TargetError("install printed no relay_dsn, which relay and watcher need (docs/targets.md)")
        self._access = access

    def start_processes(self, access: Access) -> None:
        """Start the watcher and the first relay; raises TargetError, SupervisorError."""
        self.admit(access)
        assert access.relay_dsn is not None
        self._watcher = self._supervisor.spawn(
            "watcher",
            [
                *(*self._target, "watch", *self._on_chain(access.relay_dsn)),
                *("--confirmations", str(self.plan.confirmations)),
                *("--from-block", str(self._deployed.block)),
                *("--poll-s", "0.25", "--resend-s", "1", "--stuck-s", "4"),
            ],
        )
        self.relays.append(self.spawn_relay("relay-0"))

    def begin_load(self) -> None:
        """Blocks by the clock from now on, all relays, and reconciliations: books and chain agree by now.

        Not sooner: each loads its libraries for a second of CPU, and the first trade would wait for that.
        """
        assert self._access is not None
        assert self._direct is not None
        self._miner = Miner(self._direct, self.plan.block_time_s)
        self._miner.start()
        # before the faults: the import would hold up whoever waits for them
        threading.Thread(target=load_libraries, name="libraries of the chain", daemon=True).start()
        for number in range(1, self.plan.relays):
            self.relays.append(self.spawn_relay(f"relay-{number}"))
        threading.Thread(target=self._start_reconciler, name="reconciler", daemon=True).start()

    def _start_reconciler(self) -> None:
        """Once the watcher has read the vault's logs: what is in flight before that, nobody could know."""
        assert self._access is not None
        deadline = time.monotonic() + LINE_DEADLINE_S
        try:
            while not self.rpc.status()["requests"].get("eth_getLogs"):
                if self._stopped or time.monotonic() > deadline:
                    break
                time.sleep(LOOK_S)  # bounded by the deadline; the condition is the watcher's first look
            if not self._stopped:
                self._reconciler = self._supervisor.spawn(
                    "reconciler",
                    [
                        *(*self._target, "reconcile", *self._on_chain(self._access.admin_dsn or "")),
                        *("--every", str(self.plan.reconcile_every_s)),
                    ],
                )
        except (ControlError, SupervisorError):
            return  # the trial is over, or the line is gone, which ends it

    # --- what others ask

    @property
    def load_environment(self) -> Mapping[str, str]:
        """What the load child is told of the chain."""
        told = {
            "rpc": self.node.url,
            "chain_id": self.chain_id,
            "usdc": self.usdc,
            "vault": self.vault,
            "minter_key": self._key,
            "confirmations": self.plan.confirmations,
            "wallet_domain": WALLET_DOMAIN,
        }
        return {"SEATRIAL_CHAIN": json.dumps(told)}

    @property
    def began(self) -> bool:
        """Whether the load has begun, and blocks come by the clock."""
        return self._miner is not None

    @property
    def watcher(self) -> Child:
        assert self._watcher is not None
        return self._watcher

    @property
    def vault(self) -> str:
        return self._deployed.vault

    @property
    def usdc(self) -> str:
        return self._deployed.usdc

    @property
    def first_block(self) -> int:
        """The block that the watcher began with."""
        return self._deployed.block

    @property
    def operator_key(self) -> str:
        return self._key

    @property
    def chain_id(self) -> int:
        return self.node.chain_id

    def ask(self, method: str, *params: Any) -> Any:
        """JSON-RPC straight to the node; raises RpcError."""
        assert self._direct is not None
        return self._direct.ask(method, *params)

    def mining(self, on: bool) -> None:
        """Blocks at the plan's interval, or none; raises RpcError."""
        if self._miner is not None:
            self._miner.mine(on)

    def spawn_relay(self, name: str) -> Child:
        """One relay more, like the others."""
        assert self._access is not None
        assert self._access.relay_dsn is not None
        return self._supervisor.spawn(
            name,
            [
                *(*self._target, "relay", *self._on_chain(self._access.relay_dsn)),
                *("--operator-key-env", OPERATOR_VARIABLE),
                *("--notify", f"json://127.0.0.1:{self.receiver.port}/"),
                *("--lease-s", str(self.plan.lease_s), "--attempts-max", str(self.plan.attempts_max)),
                *("--retry-base-s", "0.1", "--retry-cap-s", "1", "--poll-s", "0.2", "--workers", "8"),
            ],
            env={OPERATOR_VARIABLE: self._key},
            grace_s=self.plan.lease_s + 2,
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The target's command as the owner of its database; raises FaultError when it does not end."""
        assert self._access is not None
        try:
            return self._run_target([*arguments, "--dsn", self._access.admin_dsn or ""])
        except TargetError as error:
            raise FaultError(str(error)) from None

    # --- its end

    def stop_processes(self) -> None:
        """End what writes to the books: the reconciler, the watcher, the relays; blocks stop too."""
        self._stopped = True
        if self._miner is not None:
            self._miner.stop()
        for child in (self._reconciler, self._watcher, *self.relays):
            if child is not None:
                child.terminate()

    def close(self) -> None:
        """Let go of node, line and receiver; their processes are the supervisor's."""
        if self._miner is not None:
            self._miner.stop()
        self.rpc.close()
        self.receiver.close()
        if self._direct is not None:
            self._direct.close()

    # --- the rest

    @property
    def _deployed(self) -> Contracts:
        assert self._contracts is not None
        return self._contracts

    def _on_chain(self, dsn: str) -> list[str]:
        return ["--dsn", dsn, "--rpc", self._line, "--vault", self.vault, "--usdc", self.usdc]

    def _operator_key(self) -> str:
        if self.node.accounts:
            return self.node.accounts[0].private_key
        key = os.environ.get(OPERATOR_VARIABLE, "")
        if not key:
            raise TargetError(
                f"--chain {self.node.kind}: set {OPERATOR_VARIABLE} to the key of an account with gas, which"
                " deploys and operates the vault"
            )
        return key

    def _run_target(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        token = self._access.admin_token if self._access is not None else ""
        try:
            return subprocess.run(
                [*self._target, *arguments],
                env={**os.environ, OPERATOR_VARIABLE: self._key, "SEATRIAL_ADMIN_TOKEN": token},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_DEADLINE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TargetError(f"{arguments[0]} did not end: {error}") from None
