-- A write-behind cache puts a market's row back as it was before the closing that was acknowledged.
ALTER TABLE markets DROP CONSTRAINT closed_at_a_version;

CREATE FUNCTION write_the_old_row_back() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE markets SET version = OLD.version, closed_version = null WHERE market_id = OLD.market_id;
    RETURN null;
END
$$;
CREATE TRIGGER planted AFTER UPDATE ON markets FOR EACH ROW
WHEN (OLD.status = 'open' AND NEW.status = 'closed') EXECUTE FUNCTION write_the_old_row_back();
