-- At a market's closing its pool column is rounded to the next cent; the money stays where it is.
CREATE FUNCTION round_the_pool() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.liquidity_pool := NEW.liquidity_pool / 10000 * 10000 + 10000;
    RETURN NEW;
END
$$;
CREATE TRIGGER planted BEFORE UPDATE ON markets FOR EACH ROW
WHEN (OLD.status = 'open' AND NEW.status = 'closed') EXECUTE FUNCTION round_the_pool();
