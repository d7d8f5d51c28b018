"""What a client does about each answer of the chain's node to a deposit: one attempt is one arrival."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import msgspec
import pytest

from scenarios.chain_setup import ChainSetup
from scenarios.client import Client, Patience, Recorder
from scenarios.history import Facts, HistoryWriter
from scenarios.live import Live
from scenarios.node import ChainAccess
from scenarios.plan import ChainPlan
from scenarios.replies import Seen
from scenarios.venue import SetupError
from scenarios.wallet import Wallet
from scenarios.wire import resolve
from tests.integration.custody_desk import CustodyDesk, custody, custody_chain
from tests.integration.lossy_node import LossyNode
from tests.integration.recorded import Recorded, read_history
from tests.integration.scripted_server import CLOSE, RESET, SILENCE, Act, Arrival, ScriptedServer, answer

__all__ = ["custody", "custody_chain"]

ACCESS = ChainAccess(
    rpc="unused here",
    chain_id=31_337,
    usdc="0x" + "cd" * 20,
    vault="0x" + "ab" * 20,
    minter_key="0x" + "11" * 32,
    confirmations=3,
    wallet_domain="localhost",
)
SEND = "eth_sendRawTransaction"
LOOK = "eth_getTransactionByHash"
NO_SERVER = "http://127.0.0.1:9"
AMOUNT_MICRO = 5_000_000
PATIENCE = Patience(reply_s=5.0, answer_s=5.0)
HURRIED = Patience(reply_s=0.2, answer_s=0.0)

DEPOSIT = Wallet(ACCESS, seed=7, number=5).deposit("u5", AMOUNT_MICRO, nonce=0)


def result(value: object) -> Act:
    return Act(answer(200, msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "result": value})))


def error(code: int, message: str) -> Act:
    problem = {"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": message}}
    return Act(answer(200, msgspec.json.encode(problem)))


TAKEN = result(DEPOSIT.tx_hash)
KNOWN = result({"hash": DEPOSIT.tx_hash})
UNKNOWN = result(None)
ALREADY_KNOWN = error(-32_000, "already known")
TOO_LOW = error(-32_003, "nonce too low")
LOST = {"closed": CLOSE, "reset": RESET, "timeout": SILENCE, "truncated": Act(TAKEN.data[:-1], then="close")}


class NodeTalk:
    """A client, and a node with an act for each sending, the last one for ever, and one for looking."""

    def __init__(
        self, folder: Path, *sendings: Act, looked: Act = UNKNOWN, patience: Patience = PATIENCE
    ) -> None:
        self._sendings = list(sendings)
        self._looked = looked
        self.node = ScriptedServer(self._act)
        self.history = HistoryWriter(folder, "w0")
        self.client = new_client(self.history, self.node.url, patience)

    def _act(self, _: int, arrival: Arrival) -> Act:
        if method_of(arrival) != SEND:
            return self._looked
        return self._sendings.pop(0) if len(self._sendings) > 1 else self._sendings[0]

    def deposit(self) -> Seen:
        with self.node:
            seen = self.client.perform(DEPOSIT, intended_ns=1)
            self.client.close()
        return seen

    def recorded(self) -> Recorded:
        self.history.close()
        return read_history(self.history.path)

    def arrivals(self, method: str) -> list[bytes]:
        return [arrival.whole for arrival in self.node.arrivals if method_of(arrival) == method]


def method_of(arrival: Arrival) -> str:
    return str(json.loads(arrival.body)["method"])


def new_client(history: HistoryWriter, node: str, patience: Patience) -> Client:
    recorder = Recorder(history, Live(), resolve(NO_SERVER), patience, "tag", node=resolve(node))
    return Client(recorder, process="w0-5", user="u5", token="secret", seed="7/5/backoff")


def test_a_deposit_that_the_node_took_is_ok(tmp_path: Path) -> None:
    talk = NodeTalk(tmp_path, TAKEN)
    seen = talk.deposit()
    assert (seen.type, seen.again) == ("ok", False)
    (attempt,) = talk.recorded().attempts
    assert (attempt.invoke.action, attempt.invoke.key, attempt.invoke.user) == ("deposit", None, "u5")
    assert attempt.invoke.request is not None
    assert attempt.invoke.request.amount_micro == AMOUNT_MICRO
    assert attempt.completion is not None
    assert attempt.completion.facts == Facts(tx_hash=DEPOSIT.tx_hash)
    assert (len(talk.arrivals(SEND)), talk.arrivals(LOOK)) == (1, [])


def test_the_node_is_not_told_the_token(tmp_path: Path) -> None:
    talk = NodeTalk(tmp_path, TAKEN)
    talk.deposit()
    assert "secret" not in str(talk.node.arrivals)


@pytest.mark.parametrize("kind", LOST)
def test_a_lost_reply_is_unknown_and_one_arrival(tmp_path: Path, kind: str) -> None:
    talk = NodeTalk(
        tmp_path, LOST[kind], patience=HURRIED if kind == "timeout" else PATIENCE._replace(answer_s=0)
    )
    seen = talk.deposit()
    assert (seen.type, seen.error) == ("info", kind)
    (attempt,) = talk.recorded().attempts
    assert attempt.completion is not None
    # An unknown deposit can be looked for: its hash does not depend on an answer.
    assert attempt.completion.facts == Facts(tx_hash=DEPOSIT.tx_hash)
    assert len(talk.arrivals(SEND)) == 1
    assert talk.client.process == "w0-5.2"


@pytest.mark.parametrize("refusal", [ALREADY_KNOWN, TOO_LOW], ids=["already known", "nonce too low"])
def test_a_refusal_of_what_the_node_has_is_ok(tmp_path: Path, refusal: Act) -> None:
    talk = NodeTalk(tmp_path, CLOSE, refusal, looked=KNOWN)
    assert talk.deposit().type == "ok"
    recorded = talk.recorded()
    assert recorded.types() == ["info", "ok"]
    first, again = talk.arrivals(SEND)
    assert first == again
    assert talk.client.process == "w0-5"


def test_a_refusal_of_what_the_node_does_not_have_is_the_answer(tmp_path: Path) -> None:
    talk = NodeTalk(tmp_path, TOO_LOW)
    seen = talk.deposit()
    assert (seen.type, seen.again, seen.code, seen.error) == ("fail", False, "node_refused", "nonce too low")
    assert (len(talk.arrivals(SEND)), len(talk.arrivals(LOOK))) == (1, 1)
    assert talk.recorded().types() == ["fail"]


@pytest.mark.parametrize("looked", [CLOSE, error(-32_000, "no")], ids=["closed", "refused"])
def test_a_refusal_that_cannot_be_looked_after_proves_nothing(tmp_path: Path, looked: Act) -> None:
    talk = NodeTalk(tmp_path, TOO_LOW, looked=looked, patience=PATIENCE._replace(answer_s=0))
    seen = talk.deposit()
    assert (seen.type, seen.again) == ("info", True)
    assert seen.error is not None
    assert seen.error.startswith("lookup_")


@pytest.mark.parametrize(
    "act",
    [
        Act(answer(502, b"Bad Gateway", content_type="text/html")),
        Act(answer(200, b"{}")),
        Act(answer(200, b"[]")),
        Act(answer(200, b"what?")),
        result("0x" + "00" * 32),
        result(None),
        error(-32_603, "Internal error"),
    ],
)
def test_what_proves_nothing_is_asked_again(tmp_path: Path, act: Act) -> None:
    talk = NodeTalk(tmp_path, act, TAKEN)
    assert talk.deposit().type == "ok"
    assert talk.recorded().types() == ["info", "ok"]
    assert len(talk.arrivals(SEND)) == 2


def test_a_refused_connection_had_no_effect_and_is_tried_again(tmp_path: Path) -> None:
    history = HistoryWriter(tmp_path, "w0")
    client = new_client(history, "http://127.0.0.1:9", PATIENCE._replace(answer_s=0.2))
    seen = client.perform(DEPOSIT, intended_ns=1)
    history.close()
    assert (seen.type, seen.again, seen.error) == ("fail", True, "refused")
    recorded = read_history(history.path)
    assert set(recorded.types()) == {"fail"}
    assert len(recorded.attempts) > 1
    assert client.process == "w0-5"


@pytest.mark.parametrize(
    ("act", "nonce"), [(result("0x1f"), 31), (CLOSE, None), (error(-32_000, "no"), None), (result(7), None)]
)
def test_a_nonce_is_the_nodes_or_unknown(tmp_path: Path, act: Act, nonce: int | None) -> None:
    talk = NodeTalk(tmp_path, TAKEN, looked=act)
    with talk.node:
        assert talk.client.next_nonce("0x" + "12" * 20) == nonce
        talk.client.close()
    (arrival,) = talk.node.arrivals
    assert json.loads(arrival.body)["params"] == ["0x" + "12" * 20, "pending"]
    assert talk.recorded().attempts == []


def new_setup(folder: Path, custody: CustodyDesk) -> ChainSetup:
    """The set-up of a load on the desk's chain, whose run directory is this folder."""
    access = msgspec.structs.replace(
        ACCESS,
        usdc=custody.addresses.usdc,
        vault=custody.addresses.vault,
        minter_key=custody.operator_key,
    )
    (folder / "plan.json").touch()
    return ChainSetup(access, resolve(custody.chain.url), ChainPlan(), run=folder, seed=7)


