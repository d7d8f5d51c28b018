"""Reply bodies: their shapes, as the database renders them; the OpenAPI document is made from these.

The server never parses a reply: it passes on the database's bytes. Amounts are micro-USDC, shares are
micro-shares, prices are micro-USDC a share.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Shape(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A reply body; a reader of ours refuses a member that is not in the contract."""


class PoolReply(Shape):
    """The database connections: how many there are, and how many requests wait for one."""

    size: int
    waiting: int


class SequencerReply(Shape, rename=None):
    """Trades waiting for a batch, and batches (or single trades) being executed."""

    queued: int
    in_flight: int


class HealthReply(Shape):
    """The server and its database answer."""

    status: Literal["ok"]
    version: str
    strategy: Literal["batch", "row_lock", "optimistic"]
    pool: PoolReply
    sequencer: SequencerReply


class UserReply(Shape):
    """A new user; the token is shown this once."""

    user_id: str
    token: str


class FundingReply(Shape):
    """Money that came in; `userId` is null for the house treasury."""

    transaction_id: int
    user_id: str | None
    amount: int
    balance: int
    account_version: int


class MarketReply(Shape):
    """A market; `prices` sum to exactly 1,000,000, `version` counts its trades and its closing."""

    market_id: int
    question: str
    status: Literal["open", "closed"]
    version: int
    outcomes: list[str]
    quantities: list[int]
    prices: list[int]
    pool: int
    b: int
    fee_bps: int


class CreatedMarketReply(MarketReply):
    """A new market, with the transaction of its subsidy."""

    transaction_id: int


class MarketsReply(Shape):
    """Every market, oldest first."""

    markets: list[MarketReply]


class TradeReply(Shape):
    """A trade; `total` left (buy: cost + fee) or reached (sell: cost - fee) the user's account."""

    trade_id: int
    transaction_id: int
    market_id: int
    market_version: int
    outcome: int
    side: Literal["buy", "sell"]
    shares: int
    cost: int
    fee: int
    total: int
    balance: int
    account_version: int
    prices: list[int]


class PositionReply(Shape):
    """Shares held of one outcome."""

    market_id: int
    outcome: int
    shares: int


class AccountReply(Shape):
    """The caller's money and shares."""

    user_id: str
    available: int
    reserved: int
    account_version: int
    positions: list[PositionReply]


class EntryReply(Shape):
    """One ledger entry; `createdAt` is UTC with microseconds."""

    entry_id: int
    transaction_id: int
    account: str
    kind: str
    debit: int
    credit: int
    balance_after: int
    account_version: int
    created_at: str


class LedgerReply(Shape):
    """The caller's newest entries, newest first."""

    entries: list[EntryReply]


class ReconciliationReply(Shape):
    """The caller's balance against the sum of the ledger entries."""

    user_id: str
    balance: int
    entries_sum: int
    entries: int
    difference: int
    reconciled: bool


class NonceReply(Shape):
    """A nonce for one message, and whom the message must be for."""

    nonce: str
    expires_at: str
    domain: str
    chain_id: int


class WalletReply(Shape):
    """A wallet that is now the caller's; addresses are shown in lower case."""

    address: str
    user_id: str
    linked_at: str


class LinkedWallet(Shape):
    """A wallet of the caller's."""

    address: str
    linked_at: str


class WalletsReply(Shape):
    """The caller's wallets, oldest first."""

    wallets: list[LinkedWallet]


class ReservedReply(Shape):
    """A withdrawal that was accepted: the money is reserved, `balance` is what is left."""

    withdrawal_id: str
    status: Literal["reserved"]
    amount: int
    address: str
    transaction_id: int
    balance: int
    account_version: int


class WithdrawalReply(Shape):
    """How far a withdrawal is; `final` and, but for the deepest reorganisations, `returned` are the end."""

    withdrawal_id: str
    status: Literal["reserved", "sent", "mined", "final", "returned"]
    amount: int
    address: str
    tx_hash: str | None
    block_number: int | None
    reason: str | None
    created_at: str
    changed_at: str
