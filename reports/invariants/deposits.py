"""Chain: what came into the vault is in the books once, and only as long as its block is in the chain.

The chain was read when the run had come to rest: no block is mined any more, and what clients sent is deep
enough. What is not deep enough is not judged. Which block a booking rests on is for
reorganised_deposits_are_reversed alone, everything else for deposits_are_credited_once.
"""

from __future__ import annotations

from reports.breaches import finding
from reports.evidence import Evidence
from reports.invariants.registry import Finding, invariant
from reports.money_moved import MOVED

# What never had enough blocks on top: those that a shallow reorganisation of the trial replaced.
SHALLOW = """
SELECT DISTINCT unnest((evidence -> '$.old_hashes')::VARCHAR[]) AS block_hash
FROM faults WHERE fault = 'reorganise' AND state = 'landed'
    AND (evidence ->> '$.depth')::BIGINT <= (evidence ->> '$.confirmations')::BIGINT
"""
# 64 bits, less a reserve: a deposit that makes more than this in all does not fit the books.
BOOKS_MAX_MICRO = 9_000_000_000_000_000_000

BOOKED = """
    SELECT *, tx_hash || ':' || log_index AS log FROM deposits WHERE status NOT IN ('seen', 'reversed')
"""
ON_CHAIN = "SELECT *, tx_hash || ':' || log_index AS log FROM chain_deposits"
DEEP = "SELECT c.* FROM on_chain AS c JOIN chain_head AS h ON c.block_number <= h.number - h.confirmations"


@invariant(group="chain", unit="deposits and bookings")
def deposits_are_credited_once(evidence: Evidence) -> Finding:
    """Each deposit deep in the final chain is booked once, its amount for its owner, and no other one is.

    Its owner is the user whom it names; for another name the books may know whose the sending wallet is, or
    keep it in suspense. It is refused only when it does not fit. Nothing is booked that was not deep enough,
    and each booking is one transaction of that amount from outside, to the owner or into suspense.
    """
    return finding(
        evidence,
        examined=f"""WITH on_chain AS ({ON_CHAIN}) SELECT (SELECT count(*) FROM ({DEEP}))
            + (SELECT count(*) FROM deposits WHERE status <> 'seen')""",
        breaches=f"""
            WITH booked AS ({BOOKED}), on_chain AS ({ON_CHAIN}), moved AS ({MOVED}),
            most AS (
                SELECT coalesce(max(-balance_after_micro), 0) AS books_micro FROM entries
                SEMI JOIN (SELECT account_id FROM accounts WHERE kind = 'external_onchain') USING (account_id)
            ),
            problems AS (
                SELECT log, NULL AS deposit_id, NULL AS transaction_id, 'not booked' AS problem
                FROM ({DEEP}) ANTI JOIN booked USING (log)
                UNION ALL
                SELECT log, max(deposit_id), max(transaction_id), 'booked again' FROM booked
                GROUP BY log HAVING count(*) > 1
                UNION ALL
                SELECT log, deposit_id, transaction_id, 'not in the chain' FROM booked AS b
                ANTI JOIN on_chain USING (log)
                WHERE b.block_hash IN (SELECT hash FROM chain_blocks)
                UNION ALL
                SELECT log, deposit_id, transaction_id, 'booked as another than it is'
                FROM booked AS b JOIN on_chain AS c USING (log)
                WHERE (b.amount_micro, b.sender, b.named_user_id)
                    IS DISTINCT FROM (c.amount_micro, c.sender, coalesce(c.user_id, ''))
                UNION ALL
                SELECT log, deposit_id, transaction_id, 'not for the owner that it names' FROM booked AS b
                SEMI JOIN (SELECT user_id FROM accounts WHERE kind = 'user_available') AS a
                    ON b.named_user_id = a.user_id
                WHERE status <> 'refused' AND b.user_id IS DISTINCT FROM b.named_user_id
                UNION ALL
                SELECT log, deposit_id, transaction_id, 'refused although it fits' FROM booked, most
                WHERE status = 'refused' AND amount_micro <= {BOOKS_MAX_MICRO} - books_micro
                UNION ALL
                SELECT tx_hash || ':' || log_index, deposit_id, transaction_id, 'booked before it was deep'
                FROM deposits SEMI JOIN ({SHALLOW}) USING (block_hash) WHERE status <> 'seen'
                UNION ALL
                {OF_THE_CREDIT}
            )
            SELECT log, deposit_id, transaction_id, list_sort(list(DISTINCT problem)) AS problems
            FROM problems GROUP BY log, deposit_id, transaction_id
        """,
    )


OF_THE_CREDIT = """
    SELECT tx_hash || ':' || log_index, deposit_id, d.transaction_id, 'not the transaction of its credit'
    FROM deposits AS d LEFT JOIN moved AS m USING (transaction_id)
    WHERE CASE WHEN d.status IN ('seen', 'refused') THEN d.transaction_id IS NULL
        -- only booked ones are reversed; those refused before have moved nothing
        WHEN d.status = 'reversed' AND d.user_id IS NULL AND d.transaction_id IS NULL THEN true
        ELSE m.kind = 'deposit' AND m.entries = 2 AND m.outside_micro = -d.amount_micro
            AND (m.suspense_micro = d.amount_micro
                OR (m.user_micro = d.amount_micro AND m.owner = d.user_id AND d.status <> 'suspended'))
        END IS NOT TRUE
    UNION ALL
    SELECT NULL, NULL, transaction_id, 'not the credit of one deposit'
    FROM (SELECT transaction_id FROM transactions WHERE kind = 'deposit')
    LEFT JOIN deposits AS d USING (transaction_id)
    GROUP BY transaction_id HAVING count(d.deposit_id) <> 1
"""


