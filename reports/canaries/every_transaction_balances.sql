-- One entry credits a micro-USDC that nobody was debited.
UPDATE entries SET credit_micro = credit_micro + 1
WHERE entry_id = (SELECT max(entry_id) FROM entries WHERE credit_micro > 0);
