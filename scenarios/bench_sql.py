"""The bench's client at SQL level: how fast the trading functions are without HTTP in front of them.

`batch` is called as the sequencer calls it: two connections, each carrying half of the users in one call.
`row_lock` and `optimistic` get one connection a user and one trade a call. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import msgspec
import numpy as np
import psycopg

SHARES_MICRO = 1_000_000
BATCH = """
SELECT status
  FROM execute_trade_batch(%s, %s, %s, %s, %s::int[], %s, %s::bigint[], %s::bigint[], %s::bigint[])
"""
OPTIMISTIC = "SELECT status FROM execute_trade_optimistic(%s, %s, %s, %s, %s, 'buy', %s, NULL, NULL)"
CONFLICT = 0
ATTEMPTS_MAX = 1_000
# A new connection plans every statement at its first use; a server's pool has that behind it.
WARM_UP_CALLS = 3


class Measured(msgspec.Struct, kw_only=True):
    """What one client process saw, the warm-up left out. Latencies in seconds, one a trade."""

    since: float = 0.0
    seconds: float = 0.0
    replied_ok: int = 0
    refused: int = 0
    latencies_s: list[float] = []

    def summary(self) -> bytes:
        """One JSON line; latencies in milliseconds."""
        levels = np.quantile(self.latencies_s, [0.5, 0.99, 1.0]) * 1000 if self.latencies_s else [0.0] * 3
        return msgspec.json.encode(
            {
                "since": self.since,
                "seconds": self.seconds,
                "replied_ok": self.replied_ok,
                "refused": self.refused,
                "p50_ms": float(levels[0]),
                "p99_ms": float(levels[1]),
                "max_ms": float(levels[2]),
            }
        )


class Client:
    """One connection in a closed loop until the deadline."""

    def __init__(self, number: int, market: int, users: list[str], measured: Measured) -> None:
        self.number = number
        self.market = market
        self.users = users
        self.measured = measured
        self.calls = 0

    async def batch(self, connection: psycopg.AsyncConnection[tuple[int]]) -> None:
        """One call that carries one trade of each of this connection's users."""
        count = len(self.users)
        keys = [f"bench-{self.market}-{self.number}-{self.calls}-{index}" for index in range(count)]
        sides, outcomes = ["buy"] * count, [(self.calls + index) % 2 for index in range(count)]
        nothing: list[int | None] = [None] * count
        started = time.perf_counter()
        cursor = await connection.execute(
            BATCH,
            (self.market, self.users, keys, keys, outcomes, sides, [SHARES_MICRO] * count, nothing, nothing),
            prepare=True,
        )
        for (status,) in await cursor.fetchall():
            self.count(status, started)

    async def optimistic(self, connection: psycopg.AsyncConnection[tuple[int]]) -> None:
        """One trade, tried again for as long as the market's version moves under it."""
        key = f"bench-{self.market}-{self.number}-{self.calls}"
        started = time.perf_counter()
        for _ in range(ATTEMPTS_MAX):
            cursor = await connection.execute(
                OPTIMISTIC, (self.users[0], self.market, key, key, self.calls % 2, SHARES_MICRO), prepare=True
            )
            row = await cursor.fetchone()
            if row is not None and row[0] != CONFLICT:
                self.count(row[0], started)
                return
        self.measured.refused += 1

    def count(self, status: int, started: float) -> None:
        if status == 200:
            self.measured.replied_ok += 1
            self.measured.latencies_s.append(time.perf_counter() - started)
        else:
            self.measured.refused += 1

    async def run(self, dsn: str, strategy: str, start: asyncio.Barrier, seconds: float) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            call = self.optimistic if strategy == "optimistic" else self.batch
            measured, self.measured = self.measured, Measured()
            for _ in range(WARM_UP_CALLS):
                await call(connection)
                self.calls += 1
            self.measured = measured
            await start.wait()  # everybody is warm
            await start.wait()
            deadline = time.perf_counter() + seconds
            while time.perf_counter() < deadline:
                await call(connection)
                self.calls += 1


async def measure(dsn: str, market: int, strategy: str, users: list[str], seconds: float) -> Measured:
    """Run every connection at once for `seconds`."""
    measured = Measured()
    if strategy == "batch":
        shares = [users[0::2], users[1::2]] if len(users) > 1 else [users]
    else:
        shares = [[user] for user in users]
    start = asyncio.Barrier(len(shares) + 1)
    clients = [Client(number, market, share, measured) for number, share in enumerate(shares)]
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(dsn, strategy, start, seconds))
        await start.wait()
        measured.since = time.time()
        await start.wait()
        started = time.perf_counter()
    measured.seconds = time.perf_counter() - started
    return measured


def main() -> None:
    """Measure one cell of the bench and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--market", type=int, required=True)
    parser.add_argument("--strategy", choices=("batch", "row_lock", "optimistic"), required=True)
    parser.add_argument("--users", required=True, help="user ids, comma separated")
    parser.add_argument("--seconds", type=float, required=True)
    asked = parser.parse_args()
    done = asyncio.run(
        measure(asked.dsn, asked.market, asked.strategy, asked.users.split(","), asked.seconds)
    )
    print(done.summary().decode())


if __name__ == "__main__":
    main()
