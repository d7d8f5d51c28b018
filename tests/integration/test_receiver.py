"""The receiver of alerts and notices: what it has answered is on disk, and each key takes effect once."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from chaos.control_line import ControlError
from chaos.ports import free_port
from chaos.processes import wait_until
from chaos.receiver_control import ReceiverControl
from chaos.supervisor import Supervisor
from reference_server.relay import notification
from reference_server.relay.event import Event, NotDelivered
from tests.integration.broken_line import TIMEOUT_S, Received, Started, receiver_in


@pytest.fixture
def receiver(supervisor: Supervisor, tmp_path: Path) -> Iterator[Received]:
    with receiver_in(supervisor, tmp_path / "deliveries.jsonl") as started:
        yield started
    assert started.child.returncode in (0, -signal.SIGKILL)
    assert started.child.log_tail() == "", "the receiver had something to complain about"


def until(receiver: Received, rows: int) -> list[dict[str, object]]:
    """Wait for that many rows."""
    assert wait_until(lambda: len(receiver.rows()) >= rows, timeout_s=TIMEOUT_S)
    return receiver.rows()


def test_a_key_takes_effect_once(receiver: Received) -> None:
    before_ns = time.monotonic_ns()
    assert [receiver.deliver(key, title=key) for key in ("a", "b", "a")] == [200, 200, 200]

    rows = receiver.rows()
    assert [(row["number"], row["key"], row["title"], row["status"], row["applied"]) for row in rows] == [
        (1, "a", "a", 200, True),
        (2, "b", "b", 200, True),
        (3, "a", "a", 200, False),
    ]
    times = [before_ns, *(row["time_ns"] for row in rows), time.monotonic_ns()]
    assert times == sorted(times)
    assert set(rows[0]) == {"time_ns", "number", "key", "title", "status", "applied"}


def test_what_was_answered_survives_sigkill(receiver: Received) -> None:
    for number in range(20):
        assert receiver.deliver(f"k{number}") == 200
        assert len(receiver.rows()) == number + 1  # on disk before we heard of it
    receiver.child.kill()
    assert [row["key"] for row in receiver.rows()] == [f"k{number}" for number in range(20)]


def test_64_senders_at_once_apply_each_key_once(receiver: Received) -> None:
    barrier = threading.Barrier(64)

    def send() -> Counter[int]:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            barrier.wait(TIMEOUT_S)
            return Counter(
                client.post(receiver.url, json={}, headers={"Idempotency-Key": f"k{number}"}).status_code
                for number in range(10)
            )

    senders = [Started(send) for _ in range(64)]
    assert sum((sender.result() for sender in senders), Counter()) == {200: 640}
    rows = receiver.rows()
    assert sorted(row["number"] for row in rows) == list(range(1, 641))
    applied = Counter(row["key"] for row in rows if row["applied"])
    assert applied == {f"k{number}": 1 for number in range(10)}
    # ... and it is the first arrival of each.
    first: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row["number"]):
        first.setdefault(row["key"], row["number"])
    assert {row["key"]: row["number"] for row in rows if row["applied"]} == first


def test_an_arrival_without_key_or_title_is_kept_all_the_same(receiver: Received) -> None:
    assert receiver.deliver(None) == 200
    assert httpx.post(receiver.url, content=b"not json", trust_env=False).status_code == 200
    assert [(row["key"], row["title"], row["applied"]) for row in receiver.rows()] == [
        (None, "a title", True),
        (None, None, True),
    ]
    assert httpx.get(receiver.url, trust_env=False).status_code == 405
    assert len(receiver.rows()) == 2


@pytest.mark.parametrize("way", [b"HTTP/1.1\r\nConnection: Close", b"HTTP/1.0\r\nX-Other: 1"])
def test_a_sender_that_wants_its_connection_closed_has_it_closed(way: bytes, receiver: Received) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=TIMEOUT_S) as sender:
        sender.sendall(b"POST / " + way + b"\r\nContent-Length: 2\r\n\r\n{}")
        answer = b""
        while piece := sender.recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"{}")


def test_a_held_answer_is_in_effect_before_it_is_given(receiver: Received) -> None:
    receiver.control.hold_next("b")
    assert receiver.deliver("a") == 200
    held = Started(lambda: receiver.deliver("b"))
    arrival = receiver.control.await_held(TIMEOUT_S)
    assert arrival is not None
    assert (arrival.key, arrival.number) == ("b", 2)
    ours = {connection.laddr.port for connection in psutil.Process().net_connections("tcp4")}
    assert arrival.peer_port in ours

    # Another relay brings it meanwhile: it has had its effect.
    assert receiver.deliver("b") == 200
    assert not held.over
    assert receiver.control.release() is True
    assert held.result() == 200
    assert [(row["number"], row["status"], row["applied"]) for row in receiver.rows()] == [
        (1, 200, True),
        (3, 200, False),
        (2, 200, True),
    ]
    assert receiver.control.release() is False


def test_a_dropped_answer_is_a_reset_and_has_had_its_effect(receiver: Received) -> None:
    receiver.control.hold_next()
    lost = Started(lambda: receiver.deliver("a"))
    assert receiver.control.await_held(TIMEOUT_S) is not None
    assert receiver.control.drop() is True
    with pytest.raises(httpx.ReadError, match="reset"):
        lost.result()
    assert receiver.deliver("a") == 200
    assert [(row["status"], row["applied"]) for row in receiver.rows()] == [(0, True), (200, False)]


def test_a_sender_that_dies_while_it_waits_did_not_hear_an_answer(receiver: Received) -> None:
    receiver.control.hold_next()
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=TIMEOUT_S) as sender:
        sender.sendall(b"POST / HTTP/1.1\r\nIdempotency-Key: a\r\nContent-Length: 2\r\n\r\n{}")
        arrival = receiver.control.await_held(TIMEOUT_S)
        assert arrival is not None
        assert arrival.peer_port == sender.getsockname()[1]
        assert receiver.rows() == []
    assert [(row["status"], row["applied"]) for row in until(receiver, 1)] == [(0, True)]
    assert receiver.control.release() is False
    assert len(receiver.rows()) == 1


def test_one_answer_is_held_at_a_time(receiver: Received) -> None:
    receiver.control.hold_next()
    with pytest.raises(ControlError, match="one answer is held at a time"):
        receiver.control.hold_next()
    assert receiver.control.await_held(0.05) is None
    assert receiver.control.release() is False  # nothing came: it is disarmed
    assert receiver.deliver("a") == 200
    receiver.control.hold_next()
    assert receiver.control.drop() is False
    assert receiver.deliver("b") == 200


def test_a_held_answer_is_given_in_time(supervisor: Supervisor, tmp_path: Path) -> None:
    with receiver_in(supervisor, tmp_path / "deliveries.jsonl", held_s_max=0.2) as receiver:
        receiver.control.hold_next()
        assert receiver.deliver("a") == 200
        assert receiver.control.status()["expired"] == 1
        assert receiver.control.release() is False


def test_a_new_key_is_refused_until_it_is_accepted(receiver: Received) -> None:
    assert receiver.deliver("notice:0") == 200
    receiver.control.refuse_next("notice:")
    assert receiver.control.refused() is None
    with pytest.raises(ControlError, match="one key is refused at a time"):
        receiver.control.refuse_next()

    keys = ("alert:1", "notice:0", "notice:1", "notice:2", "notice:1")
    assert [receiver.deliver(key) for key in keys] == [200, 200, 503, 200, 503]
    assert receiver.control.refused() == ("notice:1", 2)
    receiver.control.accept()
    assert receiver.control.refused() is None
    assert receiver.deliver("notice:1") == 200

    of_the_refused = [row for row in receiver.rows() if row["key"] == "notice:1"]
    assert [(row["status"], row["applied"]) for row in of_the_refused] == [
        (503, False),
        (503, False),
        (200, True),
    ]


def test_a_refused_arrival_is_not_held(receiver: Received) -> None:
    receiver.control.refuse_next()
    receiver.control.hold_next()
    assert receiver.deliver("a") == 503
    held = Started(lambda: receiver.deliver("b"))
    arrival = receiver.control.await_held(TIMEOUT_S)
    assert arrival is not None
    assert arrival.key == "b"
    receiver.control.release()
    assert held.result() == 200


def test_all_is_healed_when_the_controller_has_gone(receiver: Received) -> None:
    receiver.control.refuse_next()
    assert receiver.deliver("a") == 503
    receiver.control.hold_next()
    held = Started(lambda: receiver.deliver("b"))
    assert receiver.control.await_held(TIMEOUT_S) is not None
    receiver.control.close()

    assert held.result() == 200
    assert receiver.deliver("a") == 200
    with pytest.raises(ControlError, match="the receiver has gone"):
        receiver.control.hold_next()
    fresh = ReceiverControl(receiver.port)
    fresh.connect(timeout_s=TIMEOUT_S)
    assert fresh.refused() is None
    assert fresh.status() == {"arrivals": 3, "keys": 2, "applied": 2, "expired": 0}
    fresh.close()


def test_the_end_of_the_receiver_answers_what_is_held(receiver: Received) -> None:
    receiver.control.hold_next()
    held = Started(lambda: receiver.deliver("a"))
    assert receiver.control.await_held(TIMEOUT_S) is not None
    receiver.child.terminate()
    assert held.result() == 200
    assert [row["status"] for row in receiver.rows()] == [200]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_arrival_that_cannot_be_written_is_not_answered(supervisor: Supervisor) -> None:
    with receiver_in(supervisor, Path("/dev/full")) as receiver:
        with pytest.raises(httpx.TransportError):
            receiver.deliver("a")
        assert receiver.child.wait(TIMEOUT_S) == 1
        assert "cannot write" in receiver.child.log_tail()


def test_a_taken_port_ends_the_receiver_with_a_message(receiver: Received, tmp_path: Path) -> None:
    options = ["--port", str(receiver.port), "--file", str(tmp_path / "other.jsonl")]
    done = subprocess.run(
        [sys.executable, "-m", "chaos.receiver", *options],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert "address already in use" in done.stderr


def test_no_receiver_is_an_error() -> None:
    with pytest.raises(ControlError, match="does not listen"):
        ReceiverControl(free_port()).connect(timeout_s=0.1)


def test_the_reference_servers_alerts_arrive_with_their_key(receiver: Received) -> None:
    notify = notification.handler(argparse.Namespace(notify=[f"json://127.0.0.1:{receiver.port}/"]))
    event = Event(
        event_id=1,
        aggregate_type="inbox",
        aggregate_id="1",
        event_type="alert.test",
        payload={"title": "a title: ü", "amount": 5},
        dedup_key="notice:reversed:7 &+",
        attempts=1,
        lease_token=1,
        lease_ends_s=time.monotonic() + TIMEOUT_S,
    )
    notify(event)
    receiver.control.refuse_next()
    with pytest.raises(NotDelivered):
        notify(Event(**{**vars(event), "dedup_key": "notice:8"}))
    rows = receiver.rows()
    assert [(row["key"], row["title"], row["status"]) for row in rows] == [
        ("notice:reversed:7 &+", "a title: ü", 200),
        ("notice:8", "a title: ü", 503),
    ]
    assert json.loads(receiver.file.read_bytes().splitlines()[0])["applied"] is True