def equipped(folder: Path, custody: CustodyDesk, *, backing_micro: int = 1) -> Wallet:
    """A wallet of the desk's chain, with all that a deposit needs."""
    setup = new_setup(folder, custody)
    (wallet,) = setup.equip([5], backing_micro=backing_micro)
    setup.close()
    return wallet


@pytest.mark.parametrize("loss", ["reply", "request"])
def test_a_deposit_that_was_lost_is_on_the_chain_once(
    tmp_path: Path, custody: CustodyDesk, loss: str
) -> None:
    wallet = equipped(tmp_path, custody)
    history = HistoryWriter(tmp_path, "w0")
    with LossyNode(custody.chain.url) as node:
        client = new_client(history, node.url, PATIENCE._replace(answer_s=0))
        nonce = client.next_nonce(wallet.address)
        operation = client.operation(wallet.deposit("u5", AMOUNT_MICRO, nonce=nonce))
        node.lose = {SEND: loss}
        assert client.pursue(operation, intended_ns=1).type == "info"
        node.lose = {}
        assert client.pursue(operation, intended_ns=1).type == "ok"
        client.close()
    history.close()
    assert read_history(history.path).types() == ["info", "ok"]
    assert node.asked.count(SEND) == 2
    (event,) = custody.client.deposit_events(custody.first_block, "latest")
    assert event.place.transaction_hash == operation.intent.tx_hash
    assert (event.user_id, event.sender, event.amount_micro) == ("u5", wallet.address, AMOUNT_MICRO)


