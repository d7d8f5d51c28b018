-- A user's balance was below zero between two versions.
UPDATE entries SET balance_after_micro = -1
WHERE account_version = 2
    AND account_id = (SELECT account_id FROM accounts WHERE kind = 'user_available' AND user_id = 'u1');
