-- An entry states another balance than the one before it and its amount give.
UPDATE entries SET balance_after_micro = balance_after_micro + 1
WHERE account_version = 2
    AND account_id = (SELECT account_id FROM accounts WHERE kind = 'user_available' AND user_id = 'u1');
