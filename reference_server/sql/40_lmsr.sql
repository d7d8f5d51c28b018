-- The LMSR market maker in integers: what any quantities cost, pure functions of their arguments.
--
--     Cint(q) = max(q) + ceil(b * ln(sum_i exp((q_i - max(q)) / b)))        micro-USDC
--
-- q in micro-shares, b in micro-shares. docs/lmsr.md has the bounds and what float8 can and cannot promise.
-- Source: Hanson, Logarithmic market scoring rules for modular combinatorial information aggregation, 2007.

-- The largest quantity of an outcome, and of one trade: far inside the 2^53 that float8 holds exactly.
CREATE FUNCTION lmsr_quantity_max() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1000000000000000;

-- What the pool of a market with these quantities holds, micro-USDC.
CREATE FUNCTION lmsr_cost(p_quantities bigint[], p_b bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    v_max bigint;
    v_sum float8 := 0;
    v_quantity bigint;
BEGIN
    -- The same value as the loop below, bit for bit: one of two exponents is 0, and addition commutes.
    IF array_length(p_quantities, 1) = 2 THEN
        RETURN greatest(p_quantities[1], p_quantities[2]) + ceil(p_b * ln(
            1 + exp(greatest(abs(p_quantities[1] - p_quantities[2]) / (-p_b)::float8, -700))
        ))::bigint;
    END IF;
    FOREACH v_quantity IN ARRAY p_quantities LOOP
        IF v_max IS null OR v_quantity > v_max THEN
            v_max := v_quantity;
        END IF;
    END LOOP;
    FOREACH v_quantity IN ARRAY p_quantities LOOP
        -- below -700 exp() would underflow, which PostgreSQL raises as an error
        v_sum := v_sum + exp(greatest((v_quantity - v_max) / p_b::float8, -700));
    END LOOP;
    RETURN v_max + ceil(p_b * ln(v_sum))::bigint;
END
$$;

-- Prices of all outcomes, micro-USDC a share: the softmax of q / b, rounded by largest remainder (ties: the
-- lower outcome first), so that they sum to exactly 1,000,000.
CREATE FUNCTION lmsr_prices(p_quantities bigint[], p_b bigint) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    v_count int := array_length(p_quantities, 1);
    v_max bigint;
    v_sum float8 := 0;
    v_quantity bigint;
    v_weights float8[] := array_fill(0, ARRAY[v_count]);
    v_prices bigint[] := array_fill(0, ARRAY[v_count]);
    v_rest bigint := 1000000;
    v_best int;
BEGIN
    FOREACH v_quantity IN ARRAY p_quantities LOOP
        IF v_max IS null OR v_quantity > v_max THEN
            v_max := v_quantity;
        END IF;
    END LOOP;
    FOR i IN 1 .. v_count LOOP
        v_weights[i] := exp(greatest((p_quantities[i] - v_max) / p_b::float8, -700));
        v_sum := v_sum + v_weights[i];
    END LOOP;
    FOR i IN 1 .. v_count LOOP
        v_weights[i] := v_weights[i] * 1000000 / v_sum;
        v_prices[i] := floor(v_weights[i]);
        v_weights[i] := v_weights[i] - v_prices[i];
        v_rest := v_rest - v_prices[i];
    END LOOP;
    -- fewer than v_count are left over, so each outcome gets at most one
    FOR j IN 1 .. v_rest LOOP
        v_best := 1;
        FOR i IN 2 .. v_count LOOP
            IF v_weights[i] > v_weights[v_best] THEN
                v_best := i;
            END IF;
        END LOOP;
        v_prices[v_best] := v_prices[v_best] + 1;
        v_weights[v_best] := -1;
    END LOOP;
    RETURN v_prices;
END
$$;

-- About how many shares of one outcome (1-based) p_cost buys: b * ln(1 + (exp(cost / b) - 1) / price), where
-- Kahan's quotients keep the digits that exp(x) - 1 and ln(1 + y) lose for small x and y. Never an error.
CREATE FUNCTION lmsr_shares_near(
    p_quantities bigint[], p_b bigint, p_pool bigint, p_outcome int, p_cost bigint
)
RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    v_most bigint := p_pool + p_cost - p_quantities[p_outcome];
    v_max bigint;
    v_sum float8 := 0;
    v_quantity bigint;
    v_behind float8;   -- how far the outcome is behind the leading one, in units of b
    v_x float8;
    v_y float8;
BEGIN
    FOREACH v_quantity IN ARRAY p_quantities LOOP
        IF v_max IS null OR v_quantity > v_max THEN
            v_max := v_quantity;
        END IF;
    END LOOP;
    FOREACH v_quantity IN ARRAY p_quantities LOOP
        v_sum := v_sum + exp(greatest((v_quantity - v_max) / p_b::float8, -700));
    END LOOP;
    -- the pool is rounded up: what it holds beyond the exact cost is spent as well
    v_x := (p_cost + ((p_pool - v_max) - p_b * ln(v_sum))) / p_b;
    IF v_x > 30 THEN
        RETURN v_most;
    END IF;
    v_x := greatest(v_x, 1e-300);
    v_y := exp(v_x);
    v_y := CASE WHEN v_y = 1 THEN v_x ELSE (v_y - 1) * v_x / ln(v_y) END;
    v_y := v_y * v_sum;
    v_behind := (v_max - p_quantities[p_outcome]) / p_b::float8;
    IF v_behind > 600 THEN
        -- exp() would overflow; ln(1 + y) is ln(y) out there
        v_y := v_behind + ln(v_y);
    ELSE
        v_y := v_y * exp(v_behind);
        v_x := 1 + v_y;
        v_y := CASE WHEN v_x = 1 THEN v_y ELSE ln(v_x) * v_y / (v_x - 1) END;
    END IF;
    RETURN least(greatest(floor(p_b * v_y), 0), v_most);
END
$$;

-- The largest number of shares of one outcome (1-based) that costs at most p_cost (at least 1): the cost of
-- one more is above it. Found by steps of growing size from a good guess, then by bisection; only lmsr_cost
-- decides. Bounds: a share count of pool + cost - q + 1 costs more, since Cint(q) >= max(q).
CREATE FUNCTION lmsr_shares_for(
    p_quantities bigint[], p_b bigint, p_pool bigint, p_outcome int, p_cost bigint
)
RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    v_quantity bigint := p_quantities[p_outcome];
    v_target bigint := p_pool + p_cost;
    v_low bigint := 0;                            -- affordable
    v_high bigint := v_target - v_quantity + 1;   -- not affordable
    v_try bigint := lmsr_shares_near(p_quantities, p_b, p_pool, p_outcome, p_cost);
    v_step bigint := 1;
BEGIN
    -- at most 52 steps that grow and 51 that halve reach any count below 2^51
    FOR i IN 1 .. 110 LOOP
        EXIT WHEN v_high - v_low <= 1;
        IF v_try <= v_low OR v_try >= v_high THEN
            v_try := v_low + (v_high - v_low) / 2;
        END IF;
        p_quantities[p_outcome] := v_quantity + v_try;
        IF lmsr_cost(p_quantities, p_b) <= v_target THEN
            v_low := v_try;
            v_try := v_try + v_step;
        ELSE
            v_high := v_try;
            v_try := v_try - v_step;
        END IF;
        v_step := least(v_step * 2, lmsr_quantity_max());
    END LOOP;
    RETURN v_low;
END
$$;
