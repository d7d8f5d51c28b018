"""What a reply proves: the outcome of an attempt, and the facts the checkers use.

An attempt is `ok` only on a complete 2xx whose body is what docs/api.md promises, and `fail` only on a
complete problem+json whose code and status are declared there as not executed. Everything else is `info`:
a bare 503 may come from a proxy that had already forwarded the request.

Three sorts of declared refusal:

- an answer (`insufficient_funds`, ...): the operation is over;
- a refusal of this request (`malformed`, ...): also over, asking again would be refused again;
- a refusal for now (RETRYABLE): this attempt had no effect and is `fail`, but the operation goes on with
  the same key, and it is only then `fail` when its last answer is one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from scenarios.history import Facts, Outcome, digest
from scenarios.wire import Refused, Reply, WireError

NOT_EXECUTED = {
    "malformed": 400,
    "idempotency_key_missing": 400,
    "idempotency_key_malformed": 400,
    "unauthorised": 401,
    "forbidden": 403,
    "not_found": 404,
    "market_not_found": 404,
    "user_not_found": 404,
    "withdrawal_not_found": 404,
    "user_exists": 409,
    "wallet_linked": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "idempotency_key_reused": 422,
    "insufficient_funds": 422,
    "insufficient_shares": 422,
    "limit_exceeded": 422,
    "market_closed": 422,
    "trade_too_small": 422,
    "trade_too_large": 422,
    "wallet_not_linked": 422,
    "message_refused": 422,
    "signature_invalid": 422,
    "nonce_invalid": 422,
    "rate_limited": 429,
    "overloaded": 503,
    "trading_paused": 503,
    "contention": 503,
}
STORED = frozenset(
    {
        "insufficient_funds",
        "insufficient_shares",
        "limit_exceeded",
        "market_closed",
        "trade_too_small",
        "trade_too_large",
        "wallet_not_linked",
    }
)
RETRYABLE = frozenset({"rate_limited", "overloaded", "trading_paused", "contention"})


class Seen(NamedTuple):
    """One attempt as the client saw it. `again` says that the operation has no answer yet."""

    type: Outcome
    again: bool
    status: int | None = None
    code: str | None = None
    error: str | None = None
    reply_hash: str | None = None
    replayed: bool = False
    facts: Facts | None = None
    content: msgspec.Struct | None = None
    retry_after_s: float | None = None

    @property
    def stored(self) -> bool:
        """Whether the system keeps this answer under its key, so that a repetition must bring it again."""
        return self.type == "ok" or self.code in STORED


class TradeContent(msgspec.Struct, rename="camel", gc=False):
    """A trade's reply."""

    trade_id: int
    transaction_id: int
    market_id: int
    market_version: int
    outcome: int
    side: str
    shares: int
    cost: int
    fee: int
    total: int
    balance: int
    account_version: int
    prices: list[int]


class MarketContent(msgspec.Struct, rename="camel", gc=False):
    """A market, read or made or closed."""

    market_id: int
    status: str
    version: int
    prices: list[int]
    pool: int
    transaction_id: int | None = None


class Position(msgspec.Struct, rename="camel", gc=False):
    """Shares of one outcome that an account holds."""

    market_id: int
    outcome: int
    shares: int


class AccountContent(msgspec.Struct, rename="camel", gc=False):
    """An account, with what it holds."""

    user_id: str
    available: int
    reserved: int
    account_version: int
    positions: list[Position]


class EntryContent(msgspec.Struct, rename="camel", gc=False):
    """One ledger entry as an account's owner sees it."""

    entry_id: int
    transaction_id: int
    account: str | int
    balance_after: int
    account_version: int


class LedgerContent(msgspec.Struct, rename="camel", gc=False):
    """The newest entries of an account, newest first."""

    entries: list[EntryContent]


class FundingContent(msgspec.Struct, rename="camel", gc=False):
    """A funding's reply."""

    transaction_id: int
    amount: int
    balance: int
    account_version: int
    user_id: str | None = None


class UserContent(msgspec.Struct, rename="camel", gc=False):
    """A new user, with the only sight of the token."""

    user_id: str
    token: str


class WithdrawalContent(msgspec.Struct, rename="camel", gc=False):
    """A withdrawal that was accepted; the money has left the user's account."""

    withdrawal_id: str
    status: str
    transaction_id: int
    balance: int
    account_version: int


class WithdrawalStateContent(msgspec.Struct, rename="camel", gc=False):
    """How far a withdrawal is."""

    withdrawal_id: str
    status: str


class NonceContent(msgspec.Struct, rename="camel", gc=False):
    """A nonce for one message that links a wallet, and whom the message must be for."""

    nonce: str
    domain: str
    chain_id: int


class WalletContent(msgspec.Struct, rename="camel", gc=False):
    """A wallet that is now the user's."""

    address: str
    user_id: str


class ProblemContent(msgspec.Struct):
    """A refusal, as far as it is judged."""

    code: str


