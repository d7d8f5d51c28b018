-- Housekeeping after a market's closing removes an account it takes for unused: the outside world.
CREATE FUNCTION clean_up_accounts() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    DELETE FROM accounts WHERE kind = 'external_onchain';
    RETURN NEW;
END
$$;
CREATE TRIGGER planted AFTER UPDATE ON markets FOR EACH ROW
WHEN (OLD.status = 'open' AND NEW.status = 'closed') EXECUTE FUNCTION clean_up_accounts();
