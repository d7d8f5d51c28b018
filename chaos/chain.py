"""The choice of a chain to run against, and to break: one of ours on loopback, or one that a URL names.

Ours keeps all its blocks when it is killed; anvil keeps them in memory, and a URL's node is somebody else's:
these two can not be killed and come back.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import httpx

from chaos.ports import free_port
from chaos.processes import wait_until
from chaos.supervisor import Child, Supervisor

KINDS = ("auto", "embedded", "anvil")
START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 5.0
ANVIL_VARIABLE = "SEATRIAL_ANVIL"
# Where `.ci/anvil` puts it.
ANVIL_CACHE = Path("~/.cache/seatrial/anvil").expanduser()


class ChainError(Exception):
    """A chain that cannot be had or does not answer; says what to do."""


@dataclass(frozen=True)
class ChainAccount:
    """An account with money of the chain's own for fees, and its key, which everybody knows."""

    address: str
    private_key: str


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """What a chain of ours begins with; `block_time_s` 0 is a block for each transaction."""

    seed: int = 0
    chain_id: int = 31_337
    block_time_s: float = 0
    slots_in_an_epoch: int = 32


class Chain(Protocol):
    """One chain behind a JSON-RPC endpoint, and why it is this one."""

    kind: str
    why: str
    can_kill: bool
    url: str
    chain_id: int
    accounts: list[ChainAccount]
    child: Child | None

    def start(self) -> None:
        """Start it and wait until it answers; raises ChainError. Accounts and chain id are known then."""

    def stop(self) -> None:
        """End it in order; nothing happens when it does not run."""

    def kill(self) -> None:
        """SIGKILL it; raises ChainError where its blocks would not come back."""

    def restart_after_kill(self) -> float:
        """Start it again with all its blocks, on the same port; returns the seconds until it answered."""

    def pids(self) -> list[int]:
        """Its processes; empty where they are not ours."""


def choose_chain(
    spec: str, *, supervisor: Supervisor, data_dir: Path, options: ChainOptions | None = None
) -> Chain:
    """The chain that `spec` names: auto, embedded, anvil or a URL; not started yet. Raises ChainError."""
    if spec.startswith(("http://", "https://")):
        return UrlChain(spec, why="asked for by its URL")
    if spec not in KINDS:
        raise ChainError(f"--chain {spec}: write {', '.join(KINDS)} or a URL (http://127.0.0.1:8545)")
    if trouble := chain_trouble(spec):
        raise ChainError(trouble)
    embedded = spec == "embedded" or (spec == "auto" and has_machine())
    why = f"asked for with --chain {spec}" if spec != "auto" else "it comes with Seatrial"
    return (EmbeddedChain if embedded else AnvilChain)(
        supervisor=supervisor,
        data_dir=data_dir,
        why=why if embedded or spec != "auto" else "this Python has no pyrevm",
        options=options or ChainOptions(),
    )


def chain_trouble(spec: str) -> str | None:
    """Why the chain of this kind cannot be had on this machine; None: it can."""
    no_machine = (
        f"the embedded chain's EVM, pyrevm, has no wheel for this Python {sys.version_info[0]}."
        f"{sys.version_info[1]}: use 3.11 or 3.12"
    )
    no_anvil = f"anvil is not on PATH: run .ci/anvil, which gets it from npm, or set {ANVIL_VARIABLE}"
    if spec == "embedded" and not has_machine():
        return no_machine
    if spec == "anvil" and find_anvil() is None:
        return no_anvil
    if spec == "auto" and not has_machine() and find_anvil() is None:
        return f"{no_machine}; or, for another chain: {no_anvil}"
    return None


def has_machine() -> bool:
    """Whether the embedded chain's EVM is installed."""
    return importlib.util.find_spec("pyrevm") is not None


class OwnChain:
    """What the chains share that are a child of the supervisor: a port, a process, a first answer."""

    def __init__(self, *, supervisor: Supervisor, data_dir: Path, why: str, options: ChainOptions) -> None:
        self.why = why
        self.options = options
        self.chain_id = options.chain_id
        self.data_dir = data_dir.absolute()
        self.accounts: list[ChainAccount] = []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._supervisor = supervisor
        self.child: Child | None = None

    def start(self) -> None:
        if self.child is None:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self.child = self._supervisor.spawn("chain", self._command())
        elif not self.child.alive:
            self.child.start()
        self._await_answer(self.child)
        self.accounts = self._read_accounts()

    def stop(self) -> None:
        if self.child is not None:
            self.child.terminate()

    def pids(self) -> list[int]:
        return [] if self.child is None else [process.pid for process in self.child.processes()]

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _read_accounts(self) -> list[ChainAccount]:
        raise NotImplementedError

    def _await_answer(self, child: Child) -> None:
        found: int | None = None

        def answered() -> bool:
            nonlocal found
            found = _chain_id(self.url) if child.alive else None
            return found is not None or not child.alive

        wait_until(answered, timeout_s=START_TIMEOUT_S)
        if found is None:
            state = "does not answer" if child.alive else f"ended with code {child.returncode}"
            raise ChainError(f"the chain {state}; its log ends with:\n{child.log_tail()}")


