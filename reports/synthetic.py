"""A correct run of any size, made up in seconds: what the speed of the judge is measured on.

A loop decides what each operation does and what the market answers; everything else, the history, the books
and what a trial writes beside them, is derived from its columns by SQL. The crowd is a hundred users on one
market, a thousand operations a second; a side market was closed before; once in five thousand operations a
reply is lost, and the client asks again.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
from numpy.typing import NDArray

from reports.synthetic_setup import (
    B_MICRO,
    FEE_BPS,
    FUNDS_MICRO,
    SIDE_COST_MICRO,
    SIDE_FEE_MICRO,
    START_NS,
    USERS,
    cost_micro,
)
from reports.synthetic_tables import STEP_NS, write_tables
from scenarios.history import FORMAT
from scenarios.plan import FaultPlan, Load, Market, Plan, RunPlan, Service, Stage, Thresholds

ACTIONS = (
    ("buy_amount", 24),
    ("buy_shares", 22),
    ("sell", 30),
    ("read_market", 9),
    ("read_account", 6),
    ("read_ledger", 5),
    ("refused", 2),
    ("reuse_key", 2),
)


COLUMNS: dict[str, type] = {
    "place": np.int64,
    "action": object,
    "outcome": np.int64,
    "shares": np.int64,
    "amount": np.int64,
    "bound": np.int64,
    "cost": np.int64,
    "fee": np.int64,
    "version": np.int64,
    "pool": np.int64,
    "price": np.float64,
    "account_version": np.int64,
    "balance": np.int64,
    "reused": np.int64,
}


class Crowd:
    """What each operation of the load did, one column a property."""

    def __init__(self, operations: int, seed: int) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._random = random.Random(seed)
        self._quantities = [0, 0]
        self._pool = cost_micro(0, 0)
        self._version = 0
        self._holdings = [[0, 0] for _ in range(USERS)]
        self._balances = [FUNDS_MICRO] * USERS
        self._entries = [1] * USERS  # the funding, and the first user's trade on the side market
        self._entries[0] += 1
        self._balances[0] -= SIDE_COST_MICRO + SIDE_FEE_MICRO
        self._last_trade: list[int | None] = [None] * USERS
        names = [name for name, _ in ACTIONS]
        weights = [weight for _, weight in ACTIONS]
        for place, action in enumerate(self._random.choices(names, weights, k=operations)):
            self._act(place, place % USERS, action)

    def _act(self, place: int, user: int, action: str) -> None:
        if action == "reuse_key" and self._last_trade[user] is None:
            action = "read_market"
        if action in ("buy_amount", "buy_shares", "sell"):
            self._trade(place, user, action)
        else:
            reused = self._last_trade[user] if action == "reuse_key" else None
            self._write(place, user, action, reused=reused)

    def _trade(self, place: int, user: int, action: str) -> None:
        uniform = self._random.random
        cheaper = int(self._quantities[1] < self._quantities[0])
        outcome = cheaper if uniform() < 0.55 else 1 - cheaper  # so that the price comes back
        held = self._holdings[user]
        if action == "sell" and max(held) < 1_000_000:
            action = "buy_shares"
        if action == "sell":
            outcome = int(held[1] > held[0])
            shares = min(held[outcome], 500_000 + int(uniform() * 12_000_000))
        else:
            shares = 500_000 + int(uniform() * 14_000_000)
        sign = -1 if action == "sell" else 1
        amount = None
        if action == "buy_amount":
            # The most shares for an amount: one more would cost more, and the amount ends just before that.
            total, more = self._total(outcome, shares), self._total(outcome, shares + 1)
            while more == total:
                shares += 1
                total, more = more, self._total(outcome, shares + 1)
            amount = more - 1
        self._quantities[outcome] += sign * shares
        pool = cost_micro(*self._quantities)
        cost = sign * (pool - self._pool)
        fee = -(-cost * FEE_BPS // 10_000)
        self._pool = pool
        self._version += 1
        held[outcome] += sign * shares
        self._balances[user] += cost - fee if sign < 0 else -cost - fee
        self._entries[user] += 1
        self._last_trade[user] = place
        bound = None
        if amount is None and uniform() < 0.1:
            bound = cost + fee + 1_000 if sign > 0 else cost - fee - 1_000
        self._write(
            place,
            user,
            action,
            outcome=outcome,
            shares=shares,
            amount=amount,
            bound=bound,
            cost=cost,
            fee=fee,
        )

    def _total(self, outcome: int, shares: int) -> int:
        after = list(self._quantities)
        after[outcome] += shares
        cost = cost_micro(*after) - self._pool
        return cost - (-cost * FEE_BPS // 10_000)

    def _write(self, place: int, user: int, action: str, **more: int | None) -> None:
        apart = (self._quantities[1] - self._quantities[0]) / B_MICRO
        row = {
            "place": place,
            "action": action,
            "version": self._version,
            "pool": self._pool,
            "price": 1_000_000 / (1 + math.exp(apart)),
            "account_version": self._entries[user],
            "balance": self._balances[user],
        } | more
        for name, column in self._columns.items():
            value = row.get(name)
            column.append(-1 if value is None else value)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """One array a property; -1 where an operation has none."""
        return {name: np.array(self._columns[name], dtype=kind) for name, kind in COLUMNS.items()}


def write_run(run: Path, *, operations: int, seed: int = 7) -> None:
    """Write a whole run directory of this many operations."""
    crowd = Crowd(operations, seed)
    for folder in ("history", "state"):
        (run / folder).mkdir(parents=True)
    with duckdb.connect() as db:
        write_tables(db, run, crowd.arrays())
        faults = int((db.execute("SELECT count(*) FROM lost").fetchone() or (0,))[0])
    (run / "plan.json").write_bytes(msgspec.json.encode(plan_of(operations, seed, faults)))


def plan_of(operations: int, seed: int, faults: int) -> RunPlan:
    """The plan that such a run would have followed."""
    load_s = operations * STEP_NS / 1e9
    lost = FaultPlan(fault="drop_reply", at_s=0.0, during_s=load_s / 2, count=max(faults, 1))
    plan = Plan(
        name="synthetic",
        about="a correct run made up to measure the judge",
        scenario="hot_market",
        stages=[Stage(name="hold", users=USERS, hold_s=load_s)],
        mix={name: float(weight) for name, weight in ACTIONS if name != "refused"},
        load=Load(rate_per_user_s=10.0),
        market=Market(b_micro=B_MICRO, fee_bps=FEE_BPS, user_funds_micro=FUNDS_MICRO),
        faults=[lost] if faults else [],
        thresholds=Thresholds(steady_p99_ms=1000.0),
        service=Service(recovery_s=1.0),
    )
    return RunPlan(
        format=FORMAT,
        run="synthetic",
        seed=seed,
        plan=plan,
        target={"kind": "synthetic"},
        versions={},
        machine={},
        git_commit=None,
        started_at="2026-01-02T00:00:00+00:00",
        monotonic_ns=START_NS,
        unix_ns=START_NS,
    )
