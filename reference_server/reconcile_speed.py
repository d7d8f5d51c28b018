"""How fast the reconciliation is: over a million entries, after one more, and when nothing has changed.

    python -m reference_server.reconcile_speed --dsn DSN [--entries 1000000] [--users 10000]

DSN is the owner of a database in which the schema is installed and nobody has moved money; the entries stay
in it. A time is that of the command's transaction and report, connection made. Targets: the full run 5 s, the
run when nothing has changed 50 ms, each the worst of its repetitions; exit 1 when one is missed, 2 on usage.
"""

from __future__ import annotations

import argparse
import sys
import time

import psycopg

from reference_server.custody import Connection, Custody
from reference_server.reconcile import Reading, only, reconcile_on

TARGET_FULL_S = 5.0
TARGET_UNCHANGED_S = 0.05
REPETITIONS = 5
ENTRIES_PER_STATEMENT = 100_000

USERS = """
WITH made AS (
    INSERT INTO users (user_id, name) SELECT 'speed-' || n, 'Speed' FROM generate_series(1, %s) AS n
    RETURNING user_id
)
INSERT INTO accounts (kind, user_id)
SELECT kind, user_id FROM made CROSS JOIN unnest(ARRAY['user_available', 'user_reserved']) AS kind"""
# From outside to the users in turn: half of the entries are one account's, as in a hot market.
ACCOUNTS = """
UPDATE accounts AS a SET balance = a.balance + n.gain, version = a.version + n.entries
FROM (
    SELECT
        g.account_id,
        sum(g.gain) AS gain,
        count(*) AS entries
    FROM moves AS m
    CROSS JOIN LATERAL (VALUES (1::bigint, -m.amount), (m.account_id, m.amount)) AS g (account_id, gain)
    GROUP BY g.account_id
) AS n
WHERE a.account_id = n.account_id"""
ENTRIES = """
INSERT INTO ledger_entries (
    transaction_id, account_id, account_version, user_id, kind, debit, credit, balance_after, created_at
)
SELECT
    m.transaction_id, g.account_id, g.version - count(*) OVER later, g.user_id, 'fund',
    greatest(-g.gain, 0), greatest(g.gain, 0), g.balance - coalesce(sum(g.gain) OVER later, 0), now()
FROM moves AS m
CROSS JOIN LATERAL (
    SELECT a.account_id, a.version, a.balance, a.user_id,
        CASE a.account_id WHEN 1 THEN -m.amount ELSE m.amount END AS gain
    FROM accounts AS a WHERE a.account_id IN (1, m.account_id)
) AS g
WINDOW later AS (
    PARTITION BY g.account_id ORDER BY m.n ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
)"""


def main() -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m reference_server.reconcile_speed", description=__doc__)
    parser.add_argument("--dsn", required=True, help="owner of a database with the schema and no money")
    parser.add_argument("--entries", type=int, default=1_000_000, help="how many (default: %(default)s)")
    parser.add_argument("--users", type=int, default=10_000, help="of how many users (default: %(default)s)")
    options = parser.parse_args()
    with psycopg.connect(options.dsn, autocommit=True, connect_timeout=10) as connection:
        if only(connection, "SELECT count(*) FROM ledger_entries"):
            print("reconcile_speed: money has moved in this database; give a new one", file=sys.stderr)
            return 2
        books_micro = fill(connection, entries=options.entries, users=options.users)
        connection.execute("VACUUM ANALYZE")
        custody = Custody(books_micro, 1)
        print(f"{'run':<22} {'accounts':>9} {'entries':>10} {'worst s':>8} {'best s':>8}")
        full_s = measure(connection, "full", custody, Reading(full=True))
        unchanged_s = measure(connection, "nothing changed", custody, Reading())
        connection.execute("SELECT record_ledger_entry(1, max(account_id), 1, 'fund') FROM accounts")
        measure(connection, "one transaction more", Custody(books_micro + 1, 2), Reading())
    print(f"targets: full {TARGET_FULL_S:g} s, nothing changed {TARGET_UNCHANGED_S:g} s")
    return 0 if full_s <= TARGET_FULL_S and unchanged_s <= TARGET_UNCHANGED_S else 1


def measure(connection: Connection, name: str, custody: Custody, how: Reading) -> float:
    """Reconcile several times and print the worst and the best; the worst, in seconds."""
    times_s = []
    for _ in range(REPETITIONS):
        started_s = time.perf_counter()
        report = reconcile_on(connection, custody, how)
        times_s.append(time.perf_counter() - started_s)
        assert report["verdict"] == "clean", report
    print(
        f"{name:<22} {report['accounts']:9,} {report['entries_read']:10,} "
        f"{max(times_s):8.3f} {min(times_s):8.3f}",
        flush=True,
    )
    return max(times_s)


def fill(connection: Connection, *, entries: int, users: int) -> int:
    """Write so many entries, half of them the users' in turn; the micro-USDC they brought."""
    connection.execute(USERS, [users])
    total = 0
    for first in range(0, entries // 2, ENTRIES_PER_STATEMENT // 2):
        last = min(first + ENTRIES_PER_STATEMENT // 2, entries // 2) - 1
        with connection.transaction():
            connection.execute(
                """CREATE TEMP TABLE moves ON COMMIT DROP AS
                   SELECT n, a.account_id, 1 + n %% 1000 AS amount,
                          nextval('transactions_transaction_id_seq') AS transaction_id
                     FROM generate_series(%s::bigint, %s::bigint) AS n
                     JOIN accounts AS a
                       ON a.user_id = 'speed-' || (1 + n %% %s) AND a.kind = 'user_available'""",
                [first, last, users],
            )
            connection.execute(
                "INSERT INTO transactions (transaction_id, kind) SELECT transaction_id, 'fund' FROM moves"
            )
            connection.execute("ANALYZE moves")
            connection.execute(ACCOUNTS)
            connection.execute(ENTRIES)
            total += int(only(connection, "SELECT sum(amount) FROM moves"))
    return total


if __name__ == "__main__":
    sys.exit(main())
