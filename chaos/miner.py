"""The miner: a block each so many seconds, on any development node alike, until it is told to hold back."""

from __future__ import annotations

import threading

from chaos.rpc import Rpc, RpcError

STOP_TIMEOUT_S = 10.0


class Miner:
    """One thread that mines by the clock. A node that is away gets its next block when it is back."""

    def __init__(self, node: Rpc, block_time_s: float) -> None:
        self.blocks = 0
        self._node = node
        self._block_time_s = block_time_s
        self._on = True
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="miner", daemon=True)

    def start(self) -> None:
        """Mine from now on; raises RpcError when the node will not be mined by hand."""
        self._node.ask("evm_setAutomine", False)
        self._thread.start()

    def mine(self, on: bool) -> None:
        """Go on, or hold back: when this returns, no block is being made. Raises RpcError."""
        with self._lock:
            self._on = on
            self._node.ask("evm_setAutomine", False)

    def stop(self) -> None:
        """Mine no more; idempotent."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        known = True
        while not self._stopped.wait(self._block_time_s):
            with self._lock:
                if not self._on:
                    continue
                try:
                    if not known:
                        # it came back as it first began: with a block for each transaction
                        self._node.ask("evm_setAutomine", False)
                        known = True
                    self._node.ask("evm_mine")
                    self.blocks += 1
                except RpcError:
                    known = False  # killed, or stopped: the next block comes with its next answer
