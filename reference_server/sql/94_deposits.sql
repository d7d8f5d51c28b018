-- Deposits: the vault's events as the watcher read them, and the money that each is worth in the books.
--
-- One row a deposit in one place of one block. It is `seen` while its block is not deep enough: no money has
-- moved. Then it is `credited` to its owner, `suspended` when nobody knows the owner, or `refused` when it is
-- more than the books can hold; and `reversed` when its block has left the chain afterwards. A transaction
-- that comes back in another block is another row: at most one of a (transaction, log index) is not reversed.
--
-- The cursor is the newest checkpoint: everything up to that block is in the books, written with it in one
-- transaction (record_deposits). A checkpoint whose hash is no longer the chain's tells of a reorganisation.
--
-- A reversal takes the money back from the user. What the user has spent is owed: a receivable, one row each,
-- together the account suspense_receivable. The user goes on trading; the next deposits pay it off first, and
-- so much of the balance cannot be withdrawn.
--
-- Lock order: the pause gate, watched_chain, accounts by id, the outbox.

CREATE TABLE watched_chain (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    chain_id bigint NOT NULL,
    vault text NOT NULL CHECK (vault ~ '^0x[0-9a-f]{40}$'),
    head_number bigint NOT NULL,
    head_hash text NOT NULL,
    looked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON COLUMN watched_chain.head_number
IS 'The chain''s newest block when it was last looked at: rows `seen` and `mined` are of this view.';
COMMENT ON COLUMN watched_chain.looked_at
IS 'When that was; -infinity: it was not looked at since the watch began.';

CREATE TABLE chain_checkpoints (
    block_number bigint PRIMARY KEY CHECK (block_number >= 0),
    block_hash text NOT NULL CHECK (block_hash ~ '^0x[0-9a-f]{64}$'),
    passed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE deposits (
    deposit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tx_hash text NOT NULL CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    log_index int NOT NULL CHECK (log_index >= 0),
    block_number bigint NOT NULL CHECK (block_number >= 0),
    block_hash text NOT NULL CHECK (block_hash ~ '^0x[0-9a-f]{64}$'),
    sender text NOT NULL CHECK (sender ~ '^0x[0-9a-f]{40}$'),
    named_user_id text NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    status text NOT NULL CHECK (status IN ('seen', 'credited', 'suspended', 'refused', 'reversed')),
    user_id text REFERENCES users,
    transaction_id bigint,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    booked_at timestamptz,
    reversed_at timestamptz
);

COMMENT ON COLUMN deposits.named_user_id IS 'Whom the event names; perhaps nobody of ours.';
COMMENT ON COLUMN deposits.user_id IS 'Who got it.';
COMMENT ON COLUMN deposits.transaction_id IS 'Of the credit; its reversal is another transaction.';

CREATE UNIQUE INDEX deposits_once ON deposits (tx_hash, log_index) WHERE status <> 'reversed';
CREATE INDEX deposits_block ON deposits (block_number) WHERE status <> 'reversed';
CREATE INDEX deposits_not_booked ON deposits (deposit_id) WHERE status IN ('seen', 'refused');

CREATE TABLE receivables (
    receivable_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id text NOT NULL REFERENCES users,
    transaction_id bigint NOT NULL,
    cause text NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    owed bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT owed_is_a_part CHECK (owed BETWEEN 0 AND amount)
);

CREATE INDEX receivables_open ON receivables (user_id, receivable_id) WHERE owed > 0;

-- Whose deposit this is: the user whom the event names, else the owner of the sending wallet, else nobody's.
CREATE FUNCTION deposit_owner(p_named_user_id text, p_sender text) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT o.user_id
    FROM (
        SELECT
            u.user_id,
            1 AS preference
        FROM users AS u
        WHERE u.user_id = p_named_user_id AND u.role = 'user'
        UNION ALL
        SELECT
            w.user_id,
            2 AS preference
        FROM wallets AS w
        WHERE w.address = p_sender
    ) AS o
    ORDER BY o.preference
    LIMIT 1;
END;

-- What a user owes, in micro-USDC.
CREATE FUNCTION user_debt(p_user_id text) RETURNS bigint
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT coalesce(sum(r.owed), 0)::bigint AS debt
    FROM receivables AS r
    WHERE r.user_id = p_user_id AND r.owed > 0;
END;

-- Take p_amount, which is not in custody any more, from a user; what is not there is owed. The caller holds
-- the accounts 1, 7 and the user's. Returns the receivable's id, null when nothing is owed.
CREATE FUNCTION take_back(p_user_id text, p_amount bigint, p_kind text, p_cause text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_account bigint := user_account(p_user_id);
    v_there bigint;
    v_receivable_id bigint;
BEGIN
    SELECT least(balance, p_amount) INTO STRICT v_there FROM accounts WHERE account_id = v_account;
    IF v_there > 0 THEN
        PERFORM record_ledger_entry(v_account, 1, v_there, p_kind, p_user_id);
    END IF;
    IF v_there < p_amount THEN
        INSERT INTO receivables (user_id, transaction_id, cause, amount, owed)
        VALUES (
            p_user_id, record_ledger_entry(7, 1, p_amount - v_there, p_kind, p_user_id), p_cause,
            p_amount - v_there, p_amount - v_there
        )
        RETURNING receivable_id INTO v_receivable_id;
    END IF;
    RETURN v_receivable_id;
END
$$;

-- Pay off what a user owes, oldest first, from at most p_amount of the available balance.
CREATE FUNCTION settle_receivables(p_user_id text, p_amount bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_left bigint := least(p_amount, user_debt(p_user_id));
    v_receivable receivables;
BEGIN
    IF v_left > 0 THEN
        PERFORM record_ledger_entry(user_account(p_user_id), 7, v_left, 'settle_receivable', p_user_id);
    END IF;
    FOR v_receivable IN
        SELECT * FROM receivables WHERE user_id = p_user_id AND owed > 0 ORDER BY receivable_id
    LOOP
        UPDATE receivables SET owed = owed - least(owed, v_left)
        WHERE receivable_id = v_receivable.receivable_id;
        v_left := v_left - least(v_receivable.owed, v_left);
    END LOOP;
END
$$;

-- Alerts of receivables that are still open; each is an aggregate of its own.
CREATE FUNCTION receivable_alerts(p_ids bigint[]) RETURNS SETOF event_draft
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        row(
            'receivable',
            r.receivable_id::text,
            'alert.receivable',
            jsonb_build_object(
                'title', 'A user owes ' || r.owed || ' micro-USDC: ' || r.cause,
                'user_id', r.user_id,
                'owed_micro', r.owed,
                'cause', r.cause
            ),
            'receivable:' || r.receivable_id
        )::event_draft AS alert
    FROM receivables AS r
    WHERE r.receivable_id = any(p_ids) AND r.owed > 0
    ORDER BY r.receivable_id;
END;

-- What its owner is told of a deposit that was credited.
CREATE FUNCTION credit_notice(p_deposit deposits) RETURNS event_draft
LANGUAGE sql STABLE
RETURN draft_notice(
    (p_deposit).user_id,
    'notice.deposit_credited',
    'Deposit of ' || usdc_text((p_deposit).amount) || ' credited to ' || (p_deposit).user_id,
    'It came from ' || (p_deposit).sender || ' in transaction ' || (p_deposit).tx_hash || '.',
    (p_deposit).amount,
    jsonb_build_object('deposit_id', (p_deposit).deposit_id, 'tx_hash', (p_deposit).tx_hash),
    'notice:' || (p_deposit).transaction_id
);

-- What its owner is told of a deposit that was reversed.
CREATE FUNCTION reversal_notice(p_deposit deposits) RETURNS event_draft
LANGUAGE sql STABLE
RETURN draft_notice(
    (p_deposit).user_id,
    'notice.deposit_reversed',
    'Deposit of ' || usdc_text((p_deposit).amount) || ' taken back from ' || (p_deposit).user_id,
    'Its transaction ' || (p_deposit).tx_hash || ' has left the chain. What was spent of it is owed.',
    (p_deposit).amount,
    jsonb_build_object('deposit_id', (p_deposit).deposit_id, 'tx_hash', (p_deposit).tx_hash),
    'notice:reversed:' || (p_deposit).deposit_id
);

-- What people are told of a deposit whose owner is not known or that is more than the books can hold.
CREATE FUNCTION deposit_alert(p_deposit deposits) RETURNS event_draft
LANGUAGE sql STABLE
RETURN row(
    'deposit',
    (p_deposit).deposit_id::text,
    'alert.deposit_' || (p_deposit).status,
    jsonb_build_object(
        'title', CASE (p_deposit).status
            WHEN 'suspended' THEN 'A deposit of nobody known is in suspense'
            ELSE 'A deposit is more than the books can hold'
        END,
        'deposit_id', (p_deposit).deposit_id,
        'tx_hash', (p_deposit).tx_hash,
        'sender', (p_deposit).sender,
        'amount_micro', (p_deposit).amount
    ),
    'deposit:' || (p_deposit).deposit_id
)::event_draft;

-- Book one deposit that is deep enough. The caller holds the accounts. Returns what is to be told of it;
-- null, having done nothing, when it is booked.
CREATE FUNCTION credit_deposit(p_deposit deposits) RETURNS event_draft
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_deposit deposits;
    v_owner text := deposit_owner(p_deposit.named_user_id, p_deposit.sender);
    v_status text := CASE WHEN v_owner IS null THEN 'suspended' ELSE 'credited' END;
BEGIN
    IF (SELECT balance FROM accounts WHERE account_id = 1) < p_deposit.amount - 9000000000000000000 THEN
        v_status := 'refused';
        v_owner := null;
    END IF;
    INSERT INTO deposits (
        tx_hash, log_index, block_number, block_hash, sender, named_user_id, amount, status, user_id, booked_at
    )
    VALUES (
        p_deposit.tx_hash, p_deposit.log_index, p_deposit.block_number, p_deposit.block_hash,
        p_deposit.sender, p_deposit.named_user_id, p_deposit.amount, v_status, v_owner, clock_timestamp()
    )
    ON CONFLICT (tx_hash, log_index) WHERE status <> 'reversed' DO UPDATE
    SET
        block_number = excluded.block_number, block_hash = excluded.block_hash, status = excluded.status,
        user_id = excluded.user_id, booked_at = excluded.booked_at
    WHERE deposits.status = 'seen'
    RETURNING * INTO v_deposit;
    IF NOT FOUND THEN
        RETURN null;
    END IF;
    IF v_status <> 'refused' THEN
        UPDATE deposits
        SET transaction_id = record_ledger_entry(
            1, CASE WHEN v_owner IS null THEN 5 ELSE user_account(v_owner) END, amount, 'deposit', v_owner
        )
        WHERE deposit_id = v_deposit.deposit_id
        RETURNING * INTO v_deposit;
    END IF;
    IF v_owner IS null THEN
        RETURN deposit_alert(v_deposit);
    END IF;
    PERFORM settle_receivables(v_owner, v_deposit.amount);
    RETURN credit_notice(v_deposit);
END
$$;

-- Undo what was booked for a deposit whose block has left the chain. The caller holds the accounts. Says the
-- id of the receivable it left, and what its owner is to be told; null where there is no such thing.
CREATE FUNCTION reverse_deposit(p_deposit_id bigint, OUT receivable_id bigint, OUT notice event_draft)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_before deposits;
BEGIN
    SELECT * INTO STRICT v_before FROM deposits WHERE deposit_id = p_deposit_id FOR UPDATE;
    IF v_before.status = 'reversed' THEN
        RETURN;
    END IF;
    UPDATE deposits SET status = 'reversed', reversed_at = clock_timestamp() WHERE deposit_id = p_deposit_id;
    CASE v_before.status
        WHEN 'credited' THEN
            receivable_id := take_back(
                v_before.user_id, v_before.amount, 'reverse_deposit',
                'deposit ' || p_deposit_id || ' was reorganised away after it was spent'
            );
            notice := reversal_notice(v_before);
        WHEN 'suspended' THEN
            PERFORM record_ledger_entry(5, 1, v_before.amount, 'reverse_deposit');
        ELSE
            NULL;  -- no money had moved
    END CASE;
END
$$;

-- The deposits in a list of events, as rows. An amount beyond 64 bits is told as the largest.
CREATE FUNCTION deposits_of(p_events jsonb) RETURNS SETOF deposits
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
    SELECT
        null::bigint, e.tx_hash, e.log_index, e.block_number, e.block_hash, e.sender, e.user_id,
        least(e.amount, 9223372036854775807)::bigint, 'seen', null::text, null::bigint,
        clock_timestamp(), null::timestamptz, null::timestamptz
    FROM jsonb_to_recordset(p_events) AS e (
        tx_hash text, log_index int, block_number bigint, block_hash text, sender text, user_id text,
        amount numeric
    )
    ORDER BY e.block_number, e.log_index;
END
$$;

-- Begin to watch a vault behind a block, or go on. Raises ST007 when this database watches another one.
CREATE FUNCTION watch_vault(p_chain_id bigint, p_vault text, p_number bigint, p_hash text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_chain watched_chain;
BEGIN
    INSERT INTO watched_chain (chain_id, vault, head_number, head_hash, looked_at)
    VALUES (p_chain_id, p_vault, p_number, p_hash, '-infinity') ON CONFLICT DO NOTHING;
    IF FOUND THEN
        INSERT INTO chain_checkpoints (block_number, block_hash) VALUES (p_number, p_hash);
    END IF;
    SELECT * INTO STRICT v_chain FROM watched_chain;
    IF (v_chain.chain_id, v_chain.vault) <> (p_chain_id, p_vault) THEN
        RAISE EXCEPTION 'these books watch vault % on chain %', v_chain.vault, v_chain.chain_id
        USING ERRCODE = 'ST007';
    END IF;
END
$$;

-- The newest checkpoints at or below a block, newest first.
CREATE FUNCTION watch_checkpoints(p_at_most bigint, p_limit int)
RETURNS TABLE (block_number bigint, block_hash text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        c.block_number,
        c.block_hash
    FROM chain_checkpoints AS c
    WHERE c.block_number <= p_at_most
    ORDER BY c.block_number DESC
    LIMIT p_limit;
END;

-- The deposits above a block that are in the books, to be held against the chain.
CREATE FUNCTION deposits_above(p_number bigint)
RETURNS TABLE (deposit_id bigint, block_number bigint, block_hash text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        d.deposit_id,
        d.block_number,
        d.block_hash
    FROM deposits AS d
    WHERE d.block_number > p_number AND d.status NOT IN ('seen', 'reversed');
END;

-- One step of the watcher, whole or not at all: from the cursor (p_from, p_from_hash) back to the checkpoint
-- p_fork (p_from itself when the chain has not changed), reversing the deposits p_gone, and then on to p_to,
-- crediting the deposits p_events of the blocks between. Says 'recorded'; or, having done nothing, 'paused'
-- or 'overtaken' (the cursor is not there: another watcher moved it).
CREATE FUNCTION record_deposits(
    p_from bigint,
    p_from_hash text,
    p_fork bigint,
    p_gone bigint[],
    p_to bigint,
    p_to_hash text,
    p_events jsonb
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_cursor chain_checkpoints;
    v_deposit deposits;
    v_id bigint;
    v_undone record;
    v_receivables bigint[] := '{}';
    v_news event_draft[] := '{}';
BEGIN
    IF NOT pass_pause_gate() THEN
        RETURN 'paused';
    END IF;
    PERFORM FROM watched_chain FOR UPDATE;
    SELECT * INTO v_cursor FROM chain_checkpoints ORDER BY block_number DESC LIMIT 1;
    IF (v_cursor.block_number, v_cursor.block_hash) IS DISTINCT FROM (p_from, p_from_hash) THEN
        RETURN 'overtaken';
    END IF;
    PERFORM FROM accounts
    WHERE
        account_id IN (1, 5, 7)
        OR kind = 'user_available' AND user_id IN (
            SELECT d.user_id FROM deposits AS d WHERE d.deposit_id = ANY(p_gone)
            UNION ALL
            SELECT deposit_owner(e.named_user_id, e.sender) FROM deposits_of(p_events) AS e
        )
    ORDER BY account_id FOR NO KEY UPDATE;

    FOREACH v_id IN ARRAY p_gone LOOP
        SELECT * INTO v_undone FROM reverse_deposit(v_id);
        v_receivables := v_receivables || v_undone.receivable_id;
        v_news := v_news || v_undone.notice;
    END LOOP;
    FOR v_deposit IN SELECT * FROM deposits_of(p_events) LOOP
        v_news := v_news || credit_deposit(v_deposit);
    END LOOP;

    DELETE FROM chain_checkpoints WHERE block_number > p_fork;
    IF p_to > p_fork THEN
        INSERT INTO chain_checkpoints (block_number, block_hash) VALUES (p_to, p_to_hash);
    END IF;
    -- the first stays: from there everything can be read again
    DELETE FROM chain_checkpoints
    WHERE block_number < p_to - 10000 AND block_number > (SELECT min(c.block_number) FROM chain_checkpoints AS c);
    PERFORM enqueue_events(v_news || ARRAY(SELECT receivable_alerts(v_receivables)));
    RETURN 'recorded';
END
$$;

-- What the blocks above the cursor hold now: the deposits that are not deep enough. No money moves.
CREATE FUNCTION record_seen(p_head bigint, p_head_hash text, p_events jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    UPDATE watched_chain SET head_number = p_head, head_hash = p_head_hash, looked_at = clock_timestamp();
    DELETE FROM deposits AS d
    WHERE
        d.status = 'seen'
        AND NOT EXISTS (
            SELECT FROM deposits_of(p_events) AS e
            WHERE (e.tx_hash, e.log_index, e.block_hash) = (d.tx_hash, d.log_index, d.block_hash)
        );
    INSERT INTO deposits (tx_hash, log_index, block_number, block_hash, sender, named_user_id, amount, status)
    SELECT tx_hash, log_index, block_number, block_hash, sender, named_user_id, amount, 'seen'
    FROM deposits_of(p_events)
    ON CONFLICT DO NOTHING;
END
$$;

-- Give a deposit out of suspense to its owner, once that is known; for the owner of the books alone.
-- Raises P0002 when the deposit is not in suspense or there is no such user, ST004 while paused.
CREATE FUNCTION assign_deposit(p_deposit_id bigint, p_user_id text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_account bigint := user_account(p_user_id);
    v_deposit deposits;
    v_transaction_id bigint;
BEGIN
    IF NOT pass_pause_gate() THEN
        RAISE EXCEPTION 'the platform is paused' USING ERRCODE = 'ST004';
    END IF;
    -- the watcher must not reverse it meanwhile
    PERFORM FROM watched_chain FOR UPDATE;
    SELECT * INTO v_deposit FROM deposits WHERE deposit_id = p_deposit_id AND status = 'suspended';
    IF NOT FOUND OR v_account IS null THEN
        RAISE EXCEPTION 'no such deposit in suspense, or no such user' USING ERRCODE = 'P0002';
    END IF;
    PERFORM FROM accounts WHERE account_id IN (5, 7, v_account) ORDER BY account_id FOR NO KEY UPDATE;
    v_transaction_id := record_ledger_entry(5, v_account, v_deposit.amount, 'assign_deposit', p_user_id);
    UPDATE deposits SET status = 'credited', user_id = p_user_id WHERE deposit_id = p_deposit_id
    RETURNING * INTO v_deposit;
    PERFORM settle_receivables(p_user_id, v_deposit.amount);
    PERFORM enqueue_events(ARRAY[credit_notice(v_deposit)]);
    RETURN v_transaction_id;
END
$$;

CREATE VIEW books.deposits AS
SELECT
    deposit_id,
    tx_hash,
    log_index,
    block_number,
    block_hash,
    sender,
    named_user_id,
    user_id,
    amount AS amount_micro,
    status,
    transaction_id,
    seen_at,
    booked_at,
    reversed_at
FROM deposits;

CREATE VIEW books.receivables AS
SELECT
    receivable_id,
    user_id,
    transaction_id,
    cause,
    amount AS amount_micro,
    owed AS owed_micro,
    created_at
FROM receivables;

REVOKE ALL ON watched_chain, chain_checkpoints, deposits, receivables, books.deposits, books.receivables
FROM public;
REVOKE ALL ON FUNCTION
deposit_owner,
user_debt,
take_back,
settle_receivables,
receivable_alerts,
credit_notice,
reversal_notice,
deposit_alert,
credit_deposit,
reverse_deposit,
deposits_of,
watch_vault,
watch_checkpoints,
deposits_above,
record_deposits,
record_seen,
assign_deposit
FROM public;
GRANT EXECUTE ON FUNCTION watch_vault, watch_checkpoints, deposits_above, record_deposits, record_seen
TO seatrial_relay;
GRANT SELECT ON books.deposits, books.receivables TO seatrial_judge;