def _trade_facts(reply: TradeContent) -> Facts:
    return Facts(
        trade_id=reply.trade_id,
        market_id=reply.market_id,
        market_version=reply.market_version,
        cost_micro=reply.cost,
        fee_micro=reply.fee,
        shares_micro=reply.shares,
        prices_micro=reply.prices,
        transaction_id=reply.transaction_id,
        account_version=reply.account_version,
        balance_micro=reply.balance,
    )


def _market_facts(reply: MarketContent) -> Facts:
    return Facts(
        market_id=reply.market_id,
        market_version=reply.version,
        prices_micro=reply.prices,
        transaction_id=reply.transaction_id,
    )


def _account_facts(reply: AccountContent) -> Facts:
    return Facts(account_version=reply.account_version, balance_micro=reply.available, user_id=reply.user_id)


def _ledger_facts(reply: LedgerContent) -> Facts | None:
    """The newest entry of the user's available account: the state the ledger showed."""
    for entry in reply.entries:
        if entry.account == "user_available":
            return Facts(
                transaction_id=entry.transaction_id,
                account_version=entry.account_version,
                balance_micro=entry.balance_after,
            )
    return None


def _funding_facts(reply: FundingContent) -> Facts:
    return Facts(
        transaction_id=reply.transaction_id,
        account_version=reply.account_version,
        balance_micro=reply.balance,
        user_id=reply.user_id,
    )


def _user_facts(reply: UserContent) -> Facts:
    return Facts(user_id=reply.user_id)


def _withdrawal_facts(reply: WithdrawalContent) -> Facts:
    return Facts(
        transaction_id=reply.transaction_id,
        account_version=reply.account_version,
        balance_micro=reply.balance,
        withdrawal_id=reply.withdrawal_id,
        withdrawal_status=reply.status,
    )


def _withdrawal_state_facts(reply: WithdrawalStateContent) -> Facts:
    return Facts(withdrawal_id=reply.withdrawal_id, withdrawal_status=reply.status)


def _no_facts(_: NonceContent) -> None:
    """A nonce is nobody's business but its user's."""


def _wallet_facts(reply: WalletContent) -> Facts:
    return Facts(user_id=reply.user_id)


_Reading = tuple[Callable[[bytes], Any], Callable[[Any], Facts | None]]
_TRADE: _Reading = (msgspec.json.Decoder(TradeContent).decode, _trade_facts)
_MARKET: _Reading = (msgspec.json.Decoder(MarketContent).decode, _market_facts)
_ACCOUNT: _Reading = (msgspec.json.Decoder(AccountContent).decode, _account_facts)
_READINGS: dict[str, _Reading] = {
    "buy_amount": _TRADE,
    "buy_shares": _TRADE,
    "sell": _TRADE,
    "reuse_key": _TRADE,
    "buy_closed": _TRADE,
    "create_market": _MARKET,
    "close_market": _MARKET,
    "read_market": _MARKET,
    "read_account": _ACCOUNT,
    "read_ledger": (msgspec.json.Decoder(LedgerContent).decode, _ledger_facts),
    "fund": (msgspec.json.Decoder(FundingContent).decode, _funding_facts),
    "create_user": (msgspec.json.Decoder(UserContent).decode, _user_facts),
    "wallet_nonce": (msgspec.json.Decoder(NonceContent).decode, _no_facts),
    "link_wallet": (msgspec.json.Decoder(WalletContent).decode, _wallet_facts),
    "withdraw": (msgspec.json.Decoder(WithdrawalContent).decode, _withdrawal_facts),
    "read_withdrawal": (msgspec.json.Decoder(WithdrawalStateContent).decode, _withdrawal_state_facts),
}
_decode_problem = msgspec.json.Decoder(ProblemContent).decode


def seen_reply(action: str, reply: Reply) -> Seen:
    """The outcome that a complete reply proves."""
    status = reply.status
    reply_hash = digest(reply.body)
    if 200 <= status < 300:
        decode, facts_of = _READINGS[action]
        try:
            content = decode(reply.body)
        except msgspec.DecodeError as error:
            return Seen("info", True, status, error=f"unparsable: {error}", reply_hash=reply_hash)
        return Seen("ok", False, status, None, None, reply_hash, reply.replayed, facts_of(content), content)
    code = None
    if reply.problem:
        try:
            code = _decode_problem(reply.body).code
        except msgspec.DecodeError as error:
            return Seen("info", True, status, error=f"unparsable: {error}", reply_hash=reply_hash)
    if code is not None and NOT_EXECUTED.get(code) == status:
        again = code in RETRYABLE
        return Seen(
            "fail", again, status, code, None, reply_hash, reply.replayed, retry_after_s=reply.retry_after_s
        )
    return Seen(
        "info", True, status, code, None, reply_hash, reply.replayed, retry_after_s=reply.retry_after_s
    )


def seen_failure(error: WireError) -> Seen:
    """The outcome of an attempt without a complete reply."""
    if isinstance(error, Refused):
        return Seen("fail", True, error=error.kind)
    return Seen("info", True, error=error.kind)
