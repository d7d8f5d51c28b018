-- The prices of a market add up to a micro-USDC more than one USDC.
UPDATE prices SET prices_micro = [prices_micro[1] + 1, prices_micro[2]]
WHERE market_id = 1 AND market_version = 1;
