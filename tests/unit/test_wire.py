"""The addresses a wire takes, and the replies it takes for complete."""

from __future__ import annotations

import socket

import httptools
import pytest

from scenarios.wire import REPLY_BYTES_MAX, Refused, WireError, _ReplyReader, resolve

HEAD = b"HTTP/1.1 200 OK\r\n"


def read(*pieces: bytes) -> _ReplyReader:
    reader = _ReplyReader()
    for piece in pieces:
        reader.parser.feed_data(piece)
    return reader


def with_headers(*headers: bytes) -> _ReplyReader:
    return read(HEAD, *(header + b"\r\n" for header in headers), b"Content-Length: 2\r\n\r\n{}")


def test_an_address_is_resolved_once() -> None:
    address = resolve("http://127.0.0.1:8080")
    assert address == ("127.0.0.1:8080", socket.AF_INET, ("127.0.0.1", 8080))
    assert resolve("http://127.0.0.1/").address == ("127.0.0.1", 80)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8080", "not a http:// URL"),
        ("https://127.0.0.1", "not a http:// URL"),
        ("http://", "not a http:// URL"),
        ("", "not a http:// URL"),
        ("http://127.0.0.1/api", "more than http://host:port"),
        ("http://127.0.0.1?x=1", "more than http://host:port"),
        ("http://me@127.0.0.1", "more than http://host:port"),
        ("http://127.0.0.1:99999", "out of range"),
        ("http://127.0.0.1:port", "port"),
    ],
)
def test_what_is_not_an_address_is_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve(url)


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_a_reply_may_come_in_pieces(size: int) -> None:
    whole = HEAD + b"Content-Length: 11\r\n\r\nhello world"
    reader = read(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert (reader.complete, reader.status, b"".join(reader.body)) == (True, 200, b"hello world")


@pytest.mark.parametrize("cut", range(len(HEAD + b"Content-Length: 5\r\n\r\nhello")))
def test_a_reply_without_its_end_is_not_complete(cut: int) -> None:
    assert not read((HEAD + b"Content-Length: 5\r\n\r\nhello")[:cut]).complete


def test_a_reply_may_be_chunked() -> None:
    reader = read(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"1\r\n!\r\n", b"0\r\n\r\n")
    assert (reader.complete, b"".join(reader.body)) == (True, b"hello!")
    assert not read(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").complete


def test_a_reply_without_a_length_is_never_complete() -> None:
    assert not read(HEAD + b"\r\nhello").complete


def test_an_interim_reply_is_not_the_reply() -> None:
    reader = read(b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"Content-Length: 2\r\n\r\nok")
    assert (reader.status, b"".join(reader.body), reader.surplus) == (200, b"ok", False)


def test_a_second_reply_is_surplus_and_not_the_reply() -> None:
    first, second = (HEAD + b"Content-Length: 1\r\n\r\n%d" % number for number in (1, 2))
    reader = read(first + second)
    assert (reader.complete, reader.surplus, b"".join(reader.body)) == (True, True, b"1")


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH\r\n", b"\x00\x01", b"HTTP/1.1 abc\r\n\r\n", b"{}"])
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(httptools.HttpParserError):
        read(data)


def test_a_reply_is_bounded() -> None:
    head, piece = HEAD + b"Content-Length: %d\r\n\r\n" % (REPLY_BYTES_MAX + 1), b"x" * (1 << 20)
    with pytest.raises(httptools.HttpParserCallbackError) as caught:
        read(head, *[piece] * (REPLY_BYTES_MAX // len(piece) + 1))
    assert isinstance(caught.value.__context__, WireError)
    assert caught.value.__context__.kind == "oversized"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"application/problem+json", True),
        (b"Application/Problem+JSON; charset=utf-8", True),
        (b"application/json", False),
        (b"text/html", False),
    ],
)
def test_problem_json_is_known_by_its_type(value: bytes, problem: bool) -> None:
    assert with_headers(b"Content-Type: " + value).problem is problem


@pytest.mark.parametrize(
    ("header", "replayed"),
    [
        (b"Idempotent-Replayed: true", True),
        (b"IDEMPOTENT-REPLAYED:  True ", True),
        (b"Idempotent-Replayed: false", False),
        (b"Idempotent-Replaced: true", False),
    ],
)
def test_a_replay_is_known_by_its_header(header: bytes, replayed: bool) -> None:
    assert with_headers(header).replayed is replayed


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"3", 3.0), (b" 0 ", 0.0), (b"Wed, 21 Oct 2015 07:28:00 GMT", None), (b"-1", None), (b"9" * 400, None)],
)
def test_retry_after_is_a_number_of_seconds_or_nothing(value: bytes, seconds: float | None) -> None:
    assert with_headers(b"Retry-After: " + value).retry_after_s == seconds


def test_the_server_says_when_a_connection_ends() -> None:
    assert with_headers(b"X: y").keep_alive
    assert not with_headers(b"Connection: close").keep_alive


def test_a_refused_connection_is_a_failure_of_its_own_kind() -> None:
    assert isinstance(Refused(), WireError)
    assert Refused().kind == "refused"
