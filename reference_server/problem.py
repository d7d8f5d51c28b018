"""Refusals as problem+json (RFC 9457), each with a stable code.

CODES is the catalogue: what status a code has, its title (as the database renders it), and whether it
declares that nothing was executed. A code that is not declared so leaves the outcome open, and the client
must ask again with the same key.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

MEDIA_TYPE = b"application/problem+json"
RETRY_AFTER_S = 1


class Code(NamedTuple):
    """What one code means, in any reply that carries it."""

    status: int
    title: str
    executed: bool | None  # False: declared as not executed; None: unknown
    retry: bool = False  # the reply carries Retry-After


CODES: dict[str, Code] = {
    "malformed": Code(400, "Malformed request", False),
    "idempotency_key_missing": Code(400, "Idempotency key missing", False),
    "idempotency_key_malformed": Code(400, "Idempotency key malformed", False),
    "unauthorised": Code(401, "Unauthorised", False),
    "forbidden": Code(403, "Forbidden", False),
    "not_found": Code(404, "Not found", False),
    "market_not_found": Code(404, "Market not found", False),
    "user_not_found": Code(404, "User not found", False),
    "withdrawal_not_found": Code(404, "Withdrawal not found", False),
    "method_not_allowed": Code(405, "Method not allowed", False),
    "idempotency_key_in_progress": Code(409, "Idempotency key in progress", None, retry=True),
    "user_exists": Code(409, "User exists", False),
    "wallet_linked": Code(409, "Wallet already linked", False),
    "too_large": Code(413, "Body too large", False),
    "unsupported_media_type": Code(415, "Unsupported media type", False),
    "idempotency_key_reused": Code(422, "Idempotency key reused", False),
    "insufficient_funds": Code(422, "Insufficient funds", False),
    "insufficient_shares": Code(422, "Insufficient shares", False),
    "limit_exceeded": Code(422, "Limit exceeded", False),
    "market_closed": Code(422, "Market closed", False),
    "trade_too_small": Code(422, "Trade too small", False),
    "trade_too_large": Code(422, "Trade too large", False),
    "message_refused": Code(422, "Message refused", False),
    "signature_invalid": Code(422, "Signature invalid", False),
    "nonce_invalid": Code(422, "Nonce invalid", False),
    "wallet_not_linked": Code(422, "Wallet not linked", False),
    "rate_limited": Code(429, "Too many requests", False, retry=True),
    "internal": Code(500, "Internal error", None),
    "overloaded": Code(503, "Overloaded", False, retry=True),
    "trading_paused": Code(503, "Trading paused", False, retry=True),
    "contention": Code(503, "Contention", False, retry=True),
    "unhealthy": Code(503, "Database does not answer", None, retry=True),
}


class ProblemBody(msgspec.Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """The body of a refusal."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | None = None


_encode = msgspec.json.Encoder().encode


class Problem(Exception):
    """A refusal to answer with; `field` names the offending member, parameter or header where one exists."""

    def __init__(
        self, code: str, detail: str, *, field: str | None = None, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.field = field
        self.extra_headers = headers

    @property
    def status(self) -> int:
        return CODES[self.code].status

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Headers beside the content type and length."""
        headers = list(self.extra_headers)
        if CODES[self.code].retry:
            headers.append(("retry-after", str(RETRY_AFTER_S)))
        if self.status == 413:
            headers.append(("connection", "close"))  # the rest of the body is not wanted
        if self.status == 401:
            headers.append(("www-authenticate", "Bearer"))
        return headers

    def body(self) -> bytes:
        code = CODES[self.code]
        return _encode(
            ProblemBody(
                type="about:blank",
                title=code.title,
                status=code.status,
                code=self.code,
                detail=self.detail,
                field=self.field,
            )
        )
