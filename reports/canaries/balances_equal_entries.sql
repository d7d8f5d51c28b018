-- A micro-USDC went from one user to another without an entry.
UPDATE accounts SET balance_micro = balance_micro + if(user_id = 'u1', 1, -1)
WHERE kind = 'user_available' AND user_id IN ('u1', 'u2');
