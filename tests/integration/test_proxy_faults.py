"""The faults of requests: what arrives, what the client sees, and that the evidence says exactly that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chaos.processes import wait_until
from chaos.proxy_control import ProxyControl, ProxyError
from scenarios.history import digest
from tests.integration.proxied import TIMEOUT_S, Proxied, is_reset, proxied, receive, receive_all, trade
from tests.integration.recording_server import RESET, Arrival, RecordingServer, ok, told

FINE = ok(b"fine")


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer() as recording:
        yield recording


@pytest.fixture
def proxy(server: RecordingServer, tmp_path: Path) -> Iterator[Proxied]:
    with proxied(tmp_path, server) as started:
        yield started


def arm(proxy: Proxied, fault: str, *, fault_id: str = "f001", nth: int = 1, **options: Any) -> None:
    proxy.control.arm(fault_id, fault, nth=nth, options=options)


def ask(proxy: Proxied, request: bytes, reply: bytes = FINE) -> None:
    """An exchange on a connection of its own that must work."""
    with proxy.client() as client:
        client.sendall(request)
        assert receive(client, len(reply)) == reply


# --- each fault


def test_a_dropped_reply_was_answered_and_the_client_gets_a_reset(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda _: ok(b'{"tradeId":1}', b"Idempotent-Replayed: true")
    arm(proxy, "drop_reply")
    with proxy.client() as client:
        client.sendall(trade("k1"))
        assert is_reset(client)
    (landed,) = proxy.await_happened()
    assert [arrival.raw for arrival in server.arrivals] == [trade("k1")]
    assert (landed.event, landed.fault_id) == ("landed", "f001")
    evidence = landed.evidence
    assert (evidence["key"], evidence["request"]) == ("k1", "POST /api/trade")
    assert (evidence["status"], evidence["reply_hash"]) == (200, digest(b'{"tradeId":1}'))
    assert evidence["replayed"] is True
    assert evidence["bytes_upstream"] == len(trade("k1"))
    assert evidence["hit_ns"] < evidence["reply_ns"] <= landed.time_ns


def test_the_digest_of_a_chunked_reply_is_that_of_its_content(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda _: (
        b"HTTP/1.1 201 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    )
    arm(proxy, "drop_reply")
    with proxy.client() as client:
        client.sendall(trade("k1"))
        assert is_reset(client)
    (landed,) = proxy.await_happened()
    assert (landed.evidence["status"], landed.evidence["reply_hash"]) == (201, digest(b"abc"))


def test_a_dropped_request_never_arrives_and_the_client_gets_a_reset(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda _: FINE
    arm(proxy, "drop_request")
    with proxy.client() as client:
        client.sendall(trade("k1"))
        assert is_reset(client)
    (landed,) = proxy.await_happened()
    assert landed.evidence["bytes_upstream"] == 0
    assert landed.evidence["key"] == "k1"
    ask(proxy, trade("k2"))
    assert [arrival.key for arrival in server.arrivals] == ["k2"]


def test_a_request_dropped_in_silence_lasts_as_long_as_the_clients_patience(
    proxy: Proxied, server: RecordingServer
) -> None:
    arm(proxy, "drop_request", how="silence", silence_s=30)
    with proxy.client() as client:
        client.settimeout(0.2)
        client.sendall(trade("k1"))
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert proxy.happened == []
    (landed,) = proxy.await_happened()
    assert landed.evidence["client_left"] is True
    assert landed.evidence["bytes_upstream"] == 0
    assert server.arrivals == []


def test_silence_ends_with_a_reset_for_a_client_that_waits_for_ever(
    proxy: Proxied, server: RecordingServer
) -> None:
    arm(proxy, "drop_request", how="silence", silence_s=0.1)
    with proxy.client() as client:
        client.sendall(trade("k1"))
        assert is_reset(client)
    (landed,) = proxy.await_happened()
    assert landed.evidence["client_left"] is False
    assert server.arrivals == []


def test_duplicates_at_once_are_in_the_server_at_the_same_time(
    proxy: Proxied, server: RecordingServer
) -> None:
    both = threading.Barrier(2)

    def answer(arrival: Arrival) -> bytes:
        both.wait(TIMEOUT_S)  # passes only when two requests are being served
        return told(arrival)

    server.answer = answer
    arm(proxy, "duplicate_at_once")
    with proxy.client() as client:
        client.sendall(trade("k1"))
        assert receive(client, len(told(Arrival(b"", 1)))) == told(Arrival(b"", 1))
        (landed,) = proxy.await_happened()
        server.answer = told
        client.sendall(trade("k2"))  # its connection is none the worse
        assert receive(client, len(told(Arrival(b"", 1)))) == told(Arrival(b"", 1))
    assert [arrival.raw for arrival in server.arrivals] == [trade("k1"), trade("k1"), trade("k2")]
    assert landed.evidence["reply_hash"] == digest(b"connection 1")
    assert landed.evidence["copy"]["reply_hash"] == digest(b"connection 2")
    assert (landed.evidence["status"], landed.evidence["copy"]["status"]) == (200, 200)
    assert landed.evidence["bytes_upstream"] == 2 * len(trade("k1"))


def test_duplicates_go_to_two_servers_where_there_are_two(server: RecordingServer, tmp_path: Path) -> None:
    with RecordingServer() as other, proxied(tmp_path, server, other) as proxy:
        arm(proxy, "duplicate_at_once")
        ask(proxy, trade("k1"), told(Arrival(b"", 1)))
        proxy.await_happened()
        assert [len(server.arrivals), len(other.arrivals)] == [1, 1]


def test_a_late_duplicate_comes_after_its_client_was_answered(
    proxy: Proxied, server: RecordingServer
) -> None:
    arm(proxy, "duplicate_late", delay_s=0.3)
    mine = told(Arrival(b"", 1))
    with proxy.client() as client:
        client.sendall(trade("k1"))
        assert receive(client, len(mine)) == mine
        assert [arrival.key for arrival in server.arrivals] == ["k1"]
        client.sendall(trade("k2"))  # the client goes on meanwhile
        assert receive(client, len(mine)) == mine
        (landed,) = proxy.await_happened()
        client.sendall(trade("k3"))  # and gets nothing of the late reply
        assert receive(client, len(mine)) == mine
    assert [arrival.key for arrival in server.arrivals] == ["k1", "k2", "k1", "k3"]
    assert server.arrivals[2].raw == server.arrivals[0].raw
    assert landed.evidence["copy"]["sent_ns"] > landed.evidence["reply_ns"]
    assert landed.evidence["copy"]["reply_hash"] == digest(b"connection 2")


def test_a_late_duplicate_comes_even_when_its_client_is_gone(proxy: Proxied, server: RecordingServer) -> None:
    arm(proxy, "duplicate_late", delay_s=0.2)
    ask(proxy, trade("k1"), told(Arrival(b"", 1)))
    proxy.await_happened()
    assert [arrival.key for arrival in server.arrivals] == ["k1", "k1"]


# --- which request is hit


def test_the_nth_request_that_moves_money_is_hit(proxy: Proxied, server: RecordingServer) -> None:
    server.answer = lambda _: FINE
    arm(proxy, "drop_reply", nth=3)
    with proxy.client() as client:
        for request in (
            trade("k1"),
            b"GET /api/markets HTTP/1.1\r\nIdempotency-Key: g\r\n\r\n",
            trade("k2"),
            b"POST /api/users HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        ):
            client.sendall(request)
            assert receive(client, len(FINE)) == FINE
        client.sendall(trade("k3"))
        assert is_reset(client)
    (landed,) = proxy.await_happened()
    assert (landed.evidence["key"], landed.evidence["matched"]) == ("k3", 3)


def test_paths_restrict_what_is_hit(proxy: Proxied, server: RecordingServer) -> None:
    server.answer = lambda _: FINE
    arm(proxy, "drop_reply", paths=["/api/trade"])
    ask(proxy, trade("k1", path="/api/fundings"))
    ask(proxy, trade("k2", path="/api/trades"))
    with proxy.client() as client:
        client.sendall(trade("k3", path="/api/trade?dry=1"))
        assert is_reset(client)
    assert proxy.await_happened()[0].evidence["key"] == "k3"


def test_two_faults_armed_at_once_take_two_requests(proxy: Proxied, server: RecordingServer) -> None:
    server.answer = lambda _: FINE
    arm(proxy, "drop_reply", fault_id="f001")
    arm(proxy, "drop_request", fault_id="f002")
    for key in ("k1", "k2"):
        with proxy.client() as client:
            client.sendall(trade(key))
            assert is_reset(client)
    ask(proxy, trade("k3"))
    keys = {happened.fault_id: happened.evidence["key"] for happened in proxy.await_happened(2)}
    assert keys == {"f001": "k1", "f002": "k2"}
    assert [arrival.key for arrival in server.arrivals] == ["k1", "k3"]


@pytest.mark.parametrize("cuts", [1, 7, 60])
def test_a_request_in_pieces_is_hit_once_it_is_whole(
    cuts: int, proxy: Proxied, server: RecordingServer
) -> None:
    arm(proxy, "duplicate_at_once")
    request = trade("k1", body=b"y" * 500)
    mine = told(Arrival(b"", 1))
    with proxy.client() as client:
        places = [*range(0, len(request), cuts), len(request)]
        for start, end in pairwise(places):
            client.sendall(request[start:end])
        assert receive(client, len(mine)) == mine
    proxy.await_happened()
    assert [arrival.raw for arrival in server.arrivals] == [request, request]


def test_what_was_pipelined_behind_a_hit_request_still_passes(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda arrival: ok(arrival.key.encode())
    arm(proxy, "duplicate_late", nth=2, delay_s=0)
    with proxy.client() as client:
        client.sendall(trade("k1") + trade("k2") + trade("k3"))
        replies = ok(b"k1") + ok(b"k2") + ok(b"k3")
        assert receive(client, len(replies)) == replies
    (landed,) = proxy.await_happened()
    assert landed.evidence["key"] == "k2"
    assert sorted(arrival.key for arrival in server.arrivals) == ["k1", "k2", "k2", "k3"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        trade("k", body=b"z" * 400_000),
        b"POST / HTTP/1.1\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ],
    ids=["too large to hold", "chunked"],
)
def test_a_request_that_cannot_be_held_passes_unharmed(
    request_bytes: bytes, proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda _: FINE
    arm(proxy, "drop_request")
    ask(proxy, request_bytes)
    assert proxy.happened == []
    assert proxy.control.status()["waiting"] == 1


# --- when it cannot land, and healing


def test_a_fault_whose_request_never_came_fails_when_it_is_healed(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda _: FINE
    arm(proxy, "drop_reply", nth=3)
    ask(proxy, trade("k1"))
    proxy.control.heal()
    (failed,) = proxy.await_happened()
    assert (failed.event, failed.evidence["matched"]) == ("failed", 1)
    assert "never came" in failed.evidence["why"]
    for key in ("k2", "k3", "k4"):
        ask(proxy, trade(key))


def test_a_fault_that_the_server_did_not_answer_takes_the_next_request(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda arrival: RESET if arrival.key == "k1" else FINE
    arm(proxy, "drop_reply")
    for key in ("k1", "k2"):
        with proxy.client() as client:
            client.sendall(trade(key))
            assert is_reset(client)
    (landed,) = proxy.await_happened()
    assert (landed.event, landed.evidence["key"]) == ("landed", "k2")
    assert len(landed.evidence["misses"]) == 1


def test_a_reply_is_not_dropped_when_its_client_had_gone_before(
    proxy: Proxied, server: RecordingServer
) -> None:
    gone = threading.Event()
    server.answer = lambda _: FINE if gone.wait(TIMEOUT_S) else RESET
    arm(proxy, "drop_reply")
    with proxy.client() as client:
        client.sendall(trade("k1"))
        server.await_arrivals(1)
    gone.set()
    assert wait_until(lambda: proxy.control.status()["waiting"] == 1, timeout_s=TIMEOUT_S)
    with proxy.client() as client:
        client.sendall(trade("k2"))
        assert is_reset(client)
    (landed,) = proxy.await_happened()
    assert landed.evidence["key"] == "k2"
    assert landed.evidence["misses"] == ["the client had gone"]


def test_a_request_that_never_becomes_whole_leaves_the_fault_armed(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda _: FINE
    arm(proxy, "drop_request")
    with proxy.client() as client:
        client.sendall(trade("k1")[:-3])
    with proxy.client() as client:
        client.sendall(trade("k2"))
        assert is_reset(client)
    assert proxy.await_happened()[0].evidence["key"] == "k2"
    assert server.arrivals == []


def test_healing_sends_a_waiting_duplicate_at_once(proxy: Proxied, server: RecordingServer) -> None:
    arm(proxy, "duplicate_late", delay_s=30)
    ask(proxy, trade("k1"), told(Arrival(b"", 1)))
    proxy.control.heal()
    (landed,) = proxy.await_happened()
    assert landed.event == "landed"
    assert [arrival.key for arrival in server.arrivals] == ["k1", "k1"]


def test_healing_does_not_wait_for_ever_for_a_server_that_is_silent(
    proxy: Proxied, server: RecordingServer
) -> None:
    never = threading.Event()
    server.answer = lambda _: RESET if never.wait(3 * TIMEOUT_S) else FINE
    arm(proxy, "drop_reply")
    with proxy.client() as client:
        client.sendall(trade("k1"))
        server.await_arrivals(1)
        proxy.control.heal()
        assert is_reset(client)
    never.set()
    (failed,) = proxy.await_happened()
    assert failed.event == "failed"
    assert "of healing" in failed.evidence["why"]


def test_the_proxy_heals_itself_when_nobody_controls_it_any_more(
    proxy: Proxied, server: RecordingServer
) -> None:
    server.answer = lambda _: FINE
    arm(proxy, "drop_request", nth=1)
    proxy.control.close()
    fresh = ProxyControl(proxy.control.port)
    fresh.connect(timeout_s=TIMEOUT_S)
    ask(proxy, trade("k1"))
    assert fresh.status()["waiting"] == 0
    fresh.close()


@pytest.mark.parametrize(
    ("fault", "nth", "options", "said"),
    [
        ("drop_everything", 1, {}, "no fault 'drop_everything'"),
        ("kill_server", 1, {}, "no fault of a request"),
        ("drop_reply", 1, {"delay_s": 3}, "delay_s"),
        ("drop_reply", 0, {}, "counted from 1"),
    ],
)
def test_a_fault_that_the_proxy_cannot_inject_is_refused(
    fault: str, nth: int, options: dict[str, Any], said: str, proxy: Proxied
) -> None:
    with pytest.raises(ProxyError, match=said):
        proxy.control.arm("f001", fault, nth=nth, options=options)
    assert proxy.control.status()["waiting"] == 0


def test_an_id_is_armed_once(proxy: Proxied) -> None:
    arm(proxy, "drop_reply")
    with pytest.raises(ProxyError, match="f001 is armed already"):
        arm(proxy, "drop_reply")


def test_a_reply_that_ends_with_its_connection_is_whole_too(proxy: Proxied, server: RecordingServer) -> None:
    server.answer = lambda _: b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end"
    arm(proxy, "duplicate_at_once")
    with proxy.client() as client:
        client.sendall(trade("k1"))
        assert receive_all(client) == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end"
    (landed,) = proxy.await_happened()
    assert landed.evidence["copy"]["reply_hash"] == digest(b"until the end")
