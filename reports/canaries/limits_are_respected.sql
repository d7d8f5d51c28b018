-- A buy cost more than its limit.
UPDATE trades SET limit_micro = 1 WHERE side = 'buy' AND limit_micro IS NOT NULL;
UPDATE attempts SET limit_micro = 1 WHERE side = 'buy' AND limit_micro IS NOT NULL;
UPDATE operations SET limit_micro = 1 WHERE side = 'buy' AND limit_micro IS NOT NULL;
