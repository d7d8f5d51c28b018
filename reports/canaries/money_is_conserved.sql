-- The treasury holds a micro-USDC that came from nowhere.
UPDATE accounts SET balance_micro = balance_micro + 1 WHERE kind = 'house_treasury';
