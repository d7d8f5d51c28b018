"""The handler that pays withdrawals: it looks, signs, writes down, sends, in this order.

  1. Look into the books: what has ended, or is paid by a block, needs nothing. Look at the chain: the same.
  2. If nothing was signed yet, sign, and write the transaction down (95_withdrawals.sql) before the chain
     sees it. If something was, and the node does not have it, send the same bytes again: they can be executed
     once. What is stuck is signed again under its nonce with a higher fee; a new nonce is used only when the
     watcher found the old one spent by somebody else, deep enough. A nonce that a reorganisation has left to
     nobody is spent on nothing, or none behind it could be.
  3. Send. A reply that is lost is a failed attempt of the event: the next one begins by looking.

Two relays at once, one of them perhaps asleep past its lease, sign one transaction: the second finds the
books changed. While the platform is paused nothing is signed or sent: the withdrawal is put off, and the
watcher has it looked after when money moves again. What was sent before may still be paid: nobody can call
it back.
"""

from __future__ import annotations

import argparse
import os
import threading
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from reference_server.payout_books import PayoutBooks, Signature, Wanted
from reference_server.relay.event import Event, Handler, HandlerError, NotDelivered
from reference_server.withdrawal_ids import word_of

if TYPE_CHECKING:
    from reference_server.chain.client import CustodyClient
    from reference_server.chain.connection import Fees, SignedTransaction

GWEI = 10**9
# What one event may do; the next one goes on.
GAP_MAX = 100
VARIABLE = "SEATRIAL_OPERATOR_KEY"


