"""Where messages begin and end: the framing rules, and that no way of cutting a stream changes the answer."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.http_framing import (
    CHUNKED,
    UNTIL_CLOSE,
    ChunkedBody,
    FramingError,
    LengthBody,
    UntilCloseBody,
    header,
    reply_framing,
    request_framing,
)


def head(*lines: str) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        (("GET / HTTP/1.1", "Host: x"), 0),
        (("POST / HTTP/1.1", "Content-Length: 12"), 12),
        (("POST / HTTP/1.0", "content-LENGTH:   7  "), 7),
        (("POST / HTTP/1.1", "X-Content-Length: 9", "Content-Length: 3"), 3),
        (("POST / HTTP/1.1", "Transfer-Encoding: Chunked"), CHUNKED),
    ],
)
def test_a_request_says_how_long_its_body_is(lines: tuple[str, ...], length: int) -> None:
    assert request_framing(head(*lines)) == length


@pytest.mark.parametrize(
    "data",
    [
        head("POST / HTTP/1.1", "Content-Length: 1", "Content-Length: 1"),
        head("POST / HTTP/1.1", "Content-Length: 1", "Transfer-Encoding: chunked"),
        head("POST / HTTP/1.1", "Transfer-Encoding: gzip, chunked"),
        head("POST / HTTP/1.1", "Content-Length: -1"),
        head("POST / HTTP/1.1", "Content-Length: +1"),
        head("POST / HTTP/1.1", "Content-Length: 1_000"),
        head("POST / HTTP/1.1", "Content-Length:"),
        head("POST / HTTP/1.1", "X: a", " Content-Length: 5"),
        b"POST / HTTP/1.1\nContent-Length: 5\r\n\r\n",
        head("POST / HTTP/2.0"),
        head("POST /"),
        head("CONNECT a:1 HTTP/1.1"),
        head("\u0000\u0001"),
    ],
)
def test_a_request_that_two_parsers_could_read_differently_is_not_framed(data: bytes) -> None:
    with pytest.raises(FramingError):
        request_framing(data)


@pytest.mark.parametrize(
    ("lines", "to_head_request", "expected"),
    [
        (("HTTP/1.1 200 OK", "Content-Length: 5"), False, (200, 5)),
        (("HTTP/1.1 200 OK", "Content-Length: 5"), True, (200, 0)),
        (("HTTP/1.1 200 OK",), False, (200, UNTIL_CLOSE)),
        (("HTTP/1.1 500 X", "Transfer-Encoding: chunked"), False, (500, CHUNKED)),
        (("HTTP/1.1 204 No Content",), False, (204, 0)),
        (("HTTP/1.1 304 Not Modified", "Content-Length: 5"), False, (304, 0)),
        (("HTTP/1.1 100 Continue",), False, (100, 0)),
    ],
)
def test_a_reply_says_how_long_its_body_is(
    lines: tuple[str, ...], to_head_request: bool, expected: tuple[int, int]
) -> None:
    assert reply_framing(head(*lines), to_head_request=to_head_request) == expected


@pytest.mark.parametrize("line", ["HTTP/1.1 101 Switching Protocols", "HTTP/1.1 xyz", "220 smtp ready"])
def test_what_is_no_plain_reply_is_not_framed(line: str) -> None:
    with pytest.raises(FramingError):
        reply_framing(head(line), to_head_request=False)


def test_a_field_is_found_whatever_its_case() -> None:
    data = head("POST / HTTP/1.1", "X-Idempotency-Key: no", "IDEMPOTENCY-Key:  abc ")
    assert header(data, b"idempotency-key") == "abc"
    assert header(data, b"absent") is None


def chunked(chunks: list[bytes], *, trailer: bytes = b"") -> bytes:
    sized = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)
    return sized + b"0\r\n" + trailer + b"\r\n"


def end_of(body: ChunkedBody | LengthBody, stream: bytes, cuts: list[int]) -> int:
    """Where the body ends in the stream when it comes in these pieces."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        found = body.feed(stream[start:end], 0)
        if found >= 0:
            return start + found
    return -1


@given(
    st.lists(st.binary(max_size=40), max_size=5),
    st.sampled_from([b"", b"Digest: x\r\n"]),
    st.binary(max_size=20),
    st.lists(st.integers(min_value=0), max_size=12),
)
def test_a_chunked_body_ends_in_one_place_however_it_is_cut(
    chunks: list[bytes], trailer: bytes, after: bytes, cuts: list[int]
) -> None:
    stream = chunked(chunks, trailer=trailer)
    body = ChunkedBody(keep=True)
    assert end_of(body, stream + after, cuts) == len(stream)
    assert bytes(body.content or b"") == b"".join(chunks)


@given(st.binary(max_size=60), st.binary(max_size=20), st.lists(st.integers(min_value=0), max_size=12))
def test_a_body_of_known_length_ends_in_one_place_however_it_is_cut(
    content: bytes, after: bytes, cuts: list[int]
) -> None:
    if content:
        assert end_of(LengthBody(len(content)), content + after, cuts) == len(content)


@pytest.mark.parametrize(
    "data", [b"g\r\n", b"\r\n", b"-1\r\n", b"1_0\r\n", b"5\n", b"0" * 5000, b"f" * 13 + b"\r\n"]
)
def test_a_chunk_size_that_is_none_is_not_framed(data: bytes) -> None:
    with pytest.raises(FramingError):
        ChunkedBody().feed(data, 0)


def test_a_body_without_length_has_no_end_of_its_own() -> None:
    assert UntilCloseBody().feed(b"x" * 1000, 0) == -1
