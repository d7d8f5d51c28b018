"""One process of the reference server in a test, and how to start, signal, kill and restart it."""

from __future__ import annotations

import signal

from chaos.ports import free_port
from chaos.supervisor import Child, Supervisor
from chaos.target import REFERENCE_COMMAND, await_healthy
from tests.conftest import MarketDatabase

START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 20.0


class MarketServer:
    """A server on a port of its own, which it keeps through its restarts."""

    def __init__(
        self,
        supervisor: Supervisor,
        database: MarketDatabase,
        *,
        name: str,
        strategy: str = "batch",
        options: tuple[str, ...] = (),
    ) -> None:
        self.database = database
        self.admin_token = database.admin_token
        self.strategy = strategy
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._supervisor = supervisor
        self._name = name
        self._options = options
        self.child: Child

    def start(self) -> None:
        """Start it and wait until it is healthy."""
        command = [*REFERENCE_COMMAND, "serve", "--dsn", self.database.app_dsn, "--port", str(self._port)]
        command += ["--trade-strategy", self.strategy, *self._options]
        self.child = self._supervisor.spawn(self._name, command, critical=False)
        await_healthy(self.url, timeout_s=START_TIMEOUT_S, child=self.child)

    def restart(self, strategy: str | None = None) -> None:
        """Start it again, after a kill or instead of the running process, perhaps with another strategy."""
        self.end()
        self.strategy = strategy or self.strategy
        self.start()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.child.kill()

    def ask_to_end(self) -> None:
        """SIGTERM, without waiting."""
        self.child.signal(signal.SIGTERM)

    def exit_code(self) -> int | None:
        """Its exit code, waited for; None when it did not end in time."""
        return self.child.wait(END_TIMEOUT_S)

    def end(self) -> None:
        """End it in order; nothing happens when it has ended."""
        self.child.terminate(END_TIMEOUT_S)
