"""What a client sends: an operation's name, its key, and the bytes that every attempt repeats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios.client import Client, Patience, Recorder
from scenarios.history import Facts, HistoryWriter, digest
from scenarios.intents import Intent, trade
from scenarios.live import Live
from scenarios.wire import resolve

BUY = trade("buy_shares", 1, 0, "buy", shares_micro=1_000_000)
READ = Intent("read_account", "GET", "/api/account", keyed=False)
DEPOSIT = Intent("deposit", "POST", "/", b'{"id":1}', keyed=False, tx_hash="0xab")
NEW_USER = Intent("create_user", "POST", "/api/users", b'{"name":"A"}', keyed=False, repeatable=False)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client that has nobody to talk to."""
    history = HistoryWriter(tmp_path, "w0")
    recorder = Recorder(history, Live(), resolve("http://127.0.0.1:8080"), Patience(1.0, 1.0), "tag")
    yield Client(recorder, process="w0-5", user="u5", token="secret", seed="7/5/backoff")
    history.close()


def test_operations_are_named_by_run_process_and_number(client: Client) -> None:
    names = [client.operation(intent).name for intent in (BUY, READ, BUY)]
    assert names == ["tag-w0-5-1", "tag-w0-5-2", "tag-w0-5-3"]


def test_what_moves_money_has_a_key_of_its_own(client: Client) -> None:
    one, other = client.operation(BUY), client.operation(BUY)
    assert one.key == one.name
    assert other.key not in (None, one.key)


def test_a_key_can_be_reused_on_purpose(client: Client) -> None:
    first = client.operation(BUY)
    again = client.operation(BUY, key=first.key)
    assert again.key == first.key
    assert again.name != first.name


def test_what_has_no_key_sends_none(client: Client) -> None:
    for intent in (READ, NEW_USER):
        operation = client.operation(intent)
        assert operation.key is None
        assert b"Idempotency-Key" not in operation.request_bytes


def test_a_post_is_sent_whole(client: Client) -> None:
    operation = client.operation(BUY)
    head, _, body = operation.request_bytes.partition(b"\r\n\r\n")
    assert body == BUY.body
    assert head.split(b"\r\n") == [
        b"POST /api/trade HTTP/1.1",
        b"Host: 127.0.0.1:8080",
        b"Authorization: Bearer secret",
        b"Accept: application/json, application/problem+json",
        b"Idempotency-Key: tag-w0-5-1",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(BUY.body),
    ]


def test_a_get_has_no_body(client: Client) -> None:
    request = client.operation(READ).request_bytes
    assert request.startswith(b"GET /api/account HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\n")
    assert b"Content-" not in request


@pytest.fixture
def depositor(tmp_path: Path) -> Iterator[Client]:
    """A client that knows of a chain's node."""
    history = HistoryWriter(tmp_path, "w0")
    node = resolve("http://127.0.0.1:8545")
    recorder = Recorder(
        history, Live(), resolve("http://127.0.0.1:8080"), Patience(1.0, 1.0), "tag", node=node
    )
    yield Client(recorder, process="w0-5", user="u5", token="secret", seed="7/5/backoff")
    history.close()


def test_a_deposit_goes_to_the_node_without_key_and_token(depositor: Client) -> None:
    operation = depositor.operation(DEPOSIT)
    head, _, body = operation.request_bytes.partition(b"\r\n\r\n")
    assert body == DEPOSIT.body
    assert head.startswith(b"POST / HTTP/1.1\r\nHost: 127.0.0.1:8545\r\n")
    assert b"secret" not in head
    assert b"Idempotency-Key" not in head
    assert (operation.key, operation.facts) == (None, Facts(tx_hash="0xab"))
    assert operation.request_hash == digest(b"POST /\n" + DEPOSIT.body)


def test_what_else_is_asked_goes_to_the_target(depositor: Client) -> None:
    for intent in (BUY, READ, NEW_USER):
        operation = depositor.operation(intent)
        assert b"Host: 127.0.0.1:8080\r\n" in operation.request_bytes
        assert operation.facts is None


def test_the_request_hash_names_method_path_and_body(client: Client) -> None:
    one, same = client.operation(BUY), client.operation(BUY)
    assert one.request_hash == same.request_hash == digest(b"POST /api/trade\n" + BUY.body)
    others = (BUY._replace(path="/api/other"), BUY._replace(body=BUY.body + b" "))
    assert one.request_hash not in {client.operation(other).request_hash for other in others}
    assert client.operation(READ).request_hash is None
