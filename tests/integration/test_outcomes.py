"""What a client does about each answer, and what it writes down, against a server that follows a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gevent
import msgspec
import pytest

from scenarios.client import Client, Patience, Recorder
from scenarios.history import HistoryWriter, JsonLines
from scenarios.intents import Intent, trade, withdrawal
from scenarios.live import Live
from scenarios.replies import Seen
from scenarios.wire import resolve
from tests.integration.recorded import Recorded, read_history
from tests.integration.scripted_server import CLOSE, RESET, SILENCE, Act, Arrival, ScriptedServer, answer

BUY = trade("buy_shares", 1, 0, "buy", shares_micro=1_000_000)
READ = Intent("read_market", "GET", "/api/markets/1", market=1, keyed=False)
NEW_USER = Intent("create_user", "POST", "/api/users", b'{"name":"A"}', keyed=False, repeatable=False)
TRADE = (
    b'{"tradeId":1,"transactionId":2,"marketId":1,"marketVersion":1,"outcome":0,"side":"buy","shares":1000000,'
    b'"cost":500000,"fee":5000,"total":505000,"balance":1,"accountVersion":1,"prices":[500000,500000]}'
)
WITHDRAWAL = (
    b'{"withdrawalId":"018f","status":"reserved","amount":5,"address":"0xab","transactionId":3,"balance":1,'
    b'"accountVersion":2}'
)
MARKET = b'{"marketId":1,"status":"open","version":0,"prices":[500000,500000],"pool":1}'
OK = Act(answer(200, TRADE))
PATIENCE = Patience(reply_s=5.0, answer_s=5.0)
NO_BUDGET = Patience(reply_s=5.0, answer_s=0.0)
HURRIED = Patience(reply_s=0.2, answer_s=0.5)


def refusal(status: int, code: str, *headers: str) -> Act:
    body = msgspec.json.encode({"type": "about:blank", "title": "No", "status": status, "code": code})
    return Act(answer(status, body, *headers, content_type="application/problem+json"))


IN_PROGRESS = refusal(409, "idempotency_key_in_progress", "Retry-After: 0")
OVERLOADED = refusal(503, "overloaded", "Retry-After: 0")


class Talk:
    """A client and a server which does one act for each arrival, and the last one again and again."""

    def __init__(self, folder: Path, *acts: Act, patience: Patience = PATIENCE) -> None:
        self.server = ScriptedServer(lambda number, _: acts[min(number, len(acts) - 1)])
        self.history = HistoryWriter(folder, "w0")
        self.live = Live()
        recorder = Recorder(self.history, self.live, resolve(self.server.url), patience, "tag")
        self.client = Client(recorder, process="w0-5", user="u5", token="secret", seed="7/5/backoff")

    def perform(self, *intents: Intent) -> list[Seen]:
        """Do these one after another; the last sight of each."""
        with self.server:
            seen = [self.client.perform(intent, intended_ns=1) for intent in intents]
            self.client.close()
        return seen

    def recorded(self) -> Recorded:
        self.history.close()
        return read_history(self.history.path)


def test_an_ok_is_the_answer(tmp_path: Path) -> None:
    talk = Talk(tmp_path, OK)
    (seen,) = talk.perform(BUY)
    assert (seen.type, seen.again) == ("ok", False)
    (attempt,) = talk.recorded().attempts
    assert attempt.completion is not None
    assert attempt.completion.facts is not None
    assert attempt.completion.facts.trade_id == 1
    assert (attempt.invoke.key, attempt.invoke.user, attempt.invoke.market) == ("tag-w0-5-1", "u5", 1)


def test_a_reused_key_that_brings_a_withdrawal_is_told_of(tmp_path: Path) -> None:
    """It must be refused; when it is not, the judge needs to know what it moved."""
    talk = Talk(tmp_path, Act(answer(202, WITHDRAWAL)))
    (seen,) = talk.perform(withdrawal("reuse_key", 5))
    assert (seen.type, seen.facts and seen.facts.withdrawal_id) == ("ok", "018f")
    (attempt,) = talk.recorded().attempts
    assert attempt.invoke.action == "reuse_key"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (422, "insufficient_funds"),
        (422, "market_closed"),
        (422, "idempotency_key_reused"),
        (400, "malformed"),
    ],
)
def test_a_refusal_is_the_answer(tmp_path: Path, status: int, code: str) -> None:
    talk = Talk(tmp_path, refusal(status, code))
    (seen,) = talk.perform(BUY)
    assert (seen.type, seen.code) == ("fail", code)
    assert len(talk.server.arrivals) == 1
    assert talk.recorded().types() == ["fail"]


@pytest.mark.parametrize(
    ("act", "recorded"),
    [
        (CLOSE, ("info", None, "closed")),
        (RESET, ("info", None, "reset")),
        (Act(answer(200, TRADE)[:-9], then="close"), ("info", None, "truncated")),
        (Act(answer(502, b"Bad Gateway", content_type="text/html")), ("info", None, None)),
        (refusal(500, "internal"), ("info", "internal", None)),
        (refusal(503, "unhealthy"), ("info", "unhealthy", None)),
        (IN_PROGRESS, ("info", "idempotency_key_in_progress", None)),
        (OVERLOADED, ("fail", "overloaded", None)),
        (refusal(503, "contention"), ("fail", "contention", None)),
        (refusal(503, "trading_paused"), ("fail", "trading_paused", None)),
        (refusal(429, "rate_limited"), ("fail", "rate_limited", None)),
    ],
)
def test_without_an_answer_the_same_bytes_go_out_again(
    tmp_path: Path, act: Act, recorded: tuple[str, str | None, str | None]
) -> None:
    talk = Talk(tmp_path, act, act, OK)
    (seen,) = talk.perform(BUY)
    assert seen.type == "ok"
    first, second, last = talk.recorded().attempts
    for attempt in (first, second):
        assert attempt.completion is not None
        assert (attempt.completion.type, attempt.completion.code, attempt.completion.error) == recorded
    assert (last.completion and last.completion.type) == "ok"
    assert len({arrival.whole for arrival in talk.server.arrivals}) == 1
    assert [arrival.headers["idempotency-key"] for arrival in talk.server.arrivals] == ["tag-w0-5-1"] * 3
    assert [attempt.invoke.intended_ns for attempt in (first, second, last)] == [1, 1, 1]


def test_a_refused_connection_is_a_fail_and_the_operation_goes_on(tmp_path: Path) -> None:
    talk = Talk(tmp_path, OK, patience=HURRIED)
    with talk.server:
        pass  # from now on its port refuses
    seen = talk.client.perform(BUY, intended_ns=1)
    assert (seen.type, seen.error, seen.again) == ("fail", "refused", True)
    assert set(talk.recorded().types()) == {"fail"}
    assert talk.server.arrivals == []
    assert talk.client.process == "w0-5"


def test_a_read_without_an_answer_is_asked_again(tmp_path: Path) -> None:
    talk = Talk(tmp_path, CLOSE, Act(answer(200, MARKET)))
    (seen,) = talk.perform(READ)
    assert seen.type == "ok"
    assert talk.recorded().types() == ["info", "ok"]


def test_what_has_no_key_and_creates_is_not_asked_again(tmp_path: Path) -> None:
    talk = Talk(tmp_path, CLOSE)
    (seen,) = talk.perform(NEW_USER)
    assert seen.type == "info"
    assert len(talk.server.arrivals) == 1


def test_the_budget_ends_an_operation_as_info_and_spends_the_process(tmp_path: Path) -> None:
    talk = Talk(tmp_path, SILENCE, patience=HURRIED)
    first, second = talk.perform(BUY, BUY)
    assert (first.type, first.error, first.again) == ("info", "timeout", True)
    recorded = talk.recorded()
    assert set(recorded.types()) == {"info"}
    processes = {attempt.invoke.operation: attempt.invoke.process for attempt in recorded.attempts}
    assert processes == {"tag-w0-5-1": "w0-5", "tag-w0-5-2": "w0-5.2"}
    assert (second.type, talk.client.process) == ("info", "w0-5.3")


def test_an_operation_that_was_only_ever_refused_spends_nothing(tmp_path: Path) -> None:
    talk = Talk(tmp_path, OVERLOADED, patience=HURRIED)
    (seen,) = talk.perform(BUY)
    assert (seen.type, seen.again) == ("fail", True)
    assert len(talk.server.arrivals) > 1
    assert talk.client.process == "w0-5"


def test_a_refusal_after_an_unknown_attempt_leaves_the_operation_unknown(tmp_path: Path) -> None:
    talk = Talk(tmp_path, CLOSE, OVERLOADED, patience=HURRIED)
    (seen,) = talk.perform(BUY)
    assert seen.type == "fail"
    assert talk.recorded().types()[:2] == ["info", "fail"]
    assert talk.client.process == "w0-5.2"


def test_without_a_budget_there_is_one_attempt(tmp_path: Path) -> None:
    talk = Talk(tmp_path, CLOSE, patience=NO_BUDGET)
    talk.perform(BUY)
    assert len(talk.server.arrivals) == 1


def test_a_server_that_asks_for_time_is_given_it(tmp_path: Path) -> None:
    talk = Talk(tmp_path, refusal(503, "overloaded", "Retry-After: 1"), OK)
    talk.perform(BUY)
    first, second = talk.recorded().attempts
    assert first.completion is not None
    assert second.invoke.time_ns - first.completion.time_ns >= 1_000_000_000


def test_a_server_that_asks_for_more_than_the_budget_ends_the_operation(tmp_path: Path) -> None:
    talk = Talk(tmp_path, refusal(503, "overloaded", "Retry-After: 3600"))
    (seen,) = talk.perform(BUY)
    assert (seen.type, len(talk.server.arrivals)) == ("fail", 1)


def test_a_replay_is_a_further_attempt_of_its_operation(tmp_path: Path) -> None:
    talk = Talk(tmp_path, OK, Act(answer(200, TRADE, "Idempotent-Replayed: true")))
    with talk.server:
        operation = talk.client.operation(BUY)
        talk.client.pursue(operation, intended_ns=1)
        talk.client.pursue(operation, intended_ns=2)
        talk.client.close()
    first, second = talk.recorded().attempts
    assert first.completion is not None
    assert second.completion is not None
    assert (first.completion.replayed, second.completion.replayed) == (False, True)
    assert first.completion.reply_hash == second.completion.reply_hash
    assert (second.invoke.attempt, second.invoke.intended_ns) == (2, 2)


def test_the_invoke_row_is_in_the_file_before_the_request_arrives(tmp_path: Path) -> None:
    path = tmp_path / "history" / "w0.jsonl"
    seen_at_arrival: list[bytes] = []

    def script(_number: int, _arrival: Arrival) -> Act:
        seen_at_arrival.append(path.read_bytes().splitlines()[-1])
        return OK

    talk = Talk(tmp_path)
    talk.server._script = script
    talk.perform(BUY, BUY)
    for number, line in enumerate(seen_at_arrival, start=1):
        assert b'"type":"invoke"' in line
        assert b'"operation":"tag-w0-5-%d"' % number in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_cannot_be_recorded_is_not_sent(tmp_path: Path) -> None:
    full = tmp_path / "full.jsonl"
    full.symlink_to("/dev/full")
    talk = Talk(tmp_path, OK)
    talk.history._lines = JsonLines(full)
    with pytest.raises(OSError, match="No space"):
        talk.perform(BUY)
    assert talk.server.arrivals == []


def while_in_flight(talk: Talk, interrupt: Callable[[gevent.Greenlet], None]) -> None:
    """Begin one operation and call `interrupt` once its request has arrived."""
    with talk.server, gevent.Timeout(10):
        asking = gevent.spawn(talk.client.perform, BUY, intended_ns=1)
        while not talk.server.arrivals:
            gevent.sleep(0.005)  # bounded by the timeout
        interrupt(asking)
        asking.join()


def test_an_attempt_killed_in_flight_is_info(tmp_path: Path) -> None:
    talk = Talk(tmp_path, SILENCE)
    while_in_flight(talk, lambda asking: asking.kill())
    (attempt,) = talk.recorded().attempts
    assert attempt.completion is not None
    assert (attempt.completion.type, attempt.completion.error) == ("info", "stopped")
    assert talk.live.in_flight == 0


def test_after_an_abandonment_no_attempt_begins(tmp_path: Path) -> None:
    talk = Talk(tmp_path, SILENCE, patience=Patience(reply_s=0.3, answer_s=30.0))
    while_in_flight(talk, lambda _: setattr(talk.live, "abandoned", True))
    assert len(talk.server.arrivals) == 1
    assert talk.recorded().types() == ["info"]


def test_clients_of_one_process_write_one_well_formed_history(tmp_path: Path) -> None:
    talk = Talk(tmp_path, *[CLOSE, OK, OVERLOADED, IN_PROGRESS] * 4, OK)
    recorder = talk.client._recorder
    clients = [
        Client(recorder, process=f"w0-{number}", user=f"u{number}", token="t", seed=str(number))
        for number in range(10)
    ]
    with talk.server, gevent.Timeout(30):
        asking = [gevent.spawn(client.perform, BUY, intended_ns=1) for client in clients]
        gevent.joinall(asking)
        for client in clients:
            client.close()
    recorded = talk.recorded()
    assert len(recorded.attempts) == len(talk.server.arrivals)
    assert recorded.types().count("ok") == 10
