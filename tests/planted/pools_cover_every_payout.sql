-- Closing a market sweeps its pool into the treasury before anybody has been paid out.
CREATE FUNCTION sweep_the_pool() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM record_ledger_entry(NEW.pool_account, 2, NEW.liquidity_pool, 'sweep');
    RETURN null;
END
$$;
CREATE TRIGGER planted AFTER UPDATE ON markets FOR EACH ROW
WHEN (OLD.status = 'open' AND NEW.status = 'closed') EXECUTE FUNCTION sweep_the_pool();