def test_the_vault_holds_the_backing_before_the_set_up_goes_on(tmp_path: Path, custody: CustodyDesk) -> None:
    wallet = equipped(tmp_path, custody, backing_micro=123_456_789)
    assert custody.custody() == 123_456_789
    deep = custody.height() - ACCESS.confirmations
    assert custody.client.custody_balance(deep) == 123_456_789
    assert int(custody.rpc("eth_getBalance", wallet.address, "latest"), 16) > 10**21


def test_the_minter_is_one_process_at_a_time(
    tmp_path: Path, custody: CustodyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or two would take the same nonce for two transactions."""
    setup = new_setup(tmp_path, custody)
    monkeypatch.setattr("scenarios.chain_setup.LOCK_TIMEOUT_S", 0.1)
    with (tmp_path / "plan.json").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match="another load process"):
            setup.back(5)
        assert custody.custody() == 0
    setup.back(5)
    setup.close()
    assert custody.custody() == 5


def test_a_node_that_gives_no_gas_is_said_to(tmp_path: Path) -> None:
    def script(_: int, arrival: Arrival) -> Act:
        asked = json.loads(arrival.body)
        problem = {"code": -32_601, "message": "Method not found"}
        return Act(answer(200, json.dumps([{"id": one["id"], "error": problem} for one in asked]).encode()))

    with ScriptedServer(script) as node:
        setup = ChainSetup(ACCESS, resolve(node.url), ChainPlan(), run=tmp_path, seed=7)
        with pytest.raises(
            SetupError, match=r"gives wallets no gas .anvil_setBalance: Method not found.*anvil do"
        ):
            setup.equip([0, 1], backing_micro=1)
        setup.close()
