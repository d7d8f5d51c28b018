-- A withdrawal was signed twice, each time under a nonce of its own, and the vault paid both.
INSERT INTO chain_payments
SELECT * REPLACE (block_number + 1 AS block_number, reverse(tx_hash) AS tx_hash) FROM chain_payments
WHERE withdrawal_id IS NOT NULL LIMIT 1;
