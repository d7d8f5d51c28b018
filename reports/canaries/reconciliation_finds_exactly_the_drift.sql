-- The reconciliation found a micro-USDC less than was planted.
UPDATE reconciliations
SET difference_micro = difference_micro - 1, custody_micro = custody_micro - 1, drift_micro = drift_micro - 1
WHERE difference_micro > 0;
