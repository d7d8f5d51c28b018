-- Whoever asks to sign a payment may, until it is final: the relay is trusted to ask once.
SELECT pg_temp.patch_function(
    'withdrawal_signed', 'attempts = p_after AND status IN (''reserved'', ''sent'')',
    'attempts = p_after AND status <> ''final'''
);
