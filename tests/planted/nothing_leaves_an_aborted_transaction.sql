-- Large payments need a second signature, which is missing when the transaction that signs is committed.
CREATE FUNCTION demand_a_second_signature() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF (SELECT amount FROM withdrawals WHERE withdrawal_id = NEW.withdrawal_id) > 5000000 THEN
        RAISE EXCEPTION 'a second signature is missing';
    END IF;
    RETURN null;
END
$$;
CREATE CONSTRAINT TRIGGER planted AFTER INSERT ON withdrawal_attempts DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION demand_a_second_signature();
