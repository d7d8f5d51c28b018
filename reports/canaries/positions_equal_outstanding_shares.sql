-- A user holds a micro-share that the market does not know of.
UPDATE positions SET shares_micro = shares_micro + 1 WHERE market_id = 1 AND user_id = 'u1' AND outcome = 0;