class EmbeddedChain(OwnChain):
    """The reference server's development chain: every block is on disk before anybody hears of it."""

    kind = "embedded"
    can_kill = True

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()

    def restart_after_kill(self) -> float:
        began = time.monotonic()
        self.start()
        return time.monotonic() - began

    def _command(self) -> list[str]:
        # A command, not an import: the harness knows nothing of the system under test but how to start it.
        return [
            *(sys.executable, "-m", "reference_server.chain"),
            *("--port", str(self.port)),
            *("--data", str(self.data_dir)),
            *("--seed", str(self.options.seed)),
            *("--chain-id", str(self.options.chain_id)),
            *("--block-time", str(self.options.block_time_s)),
            *("--slots-in-an-epoch", str(self.options.slots_in_an_epoch)),
            *("--ready-file", str(self._ready)),
        ]

    def _read_accounts(self) -> list[ChainAccount]:
        return [ChainAccount(**account) for account in json.loads(self._ready.read_text())["accounts"]]

    @property
    def _ready(self) -> Path:
        return self.data_dir / "ready.json"


class AnvilChain(OwnChain):
    """Foundry's development node, where its binary can be found."""

    kind = "anvil"
    can_kill = False

    def __init__(self, *, supervisor: Supervisor, data_dir: Path, why: str, options: ChainOptions) -> None:
        super().__init__(supervisor=supervisor, data_dir=data_dir, why=why, options=options)
        binary = find_anvil()
        if binary is None:
            raise ChainError(chain_trouble("anvil") or "")
        self._binary = binary

    def kill(self) -> None:
        raise ChainError("anvil keeps its blocks in memory and cannot be killed: use --chain embedded")

    def restart_after_kill(self) -> float:
        raise ChainError("anvil keeps its blocks in memory and cannot be killed: use --chain embedded")

    def _command(self) -> list[str]:
        command = [
            *(str(self._binary), "--host", "127.0.0.1"),
            *("--port", str(self.port)),
            *("--mnemonic-seed-unsafe", str(self.options.seed)),
            *("--chain-id", str(self.options.chain_id)),
            *("--slots-in-an-epoch", str(self.options.slots_in_an_epoch)),
            *("--hardfork", "cancun"),
            *("--config-out", str(self._config)),
        ]
        if self.options.block_time_s:
            command += ["--block-time", str(self.options.block_time_s)]
        return command

    def _read_accounts(self) -> list[ChainAccount]:
        config = _await_json(self._config)
        return [
            ChainAccount(address=address, private_key=key)
            for address, key in zip(config["available_accounts"], config["private_keys"], strict=True)
        ]

    @property
    def _config(self) -> Path:
        return self.data_dir / "anvil.json"


class UrlChain:
    """A node that somebody else runs: used as it is, never started, stopped or killed."""

    kind = "url"
    can_kill = False
    child: Child | None = None

    def __init__(self, url: str, *, why: str) -> None:
        self.url = url
        self.why = why
        self.chain_id = 0
        self.accounts: list[ChainAccount] = []

    def start(self) -> None:
        """Check that it answers; raises ChainError, which names the host but not a key in the URL."""
        found = _chain_id(self.url)
        if found is None:
            raise ChainError(f"the chain at {_redacted(self.url)} does not answer eth_chainId")
        self.chain_id = found

    def stop(self) -> None:
        """Nothing: it is not ours."""

    def kill(self) -> None:
        raise ChainError(f"the chain at {_redacted(self.url)} is not ours to be killed: use --chain embedded")

    def restart_after_kill(self) -> float:
        raise ChainError(
            f"the chain at {_redacted(self.url)} is not ours to be started: use --chain embedded"
        )

    def pids(self) -> list[int]:
        return []


def find_anvil() -> Path | None:
    """The anvil binary: the one that SEATRIAL_ANVIL names, on PATH, or where `.ci/anvil` puts it."""
    if named := os.environ.get(ANVIL_VARIABLE):
        return Path(named)
    if found := shutil.which("anvil"):
        return Path(found)
    # The binary itself, not npm's script around it, which would be a process more to end.
    cached = sorted(ANVIL_CACHE.glob("node_modules/@foundry-rs/anvil-*/bin/anvil"))
    return cached[0] if cached else None


def _chain_id(url: str) -> int | None:
    """What it answers to eth_chainId; None when it does not, or not as a chain would."""
    request: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    try:
        # Certificates take long to load, and no plain URL needs them.
        verify = url.startswith("https:")
        reply = httpx.post(url, json=request, timeout=REQUEST_TIMEOUT_S, verify=verify, trust_env=verify)
        return int(reply.json()["result"], 16)
    except (httpx.HTTPError, ValueError, TypeError, KeyError):
        return None


def _await_json(path: Path) -> Any:
    """What a file holds once it is whole: anvil answers before it has written its own. Raises ChainError."""
    found: Any = None

    def is_whole() -> bool:
        nonlocal found
        try:
            found = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        return True

    if not wait_until(is_whole, timeout_s=START_TIMEOUT_S):
        raise ChainError(f"{path} was not written within {START_TIMEOUT_S:.0f} s")
    return found


def _redacted(url: str) -> str:
    """A URL's scheme and host: providers put their keys into the path."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.hostname or "", "", "", ""))
