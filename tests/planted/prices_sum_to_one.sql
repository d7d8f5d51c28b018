-- Each price is rounded up by itself, and nobody looks at their sum.
CREATE OR REPLACE FUNCTION lmsr_prices(p_quantities bigint[], p_b bigint) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    v_max bigint := (SELECT max(q) FROM unnest(p_quantities) AS q);
    v_sum float8 := (SELECT sum(exp(greatest((q - v_max) / p_b::float8, -700))) FROM unnest(p_quantities) AS q);
BEGIN
    RETURN ARRAY(
        SELECT ceil(1000000 * exp(greatest((u.q - v_max) / p_b::float8, -700)) / v_sum)::bigint
        FROM unnest(p_quantities) WITH ORDINALITY AS u (q, n)
        ORDER BY u.n
    );
END
$$;
