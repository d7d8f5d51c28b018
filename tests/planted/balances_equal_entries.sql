-- At a market's closing somebody corrects two balances by hand, without entries.
CREATE FUNCTION correct_by_hand() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    UPDATE accounts SET balance = balance + 7 WHERE kind = 'bond_escrow';
    UPDATE accounts SET balance = balance - 7 WHERE kind = 'external_onchain';
    RETURN NEW;
END
$$;
CREATE TRIGGER planted AFTER UPDATE ON markets FOR EACH ROW
WHEN (OLD.status = 'open' AND NEW.status = 'closed') EXECUTE FUNCTION correct_by_hand();
