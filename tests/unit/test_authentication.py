"""Authentication: tokens are looked up by their hash, and remembered for a while in bounded memory."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import pytest

from reference_server import authentication
from reference_server.authentication import Authentication, Caller
from reference_server.problem import Problem

ANN = Caller("ann", "user")


class Tokens:
    """A stand-in for the database's tokens, which notes what it is asked."""

    def __init__(self, **tokens: Caller) -> None:
        self.callers = {sha256(token.encode()).digest(): caller for token, caller in tokens.items()}
        self.asked: list[bytes] = []

    async def __call__(self, token_hash: bytes) -> Caller | None:
        self.asked.append(token_hash)
        return self.callers.get(token_hash)


def test_a_known_token_is_looked_up_once_by_its_hash() -> None:
    tokens = Tokens(secret=ANN)
    known = Authentication(tokens)
    assert known.remembered(b"secret") is None
    for _ in range(3):
        assert asyncio.run(known.caller(b"secret")) == ANN
    assert known.remembered(b"secret") == ANN
    assert tokens.asked == [sha256(b"secret").digest()]


def test_an_unknown_token_is_refused_and_asked_for_again() -> None:
    tokens = Tokens()
    known = Authentication(tokens)
    for _ in range(2):
        with pytest.raises(Problem, match="unauthorised"):
            asyncio.run(known.caller(b"secret"))
    tokens.callers[sha256(b"secret").digest()] = ANN
    assert asyncio.run(known.caller(b"secret")) == ANN
    assert len(tokens.asked) == 3


def test_a_token_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "REMEMBER_S", -1.0)
    tokens = Tokens(secret=ANN)
    known = Authentication(tokens)
    asyncio.run(known.caller(b"secret"))
    tokens.callers.clear()
    with pytest.raises(Problem, match="unauthorised"):
        asyncio.run(known.caller(b"secret"))


def test_the_memory_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "REMEMBER_MAX", 2)
    known = Authentication(Tokens(one=ANN, two=ANN, three=ANN))
    for token in (b"one", b"two", b"three"):
        asyncio.run(known.caller(token))
    assert [known.remembered(token) for token in (b"one", b"two", b"three")] == [None, ANN, ANN]
