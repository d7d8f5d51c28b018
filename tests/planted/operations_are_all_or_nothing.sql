-- The answer is stored under its key with the number of another transaction: the sequence was read too early.
CREATE FUNCTION read_the_sequence_early() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.transaction_id := NEW.transaction_id - 1;
    RETURN NEW;
END
$$;
CREATE TRIGGER planted BEFORE INSERT ON idempotency_keys FOR EACH ROW
WHEN (NEW.transaction_id % 10 = 0) EXECUTE FUNCTION read_the_sequence_early();
