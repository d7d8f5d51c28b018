-- The house bears what is reorganised away: the treasury pays it back, and the user keeps the money.
SELECT pg_temp.patch_function(
    'take_back', 'v_account bigint := user_account(p_user_id);', 'v_account bigint := 2;'
);
