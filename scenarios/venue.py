"""Set-up through the API, all recorded: the treasury's money, two markets, users, their money and wallets.

Each step is an operation like any other, with retries under its key. Making a user is the exception, for
it has no key: an attempt without an answer is left behind (a user without money harms nobody) and another
name is tried.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
from faker import Faker
from gevent.pool import Pool

from scenarios.client import Client
from scenarios.history import Request
from scenarios.intents import Intent, Venue
from scenarios.plan import Market
from scenarios.replies import AccountContent, MarketContent, NonceContent, Seen, UserContent

if TYPE_CHECKING:
    from scenarios.wallet import Wallet

CONCURRENT_SETUPS = 8
USER_TRIES_MAX = 5
LINK_TRIES_MAX = 5
SUBSIDY_MARGIN = 2

Item = TypeVar("Item")
Done = TypeVar("Done")

_encode = msgspec.json.Encoder().encode


class SetupError(Exception):
    """The target refused the set-up; says which step, and what it answered."""


class Account(NamedTuple):
    """A user that exists and has money."""

    number: int
    user: str
    name: str
    token: str


def learn_admin(admin: Client) -> None:
    """Ask the target who the admin is, which also proves the token; raises SetupError."""
    seen = _now(admin, Intent("read_account", "GET", "/api/account", keyed=False))
    if seen.status == 401:
        raise SetupError("the target does not know the admin token: set SEATRIAL_ADMIN_TOKEN to its own")
    if isinstance(seen.content, AccountContent):
        admin.user = seen.content.user_id
    elif seen.code != "forbidden":
        raise SetupError(f"GET /api/account: {_answer(seen)}")


def treasury_micro(market: Market) -> int:
    """What the treasury is funded with: the subsidies of both markets, twice over."""
    return 2 * SUBSIDY_MARGIN * math.ceil(market.b_micro * math.log(market.outcomes))


def open_venue(admin: Client, market: Market) -> Venue:
    """Fund the treasury and make the two markets; raises SetupError."""
    _must(admin, _funding(None, "house_treasury", treasury_micro(market)))
    outcomes = ["Yes", "No"] if market.outcomes == 2 else [f"Outcome {n + 1}" for n in range(market.outcomes)]
    ids = []
    for question in ("Does the ship come home?", "Does the tender come home?"):
        body = {"question": question, "outcomes": outcomes, "b": market.b_micro, "feeBps": market.fee_bps}
        seen = _must(admin, Intent("create_market", "POST", "/api/markets", _encode(body)))
        assert isinstance(seen.content, MarketContent)
        ids.append(seen.content.market_id)
    return Venue(hot=ids[0], side=ids[1], outcomes=market.outcomes, fee_bps=market.fee_bps)


def close_intent(market: int) -> Intent:
    """The admin's intent to close a market."""
    return Intent(
        "close_market", "POST", f"/api/markets/{market}", _encode({"action": "close"}), market=market
    )


def open_accounts(
    numbers: Iterable[int], *, admin_client: Callable[[str], Client], funds_micro: int, tag: str, seed: int
) -> list[Account]:
    """Make users with money, several at a time; raises SetupError.

    `admin_client` gives a client under a process name of its own: a process does one thing at a time.
    """
    todo = [(number, user_name(seed, number)) for number in numbers]
    lanes = [todo[lane::CONCURRENT_SETUPS] for lane in range(min(CONCURRENT_SETUPS, len(todo)))]

    def work(lane: int) -> list[Account]:
        client = admin_client(f"setup{lane}")
        try:
            return [_open_account(client, number, name, funds_micro, tag) for number, name in lanes[lane]]
        finally:
            client.close()

    return sorted(account for accounts in _side_by_side(work, range(len(lanes))) for account in accounts)


def link_wallets(links: list[tuple[Client, Wallet]]) -> None:
    """Have each user say, with a signature, which wallet is theirs; several at a time. Raises SetupError."""
    _side_by_side(lambda link: _link_wallet(*link), links)


def _side_by_side(work: Callable[[Item], Done], items: Iterable[Item]) -> list[Done]:
    """The results of some work, several at a time; raises the first SetupError once all have ended."""

    def guarded(item: Item) -> Done | SetupError:
        try:
            return work(item)
        except SetupError as error:
            return error  # as a value: gevent would print a traceback

    done: list[Done] = []
    for result in Pool(CONCURRENT_SETUPS).map(guarded, items):
        if isinstance(result, SetupError):
            raise result
        done.append(result)
    return done


def _link_wallet(client: Client, wallet: Wallet) -> None:
    unknown = False
    for _ in range(LINK_TRIES_MAX):
        asked = _must(client, Intent("wallet_nonce", "POST", "/api/wallets/nonces", keyed=False))
        assert isinstance(asked.content, NonceContent)
        message = wallet.message(asked.content.nonce)
        body = _encode({"message": message, "signature": wallet.sign_text(message)})
        # A nonce is used up by the first arrival, so each try has its own message.
        seen = _now(
            client, Intent("link_wallet", "POST", "/api/wallets", body, keyed=False, repeatable=False)
        )
        if seen.type == "ok" or (unknown and seen.code == "wallet_linked"):
            return
        if seen.code == "wallet_linked":
            raise SetupError(
                f"the wallet {wallet.address} is linked already: this target has seen the run's seed before;"
                " take another --seed"
            )
        unknown = unknown or seen.type == "info"
        if seen.type == "fail" and not seen.again:
            break
    raise SetupError(f"POST /api/wallets: {_answer(seen)}")


def user_name(seed: int, number: int) -> str:
    """A person's name, the same for a seed and number in every run."""
    faker = _faker()
    faker.seed_instance(f"{seed}/{number}")
    return str(faker.name())


@functools.cache
def _faker() -> Faker:
    return Faker("en_US")  # a generator costs milliseconds to make and microseconds to seed again


def _open_account(admin: Client, number: int, name: str, funds_micro: int, tag: str) -> Account:
    for tried in range(USER_TRIES_MAX):
        user = f"{tag}-u{number:03d}" + (f"-{tried + 1}" if tried else "")
        body = _encode({"name": name, "userId": user})
        seen = _now(admin, Intent("create_user", "POST", "/api/users", body, keyed=False, repeatable=False))
        if isinstance(seen.content, UserContent):
            _must(admin, _funding(seen.content.user_id, None, funds_micro))
            return Account(number, seen.content.user_id, name, seen.content.token)
        if seen.type == "fail" and not seen.again and seen.code != "user_exists":
            break
    raise SetupError(f"POST /api/users: {_answer(seen)}")


def _funding(user: str | None, account: str | None, amount_micro: int) -> Intent:
    to = {"userId": user} if user is not None else {"account": account}
    request = Request(amount_micro=amount_micro, to_user=user)
    return Intent("fund", "POST", "/api/fundings", _encode({**to, "amount": amount_micro}), request=request)


def _now(client: Client, intent: Intent) -> Seen:
    return client.perform(intent, intended_ns=time.monotonic_ns())


def _must(client: Client, intent: Intent) -> Seen:
    seen = _now(client, intent)
    if seen.type != "ok":
        raise SetupError(f"{intent.method} {intent.path}: {_answer(seen)}")
    return seen


def _answer(seen: Seen) -> str:
    """What came back, for a person."""
    if seen.status is None:
        return f"no answer ({seen.error})"
    return f"answered {seen.status} {seen.code or seen.error or ''}".rstrip()
