"""The drift that the trial itself planted (the fault plant_drift), from the evidence of its faults.

Three kinds: `plus` and `minus`, money in the vault that the books cannot know of, or gone from it, from one
block on until before another; `pair`, two balances of the books wrong by the same amount up and down, from
one instant on until another. Putting it in took from `from_at` to `by_at`, taking it out from
`removed_from_at` to `removed_by_at`, by the wall clock. Not `healed`: nobody knows whether, or when, it was
taken out.
"""

from __future__ import annotations

# Instants are widened by the part of a microsecond that the books do not have.
PLANTED = """
SELECT fault_id, any_value(evidence ->> '$.kind') AS kind, bool_or(state = 'healed') AS healed,
    coalesce(max((evidence ->> '$.drift_micro')::BIGINT), 0) AS drift_micro,
    coalesce(max((evidence ->> '$.account_drift_micro')::BIGINT), 0) AS account_drift_micro,
    max((evidence ->> '$.critical_micro')::BIGINT) AS critical_micro,
    min((evidence ->> '$.from_block')::BIGINT) AS from_block,
    max((evidence ->> '$.to_block')::BIGINT) AS to_block,
    make_timestamp(min((evidence ->> '$.from_unix_ns')::BIGINT) // 1000) AS from_at,
    make_timestamp(max((evidence ->> '$.by_unix_ns')::BIGINT) // 1000 + 1) AS by_at,
    make_timestamp(min((evidence ->> '$.removed_from_unix_ns')::BIGINT) // 1000) AS removed_from_at,
    make_timestamp(max((evidence ->> '$.removed_by_unix_ns')::BIGINT) // 1000 + 1) AS removed_by_at
FROM faults WHERE fault = 'plant_drift'
GROUP BY fault_id HAVING any_value(evidence ->> '$.kind') IS NOT NULL
"""

# Under which the vault paid the operator for a drift; where taking it out was not recorded, by what it was.
PLANTED_WORDS = f"""
SELECT unnest((evidence -> '$.words')::VARCHAR[]) AS word
FROM faults WHERE fault = 'plant_drift' AND (evidence -> '$.words') IS NOT NULL
UNION
SELECT p.word FROM chain_payments AS p JOIN chain_head AS h ON p.receiver = h.operator
JOIN ({PLANTED}) AS d ON NOT d.healed AND p.amount_micro = d.drift_micro
WHERE p.withdrawal_id IS NULL
"""