@invariant(group="chain", unit="bookings and receivables")
def reorganised_deposits_are_reversed(evidence: Evidence) -> Finding:
    """A booked deposit is reversed, by exactly its amount, if its block has left the chain, and only then.

    What the user has spent by then is a receivable, part of the amount: what is paid off and what is owed
    make it up, the oldest first. One that was mined again is another booking, of another block; a block may
    come back into the chain, so one that was reversed in a block of the final chain is booked there again.
    """
    return finding(
        evidence,
        examined="""SELECT (SELECT count(*) FROM deposits WHERE status <> 'seen')
            + (SELECT count(*) FROM receivables)""",
        breaches=f"""
            WITH moved AS ({MOVED}),
            problems AS ({OF_BLOCKS} UNION ALL {OF_REVERSALS} UNION ALL {OF_RECEIVABLES})
            SELECT deposit_id, receivable_id, user_id, transaction_id, problem FROM problems
        """,
    )


OF_BLOCKS = """
    SELECT deposit_id, NULL AS receivable_id, d.user_id, d.transaction_id,
        'not reversed, and its block is not in the chain' AS problem
    FROM deposits AS d JOIN chain_head AS h ON d.block_number >= h.from_block
    ANTI JOIN chain_blocks AS b ON d.block_number = b.number AND d.block_hash = b.hash
    WHERE d.status NOT IN ('seen', 'reversed')
    UNION ALL
    SELECT deposit_id, NULL, r.user_id, r.transaction_id, 'reversed, and its block is in the chain'
    FROM deposits AS r SEMI JOIN chain_blocks AS b ON r.block_number = b.number AND r.block_hash = b.hash
    ANTI JOIN deposits AS d ON (d.tx_hash, d.log_index, d.block_hash) = (r.tx_hash, r.log_index, r.block_hash)
        AND d.status NOT IN ('seen', 'reversed')
    WHERE r.status = 'reversed'
"""
# A deposit is marked as reversed just before its money is moved, and those of one owner one after another: so
# a transaction is of the one that was marked last.
OF_REVERSALS = """
    SELECT r.deposit_id, NULL, r.user_id, max(m.transaction_id), 'not reversed by its amount'
    FROM (
        SELECT *, coalesce(user_id, '') AS holder FROM deposits
        WHERE status = 'reversed' AND transaction_id IS NOT NULL
    ) AS r
    LEFT JOIN (
        SELECT m.*, deposit_id
        FROM (SELECT *, coalesce(user_id, '') AS holder FROM moved WHERE kind = 'reverse_deposit') AS m
        ASOF JOIN (
            SELECT deposit_id, coalesce(user_id, '') AS holder, reversed_at FROM deposits
            WHERE status = 'reversed' AND transaction_id IS NOT NULL
        ) AS n ON m.holder = n.holder AND m.created_at >= n.reversed_at
    ) AS m USING (deposit_id)
    GROUP BY r.deposit_id, r.user_id, r.amount_micro
    HAVING coalesce(sum(m.outside_micro), 0) <> r.amount_micro
        OR sum(if(r.user_id IS NULL, m.suspense_micro, m.user_micro + m.owed_micro)) <> -r.amount_micro
        OR bool_or(m.owner <> r.user_id)
    UNION ALL
    SELECT NULL, NULL, m.user_id, m.transaction_id, 'reverses nothing'
    FROM (SELECT *, coalesce(user_id, '') AS holder FROM moved WHERE kind = 'reverse_deposit') AS m
    ASOF LEFT JOIN (
        SELECT deposit_id, coalesce(user_id, '') AS holder, reversed_at FROM deposits
        WHERE status = 'reversed' AND transaction_id IS NOT NULL
    ) AS n ON m.holder = n.holder AND m.created_at >= n.reversed_at
    WHERE n.deposit_id IS NULL
"""
OF_RECEIVABLES = """
    SELECT NULL, receivable_id, r.user_id, transaction_id, 'not what its transaction made the user owe'
    FROM receivables AS r LEFT JOIN moved AS m USING (transaction_id)
    WHERE ((m.kind IN ('reverse_deposit', 'withdraw_final')) AND m.user_id = r.user_id
        AND m.owed_micro = -r.amount_micro AND m.outside_micro = r.amount_micro) IS NOT TRUE
    UNION ALL
    SELECT NULL, NULL, m.user_id, transaction_id, 'owed without a receivable'
    FROM moved AS m ANTI JOIN receivables USING (transaction_id) WHERE m.owed_micro < 0
    UNION ALL
    SELECT NULL, max(receivable_id), any_value(user_id), transaction_id, 'owed twice'
    FROM receivables GROUP BY transaction_id HAVING count(*) > 1
    UNION ALL
    SELECT NULL, NULL, user_id, NULL, 'owed and paid off is not the amount'
    FROM (
        SELECT user_id, amount_micro - owed_micro AS paid_micro FROM receivables
        UNION ALL
        SELECT user_id, if(owner = user_id, user_micro, 0) FROM moved WHERE kind = 'settle_receivable'
    )
    GROUP BY user_id HAVING sum(paid_micro) <> 0
    UNION ALL
    SELECT NULL, receivable_id, user_id, transaction_id, 'paid off before an older one'
    FROM (
        SELECT *, sum(owed_micro) OVER (PARTITION BY user_id ORDER BY receivable_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS older_micro
        FROM receivables
    )
    WHERE owed_micro NOT BETWEEN 0 AND amount_micro OR (owed_micro < amount_micro AND older_micro > 0)
"""
