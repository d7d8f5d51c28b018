-- The pause is for trading alone: traders are turned back, and what the chain does is booked.
SELECT pg_temp.patch_function('record_ledger_entry', 'IF NOT pass_pause_gate() THEN', 'IF false THEN');
SELECT pg_temp.patch_function('record_payments', 'IF NOT pass_pause_gate() THEN', 'IF false THEN');
SELECT pg_temp.patch_function('record_deposits', 'IF NOT pass_pause_gate() THEN', 'IF false THEN');
