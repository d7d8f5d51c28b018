"""The line to a node and the receiver as processes, each with a controller; and callers in threads."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx

from chaos.ports import free_port
from chaos.receiver_control import ReceiverControl
from chaos.rpc_control import RpcControl
from chaos.supervisor import Child, Supervisor

TIMEOUT_S = 10.0

Result = TypeVar("Result")


class Line:
    """One line, its control, and a client of it."""

    def __init__(self, child: Child, port: int, control: RpcControl) -> None:
        self.child = child
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.control = control


@contextmanager
def line_to(supervisor: Supervisor, upstream: str, *, held_s_max: float = 15.0) -> Iterator[Line]:
    """A line to this node while the block lasts."""
    listen, control = free_port(), free_port()
    child = supervisor.spawn(
        f"line-{listen}",
        [
            *(sys.executable, "-m", "chaos.rpc_proxy", "--listen", str(listen), "--upstream", upstream),
            *("--control", str(control), "--held-s-max", str(held_s_max)),
        ],
    )
    controller = RpcControl(control)
    controller.connect(timeout_s=TIMEOUT_S)
    try:
        yield Line(child, listen, controller)
    finally:
        controller.close()
    child.terminate()
    assert child.returncode == 0
    assert child.log_tail() == "", "the line had something to complain about"


class Received:
    """One receiver, its control, and what it wrote down."""

    def __init__(self, child: Child, port: int, file: Path, control: ReceiverControl) -> None:
        self.child = child
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"
        self.file = file
        self.control = control

    def rows(self) -> list[dict[str, Any]]:
        """The rows that are on disk now."""
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def deliver(self, key: str | None, *, title: str = "a title") -> int:
        """Deliver once, on a connection of its own; the status."""
        headers = {} if key is None else {"Idempotency-Key": key}
        body = {"version": "1.0", "title": title, "message": "a text", "type": "info"}
        return httpx.post(
            self.url, json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False
        ).status_code


@contextmanager
def receiver_in(supervisor: Supervisor, file: Path, *, held_s_max: float = 15.0) -> Iterator[Received]:
    """A receiver that writes to this file while the block lasts."""
    port = free_port()
    child = supervisor.spawn(
        f"receiver-{port}",
        [
            *(sys.executable, "-m", "chaos.receiver", "--port", str(port), "--file", str(file)),
            *("--held-s-max", str(held_s_max)),
        ],
    )
    control = ReceiverControl(port)
    control.connect(timeout_s=TIMEOUT_S)
    try:
        yield Received(child, port, file, control)
    finally:
        control.close()
    child.terminate()


class Started(Generic[Result]):
    """A call in a thread: `over` says whether it has ended, `result` is what it returned or raised."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._returned: list[Result] = []
        self._raised: list[Exception] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Result:
        """Wait for it; raises what it raised."""
        self._thread.join(TIMEOUT_S)
        assert self.over, "still under way"
        if self._raised:
            raise self._raised[0]
        return self._returned[0]

    def _run(self) -> None:
        try:
            self._returned.append(self._call())
        except Exception as error:  # noqa: BLE001  raised again by `result`
            self._raised.append(error)
