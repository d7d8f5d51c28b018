"""The request headers this server reads, found in one scan, each checked when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from reference_server.problem import Problem

KEY_LENGTH_MAX = 255
_KEY = re.compile(rb"[\x21-\x7e]{1,255}\Z")


class RequestHeaders:
    """The authorisation, content type, content length and idempotency key of one request, as sent."""

    __slots__ = ("authorization", "content_length", "content_type", "key", "key_count")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.authorization: bytes | None = None
        self.content_type: bytes | None = None
        self.content_length: bytes | None = None
        self.key: bytes | None = None
        self.key_count = 0
        for name, value in headers:  # names are lower case: ASGI says so
            if name == b"authorization":
                # Two credentials are no credential: which one is meant is not for us to guess.
                self.authorization = value if self.authorization is None else b""
            elif name == b"idempotency-key":
                self.key = value
                self.key_count += 1
            elif name == b"content-type":
                self.content_type = value
            elif name == b"content-length":
                self.content_length = value

    def token(self) -> bytes:
        """The bearer token; raises Problem `unauthorised`."""
        value = self.authorization
        if value is None or value[:7].lower() != b"bearer " or len(value) > 1024:
            raise Problem("unauthorised", "send Authorization: Bearer <token>")
        return value[7:].strip()

    def idempotency_key(self) -> str:
        """The key, 1 to 255 visible ASCII characters; raises Problem."""
        key = self.key
        if key is None:
            raise Problem(
                "idempotency_key_missing",
                "send an Idempotency-Key header with everything that moves money",
                field="Idempotency-Key",
            )
        if self.key_count > 1:
            raise Problem(
                "idempotency_key_malformed",
                "the Idempotency-Key header is given more than once",
                field="Idempotency-Key",
            )
        if _KEY.match(key) is None:
            raise Problem(
                "idempotency_key_malformed",
                "an idempotency key is 1 to 255 visible ASCII characters",
                field="Idempotency-Key",
            )
        return key.decode("ascii")

    def require_json(self) -> None:
        """Raise Problem `unsupported_media_type` unless the body is declared as JSON."""
        kind = self.content_type
        if kind == b"application/json":
            return
        if kind is None or kind.split(b";", 1)[0].strip().lower() != b"application/json":
            raise Problem(
                "unsupported_media_type", "send Content-Type: application/json", field="Content-Type"
            )
