"""One attempt is one arrival, also when its reply is lost; Locust's own HTTP client cannot say so."""

from __future__ import annotations

import pytest
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPConnectionClosed

from scenarios.wire import Refused, Wire, WireError, resolve
from tests.integration.scripted_server import CLOSE, RESET, SILENCE, Act, Arrival, ScriptedServer, answer

OK = Act(answer(200, b"{}"))
PATIENCE_S = 5.0
SHORT_S = 0.3
REQUESTS = {
    "GET": b"GET /api/account HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST": b"POST /api/trade HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
}
LOST = {
    "closed": CLOSE,
    "reset": RESET,
    "timeout": SILENCE,
    "truncated": Act(answer(200, b"{}")[:-1], then="close"),
    "garbage": Act(b"what?\r\n\r\n"),
}


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("kind", LOST)
def test_a_lost_reply_is_one_arrival(method: str, kind: str) -> None:
    with ScriptedServer(lambda _number, _arrival: LOST[kind]) as server:
        wire = Wire(resolve(server.url))
        with pytest.raises(WireError) as caught:
            wire.exchange(REQUESTS[method], patience_s=SHORT_S if kind == "timeout" else PATIENCE_S)
        wire.close()
    assert caught.value.kind == kind
    assert [arrival.whole for arrival in server.arrivals] == [REQUESTS[method]]


@pytest.mark.parametrize("method", REQUESTS)
def test_a_reply_lost_on_a_used_connection_is_one_arrival(method: str) -> None:
    with ScriptedServer(lambda number, _: OK if number == 0 else CLOSE) as server:
        wire = Wire(resolve(server.url))
        wire.exchange(REQUESTS[method], patience_s=PATIENCE_S)
        with pytest.raises(WireError, match="closed"):
            wire.exchange(REQUESTS[method], patience_s=PATIENCE_S)
        wire.close()
    assert (len(server.arrivals), server.connections) == (2, 1)


def test_a_connection_is_kept_while_replies_are_whole() -> None:
    with ScriptedServer(lambda _number, _arrival: OK) as server:
        wire = Wire(resolve(server.url))
        for _ in range(5):
            assert wire.exchange(REQUESTS["POST"], patience_s=PATIENCE_S).status == 200
        wire.close()
    assert (len(server.arrivals), server.connections, wire.opened) == (5, 1, 1)


def test_a_connection_that_lost_a_reply_is_not_used_again() -> None:
    """Or the late reply of one request would be taken for the reply to the next."""

    def script(number: int, _: Arrival) -> Act:
        return SILENCE if number == 0 else OK

    with ScriptedServer(script) as server:
        wire = Wire(resolve(server.url))
        with pytest.raises(WireError, match="timeout"):
            wire.exchange(REQUESTS["POST"], patience_s=SHORT_S)
        assert wire.exchange(REQUESTS["POST"], patience_s=PATIENCE_S).status == 200
        wire.close()
    assert (len(server.arrivals), server.connections) == (2, 2)


def test_a_second_reply_spoils_the_connection() -> None:
    with ScriptedServer(lambda _number, _arrival: Act(OK.data + OK.data)) as server:
        wire = Wire(resolve(server.url))
        for _ in range(2):
            assert wire.exchange(REQUESTS["GET"], patience_s=PATIENCE_S).status == 200
        wire.close()
    assert (len(server.arrivals), server.connections) == (2, 2)


def test_an_idle_connection_that_was_closed_costs_no_attempt() -> None:
    with ScriptedServer(lambda _number, _arrival: Act(OK.data, then="close")) as server:
        wire = Wire(resolve(server.url))
        for _ in range(3):
            assert wire.exchange(REQUESTS["POST"], patience_s=PATIENCE_S).status == 200
            await_end_of_file(wire)
        wire.close()
    assert (len(server.arrivals), server.connections) == (3, 3)


def await_end_of_file(wire: Wire) -> None:
    """Until the other side's close has arrived here."""
    assert wire._socket is not None
    wire._socket.settimeout(PATIENCE_S)
    assert wire._socket.recv(1) == b""


def test_a_reply_that_trickles_in_ends_with_the_patience() -> None:
    """A timeout for each read would never end here."""
    with ScriptedServer(lambda _number, _arrival: Act(answer(200, b"{}"), then="trickle")) as server:
        wire = Wire(resolve(server.url))
        with pytest.raises(WireError, match="timeout"):
            wire.exchange(REQUESTS["GET"], patience_s=SHORT_S)
    assert len(server.arrivals) == 1


def test_a_refused_connection_is_no_arrival() -> None:
    with ScriptedServer(lambda _number, _arrival: OK) as server:
        address = resolve(server.url)
    with pytest.raises(Refused):
        Wire(address).exchange(REQUESTS["POST"], patience_s=PATIENCE_S)
    assert server.arrivals == []


def test_geventhttpclient_sends_a_lost_get_again() -> None:
    """Why scenarios.wire exists. When this fails, the client under Locust's FastHttpUser has been mended."""
    with ScriptedServer(lambda _number, _arrival: CLOSE) as server:
        client = HTTPClient("127.0.0.1", server.port, concurrency=10, network_timeout=PATIENCE_S)
        with pytest.raises(HTTPConnectionClosed):
            client.request("GET", "/api/account")
        client.close()
    assert len(server.arrivals) > 1


def test_geventhttpclient_sends_a_lost_post_once() -> None:
    """True from 2.6.0; pyproject.toml asks for it, for the bench trades through FastHttpUser."""
    with ScriptedServer(lambda _number, _arrival: CLOSE) as server:
        client = HTTPClient("127.0.0.1", server.port, concurrency=10, network_timeout=PATIENCE_S)
        with pytest.raises(HTTPConnectionClosed):
            client.request("POST", "/api/trade", body=b"{}")
        client.close()
    assert len(server.arrivals) == 1
