"""The line to a node and the receiver as processes, each with a controller; and callers in threads."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx
import pytest
from web3.types import Wei

from chaos.chain import Chain, choose_chain
from chaos.ports import free_port
from chaos.receiver_control import ReceiverControl
from chaos.rpc_control import RpcControl
from chaos.supervisor import Child, Supervisor
from reference_server.chain.connection import Fees, SignedTransaction, account_of, sign
from tests.integration.chain_desk import GWEI, ChainDesk

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


@pytest.fixture(scope="module")
def chain_supervisor(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Supervisor]:
    """The supervisor of a chain that tests may kill, and of lines to it."""
    with Supervisor(scratch / f"line_of_{request.module.__name__}") as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def chain(chain_supervisor: Supervisor) -> Iterator[Chain]:
    """A node that mines each transaction at once; tests may kill it if they start it again."""
    data = chain_supervisor.logs.parent / "chain"
    chain = choose_chain("embedded", supervisor=chain_supervisor, data_dir=data)
    chain.start()
    yield chain
    chain.stop()


@pytest.fixture
def line(chain: Chain, chain_supervisor: Supervisor) -> Iterator[Line]:
    with line_to(chain_supervisor, chain.url) as started:
        yield started


@pytest.fixture
def desk(chain: Chain) -> ChainDesk:
    """Straight to the node."""
    return ChainDesk(chain)


def transfer(desk: ChainDesk, sender: int = 0) -> SignedTransaction:
    """A transfer of 1 wei that has not been sent."""
    account = account_of(desk.chain.accounts[sender].private_key)
    return sign(
        account,
        {"to": desk.accounts[9].address, "value": Wei(1), "gas": 21_000},
        chain_id=desk.chain.chain_id,
        nonce=desk.nonce(account),
        fees=Fees(max_fee_wei=20 * GWEI, max_priority_fee_wei=GWEI),
    )


def request_of(method: str, *params: Any, number: int = 1) -> bytes:
    """One call as bytes."""
    body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
    return post(body)


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def ask(line: Line, number: int = 1) -> Any:
    """The reply to eth_chainId, on a connection of its own."""
    call = {"jsonrpc": "2.0", "id": number, "method": "eth_chainId"}
    return httpx.post(line.url, json=call, timeout=TIMEOUT_S, trust_env=False).json()


def client_of(line: Line) -> socket.socket:
    return socket.create_connection(("127.0.0.1", line.port), timeout=TIMEOUT_S)


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