class Reason(NamedTuple):
    """Why a withdrawal is seen to, and how many attempts there were when that was found."""

    name: str
    attempts: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of withdrawals; without --rpc this relay leaves them to others."""
    parser.add_argument("--rpc", metavar="URL", help="JSON-RPC endpoint; pay withdrawals")
    parser.add_argument("--vault", metavar="ADDRESS", help="custody contract")
    parser.add_argument("--usdc", metavar="ADDRESS", help="token contract")
    parser.add_argument(
        "--operator-key-env",
        metavar="NAME",
        default=VARIABLE,
        help="environment variable with the operator's private key (default: %(default)s)",
    )
    parser.add_argument("--vault-from-block", type=int, default=0, help="where the vault's events begin")
    parser.add_argument(
        "--max-fee-gwei",
        type=int,
        default=500,
        help="the most to pay for a unit of gas (default: %(default)s)",
    )


def handler(options: argparse.Namespace) -> Handler | None:
    """The handler of events of type 'withdrawal.*'; raises HandlerError."""
    if not options.rpc:
        return None
    if not options.vault or not options.usdc:
        raise HandlerError("--rpc: also give --vault and --usdc")
    if options.max_fee_gwei < 1:
        raise HandlerError("--max-fee-gwei: at least 1")
    key = os.environ.get(options.operator_key_env)
    if not key:
        raise HandlerError(f"--rpc: ${options.operator_key_env} is to hold the operator's key")
    # heavy, and only for relays that pay
    from reference_server.chain.connection import account_of

    try:
        account_of(key)
    except ValueError:
        # without the cause: it has the key in it
        raise HandlerError(f"${options.operator_key_env} is not a private key") from None
    return Payouts(options, key).deliver


class Payouts:
    """Pays withdrawals from one vault; `deliver` may run in several threads."""

    def __init__(self, options: argparse.Namespace, key: str) -> None:
        self._options = options
        self._key = key
        self._lock = threading.Lock()
        self._made: CustodyClient | None = None

    def deliver(self, event: Event) -> None:
        """See to it that the chain has a transaction for this withdrawal, if it needs one."""
        withdrawal_id = UUID(event.payload["withdrawal_id"])
        reason = Reason(event.payload.get("reason", "requested"), event.payload.get("attempts", 0))
        with PayoutBooks(self._options.dsn) as books:
            wanted = books.wanted(withdrawal_id)
            if wanted is None:
                raise NotDelivered("the books have no such withdrawal")
            tx_hash = self._see_to(books, withdrawal_id, wanted, reason)
            books.sent(withdrawal_id, tx_hash)

    def _see_to(self, books: PayoutBooks, withdrawal_id: UUID, wanted: Wanted, reason: Reason) -> str | None:
        """The hash of the transaction that the chain has; None when it needs none, or may have none now."""
        from reference_server.chain.connection import SignedTransaction, is_known

        if wanted.status not in ("reserved", "sent") or not wanted.may_leave:
            return None
        chain = self._chain()
        word = word_of(withdrawal_id)
        if paid := chain.find_withdrawal(word, from_block=self._options.vault_from_block):
            return paid.place.transaction_hash
        signatures = books.signatures(withdrawal_id)
        asked_anew = bool(signatures) and reason.attempts == len(signatures)
        if not signatures or (asked_anew and reason.name == "replaced"):
            signed = self._sign(books, withdrawal_id, wanted, signatures)
        elif asked_anew and reason.name == "stuck":
            signed = self._sign(books, withdrawal_id, wanted, signatures, raised=signatures[0])
        else:
            last = signatures[0]
            if reason.name == "blocked":
                self._fill_gap(books, up_to=last.nonce)
            if is_known(chain.web3, last.tx_hash):
                return last.tx_hash
            signed = SignedTransaction(hash=last.tx_hash, raw=last.raw, nonce=last.nonce)
        return self._send(signed)

    def _sign(
        self,
        books: PayoutBooks,
        withdrawal_id: UUID,
        wanted: Wanted,
        signatures: list[Signature],
        *,
        raised: Signature | None = None,
    ) -> SignedTransaction:
        """A signed transaction that the books have; `raised`: in place of this one, for a higher fee."""
        chain = self._chain()
        fees = self._fees(raised)
        chain_nonce = chain.next_nonce()
        with books.transaction():
            nonce = raised.nonce if raised else books.nonce(chain.operator, chain_nonce)
            signed = chain.sign_withdrawal(
                word_of(withdrawal_id), wanted.address, wanted.amount, nonce=nonce, fees=fees
            )
            written = books.signed(
                withdrawal_id,
                len(signatures),
                Signature(
                    operator=chain.operator.lower(),
                    nonce=nonce,
                    tx_hash=signed.hash,
                    max_fee=fees.max_fee_wei,
                    priority_fee=fees.max_priority_fee_wei,
                    raw=signed.raw,
                ),
            )
            if not written:
                # and so the nonce is not used up
                raise NotDelivered("somebody else signed meanwhile, or the platform is paused")
        return signed

    def _fill_gap(self, books: PayoutBooks, *, up_to: int) -> None:
        """Spend nonces that nobody will: a reorganisation has undone what spent them."""
        from reference_server.chain.connection import account_of, send, sign

        chain = self._chain()
        account = account_of(self._key)
        for _ in range(GAP_MAX):
            nonce = chain.next_nonce()
            if nonce >= up_to or not books.abandoned(chain.operator, nonce):
                return  # or its own withdrawal is seen to
            # no money to ourselves
            nothing = sign(
                account,
                {"to": account.address, "gas": 21_000},
                chain_id=chain.chain_id,
                nonce=nonce,
                fees=self._fees(None),
            )
            send(chain.web3, nothing)

    def _fees(self, raised: Signature | None) -> Fees:
        """What to offer now; in place of another transaction, at least an eighth more of each fee."""
        from reference_server.chain.connection import Fees, suggested_fees

        most = self._options.max_fee_gwei * GWEI
        fees = suggested_fees(self._chain().web3)
        least, least_tip = (0, 0) if raised is None else (over(raised.max_fee), over(raised.priority_fee))
        if least > most:
            raise NotDelivered(f"stuck, and a higher fee is above --max-fee-gwei {most // GWEI}")
        max_fee = min(most, max(fees.max_fee_wei, least))
        return Fees(
            max_fee_wei=max_fee, max_priority_fee_wei=min(max_fee, max(fees.max_priority_fee_wei, least_tip))
        )

    def _send(self, signed: SignedTransaction) -> str | None:
        from reference_server.chain.connection import ChainRefused, send

        chain = self._chain()
        try:
            return send(chain.web3, signed)
        except ChainRefused:
            if chain.next_nonce(waiting=False) > signed.nonce:
                # spent, by this withdrawal or by somebody: the watcher finds out which when it is deep enough
                return None
            raise

    def _chain(self) -> CustodyClient:
        """The client, made when first needed: a relay starts while the node is away."""
        from reference_server.chain.client import Addresses, CustodyClient
        from reference_server.chain.connection import connect

        with self._lock:
            if self._made is None:
                addresses = Addresses(usdc=self._options.usdc, vault=self._options.vault)
                self._made = CustodyClient(connect(self._options.rpc), addresses, operator_key=self._key)
            return self._made


def over(fee: int) -> int:
    """A fee that replaces this one: nodes ask for a tenth more."""
    return fee + fee // 8 + 1
