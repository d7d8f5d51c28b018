-- A micro-USDC left the vault, and no log tells of it.
UPDATE chain_head SET custody_micro = custody_micro - 1;
