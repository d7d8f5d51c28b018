-- Withdrawals: money that users ask out, from its reservation to the block that paid it.
--
--   reserved   the money is in withdraw_in_flight; the relay is told by the outbox
--   sent       a transaction was handed to the chain
--   mined      a block above the cursor pays it; that block may still leave the chain
--   final      a block that is deep enough paid it: the money has left the books
--   returned   no transaction of ours can pay it any more: the user has it back
--
-- The vault pays a withdrawal id once, whatever is sent. In the books every transaction is an attempt,
-- written down signed before the chain sees it: a relay that dies, or hears no answer, leaves a hash to look
-- for and bytes to send again, and never a payment that nobody knows of. A nonce is given and signed for in
-- one transaction under the operator's row, so nonces have no gap and no two owners. Why not hold that lock
-- while sending: a relay that sleeps would stop every withdrawal.
--
-- An attempt is over when its nonce was used up in a deep block. If ours was and it failed, the money goes
-- back; if somebody else's was, the withdrawal is sent again under the same id with a new nonce; until then
-- only with the same nonce: the same bytes, or others with a higher fee.
--
-- Lock order: the pause gate, the operator, accounts by id, the withdrawal, the outbox.

CREATE TABLE withdrawals (
    withdrawal_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id text NOT NULL REFERENCES users,
    address text NOT NULL CHECK (address ~ '^0x[0-9a-f]{40}$'),
    amount bigint NOT NULL CHECK (amount > 0),
    status text NOT NULL DEFAULT 'reserved'
    CHECK (status IN ('reserved', 'sent', 'mined', 'final', 'returned')),
    transaction_id bigint NOT NULL,
    end_transaction_id bigint,
    reason text,
    tx_hash text CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    block_number bigint,
    block_hash text,
    attempts int NOT NULL DEFAULT 0,
    sends int NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sent_at timestamptz,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT paid_withdrawals_say_where CHECK ((status IN ('mined', 'final')) = (block_number IS NOT null)),
    CONSTRAINT ended_withdrawals_say_how
    CHECK (status NOT IN ('final', 'returned') OR end_transaction_id IS NOT null)
);

COMMENT ON COLUMN withdrawals.transaction_id IS 'Of the reservation.';
COMMENT ON COLUMN withdrawals.end_transaction_id IS 'Of the last end, final or returned.';
COMMENT ON COLUMN withdrawals.tx_hash IS 'What paid it, else what was sent last.';
COMMENT ON COLUMN withdrawals.sends IS 'How often a relay has seen to it that the chain has what was signed.';
COMMENT ON COLUMN withdrawals.sent_at IS 'When that was last.';

CREATE INDEX withdrawals_open ON withdrawals (created_at) WHERE status IN ('reserved', 'sent', 'mined');
CREATE INDEX withdrawals_final ON withdrawals (block_number) WHERE status = 'final';

CREATE TABLE operators (
    operator text PRIMARY KEY CHECK (operator ~ '^0x[0-9a-f]{40}$'),
    next_nonce bigint NOT NULL CHECK (next_nonce >= 0)
);

-- Whose each nonce is: one withdrawal's, whatever is signed under it.
CREATE TABLE operator_nonces (
    operator text NOT NULL REFERENCES operators,
    nonce bigint NOT NULL CHECK (nonce >= 0),
    withdrawal_id uuid NOT NULL REFERENCES withdrawals,
    PRIMARY KEY (operator, nonce),
    UNIQUE (operator, nonce, withdrawal_id)
);

CREATE TABLE withdrawal_attempts (
    withdrawal_id uuid NOT NULL,
    attempt int NOT NULL CHECK (attempt > 0),
    operator text NOT NULL,
    nonce bigint NOT NULL,
    tx_hash text NOT NULL UNIQUE CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    max_fee numeric(78) NOT NULL,
    priority_fee numeric(78) NOT NULL,
    raw bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (withdrawal_id, attempt),
    FOREIGN KEY (operator, nonce, withdrawal_id) REFERENCES operator_nonces (operator, nonce, withdrawal_id)
);

COMMENT ON TABLE withdrawal_attempts
IS 'Signed transactions, as bytes, fees in wei; no key can be had from them.';

INSERT INTO refusals (code, status, title, stored)
VALUES
('wallet_not_linked', 422, 'Wallet not linked', true),
('withdrawal_not_found', 404, 'Withdrawal not found', false);

-- Reserve p_amount micro-USDC of a user for a payment to one of the user's wallets (null: the only one).
CREATE FUNCTION api_withdraw(
    p_user_id text, p_key text, p_request_hash text, p_amount bigint, p_address text
) RETURNS TABLE (status int, replayed boolean, body text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_account bigint := user_account(p_user_id);
    v_endpoint text := 'POST /api/withdrawals';
    v_free bigint;
    v_address text;
    v_withdrawal withdrawals;
BEGIN
    IF p_key IS null OR char_length(p_key) NOT BETWEEN 1 AND 255 OR p_request_hash IS null
        OR p_amount IS null OR p_amount NOT BETWEEN 1 AND 1000000000000000 THEN
        RETURN QUERY SELECT * FROM refuse('malformed', 'from 1 to 1000000000000000', 'amount');
        RETURN;
    ELSIF v_account IS null THEN
        RETURN QUERY SELECT * FROM refuse('user_not_found', 'no such user');
        RETURN;
    ELSIF NOT pass_pause_gate() THEN
        RETURN QUERY SELECT * FROM refuse('trading_paused', 'no money moves now');
        RETURN;
    END IF;
    PERFORM FROM accounts WHERE account_id IN (6, v_account) ORDER BY account_id FOR NO KEY UPDATE;
    RETURN QUERY SELECT * FROM recall_answer(p_user_id, p_key, p_request_hash);
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT min(w.address) INTO v_address FROM wallets AS w
    WHERE w.user_id = p_user_id AND (p_address IS null OR w.address = p_address)
    HAVING count(*) = 1;
    IF v_address IS null THEN
        RETURN QUERY SELECT * FROM answer_admin_request(
            p_user_id, p_key, p_request_hash, v_endpoint, 422,
            problem('wallet_not_linked', 'name one wallet that is linked to you', 'address')
        );
        RETURN;
    END IF;
    v_free := (SELECT a.balance FROM accounts AS a WHERE a.account_id = v_account) - user_debt(p_user_id);
    IF v_free < p_amount THEN
        RETURN QUERY SELECT * FROM answer_admin_request(
            p_user_id, p_key, p_request_hash, v_endpoint, 422,
            problem('insufficient_funds', greatest(v_free, 0) || ' can be withdrawn', 'amount')
        );
        RETURN;
    END IF;
    INSERT INTO withdrawals (user_id, address, amount, transaction_id)
    VALUES (
        p_user_id, v_address, p_amount,
        record_ledger_entry(v_account, 6, p_amount, 'withdraw', p_user_id, p_key)
    )
    RETURNING * INTO v_withdrawal;
    PERFORM enqueue_event(
        'withdrawal',
        v_withdrawal.withdrawal_id::text,
        'withdrawal.requested',
        jsonb_build_object(
            'withdrawal_id', v_withdrawal.withdrawal_id,
            'address', v_withdrawal.address,
            'amount_micro', v_withdrawal.amount
        ),
        'withdrawal:' || v_withdrawal.withdrawal_id
    );
    RETURN QUERY
    SELECT r.*
    FROM (
        SELECT
            v_withdrawal.withdrawal_id AS "withdrawalId",
            v_withdrawal.status AS status,
            v_withdrawal.amount AS amount,
            v_withdrawal.address AS address,
            v_withdrawal.transaction_id AS "transactionId",
            a.balance,
            a.version AS "accountVersion"
        FROM accounts AS a
        WHERE a.account_id = v_account
    ) AS b
    CROSS JOIN LATERAL answer_admin_request(
        p_user_id, p_key, p_request_hash, v_endpoint, 202, row_to_json(b)::text, v_withdrawal.transaction_id
    ) AS r;
END
$$;

-- A user's own withdrawal, null when there is no such one.
CREATE FUNCTION api_withdrawal(p_user_id text, p_withdrawal_id uuid) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT row_to_json(body)::text AS withdrawal
    FROM (
        SELECT
            w.withdrawal_id AS "withdrawalId",
            w.status,
            w.amount,
            w.address,
            w.tx_hash AS "txHash",
            w.block_number AS "blockNumber",
            w.reason,
            time_text(w.created_at) AS "createdAt",
            time_text(w.changed_at) AS "changedAt"
        FROM withdrawals AS w
        WHERE w.withdrawal_id = p_withdrawal_id AND w.user_id = p_user_id AND pass_read_gate()
    ) AS body;
END;

-- What the relay has to pay, and whether money may leave now; no row for an unknown id.
CREATE FUNCTION withdrawal_to_pay(p_withdrawal_id uuid)
RETURNS TABLE (status text, address text, amount bigint, may_leave boolean)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        w.status,
        w.address,
        w.amount,
        pass_pause_gate() AS may_leave
    FROM withdrawals AS w
    WHERE w.withdrawal_id = p_withdrawal_id;
END;

-- Everything that was ever signed for a withdrawal, newest first.
CREATE FUNCTION withdrawal_signatures(p_withdrawal_id uuid)
RETURNS TABLE (
    attempt int, operator text, nonce bigint, tx_hash text, max_fee numeric, priority_fee numeric, raw bytea
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        a.attempt,
        a.operator,
        a.nonce,
        a.tx_hash,
        a.max_fee,
        a.priority_fee,
        a.raw
    FROM withdrawal_attempts AS a
    WHERE a.withdrawal_id = p_withdrawal_id
    ORDER BY a.attempt DESC;
END;

-- The operator's next nonce, used up when the calling transaction commits; until then nobody else gets one.
-- p_chain_nonce: what the chain says comes next, for a key that was used elsewhere before.
CREATE FUNCTION withdrawal_nonce(p_operator text, p_chain_nonce bigint) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    INSERT INTO operators AS o (operator, next_nonce) VALUES (p_operator, p_chain_nonce + 1)
    ON CONFLICT (operator) DO UPDATE SET next_nonce = greatest(o.next_nonce, p_chain_nonce) + 1
    RETURNING o.next_nonce - 1;
END;

-- Whether no withdrawal that is under way waits for this nonce: who spends it takes nothing from anybody.
CREATE FUNCTION nonce_is_abandoned(p_operator text, p_nonce bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT NOT EXISTS (
        SELECT FROM withdrawal_attempts AS a
        INNER JOIN withdrawals AS w ON a.withdrawal_id = w.withdrawal_id AND a.attempt = w.attempts
        WHERE
            a.operator = p_operator
            AND a.nonce = p_nonce
            AND w.status IN ('reserved', 'sent', 'mined')
    ) AS abandoned;
END;

-- Write a signed transaction down as the attempt behind p_after (0: the first), before the chain sees it.
-- False when another one was signed meanwhile, the withdrawal has ended or the platform is paused: then it
-- must not be sent.
CREATE FUNCTION withdrawal_signed(
    p_withdrawal_id uuid,
    p_after int,
    p_operator text,
    p_nonce bigint,
    p_tx_hash text,
    p_max_fee numeric,
    p_priority_fee numeric,
    p_raw bytea
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    IF NOT pass_pause_gate() THEN
        RETURN false;
    END IF;
    UPDATE withdrawals
    SET attempts = attempts + 1, changed_at = clock_timestamp()
    WHERE withdrawal_id = p_withdrawal_id AND attempts = p_after AND status IN ('reserved', 'sent');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO operator_nonces (operator, nonce, withdrawal_id)
    VALUES (p_operator, p_nonce, p_withdrawal_id) ON CONFLICT DO NOTHING;
    INSERT INTO withdrawal_attempts (
        withdrawal_id, attempt, operator, nonce, tx_hash, max_fee, priority_fee, raw
    )
    VALUES (
        p_withdrawal_id, p_after + 1, p_operator, p_nonce, p_tx_hash, p_max_fee, p_priority_fee, p_raw
    );
    RETURN true;
END
$$;

-- A relay has seen to a withdrawal: the chain has this transaction, perhaps again; null: none is needed.
CREATE FUNCTION withdrawal_sent(p_withdrawal_id uuid, p_tx_hash text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    UPDATE withdrawals
    SET
        status = CASE WHEN status = 'reserved' AND p_tx_hash IS NOT null THEN 'sent' ELSE status END,
        tx_hash = CASE WHEN status IN ('reserved', 'sent') THEN coalesce(p_tx_hash, tx_hash) ELSE tx_hash END,
        sends = sends + 1,
        sent_at = clock_timestamp(),
        changed_at = clock_timestamp()
    WHERE withdrawal_id = p_withdrawal_id;
END;

-- Withdrawals that a relay has seen to and no known block holds, each with its last attempt, the lowest nonce
-- first. Those without an attempt were postponed because the platform was paused.
CREATE FUNCTION withdrawals_unmined(p_limit int)
RETURNS TABLE (
    withdrawal_id uuid, attempts int, sends int, operator text, nonce bigint, tx_hash text, waited_s float8
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        w.withdrawal_id,
        w.attempts,
        w.sends,
        a.operator,
        a.nonce,
        a.tx_hash,
        extract(EPOCH FROM clock_timestamp() - coalesce(w.sent_at, w.changed_at))::float8 AS waited_s
    FROM withdrawals AS w
    LEFT JOIN withdrawal_attempts AS a ON w.withdrawal_id = a.withdrawal_id AND w.attempts = a.attempt
    WHERE w.status IN ('reserved', 'sent') AND w.sends > 0
    ORDER BY a.nonce ASC NULLS FIRST, w.created_at ASC
    LIMIT p_limit;
END;

-- Have a relay see to a withdrawal again, unless that was asked for since the last did; about the last of its
-- p_attempts attempts. p_reason: 'dropped' (send the same bytes), 'stuck' (raise the fee), 'replaced' (its
-- nonce is somebody else's), 'blocked' (a nonce before its own is missing), 'postponed'. Does nothing while
-- the platform is paused.
CREATE FUNCTION resend_withdrawal(p_withdrawal_id uuid, p_attempts int, p_sends int, p_reason text)
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    IF NOT pass_pause_gate() THEN
        RETURN;
    END IF;
    PERFORM FROM withdrawals
    WHERE
        withdrawal_id = p_withdrawal_id AND attempts = p_attempts AND sends = p_sends
        AND status IN ('reserved', 'sent')
    FOR UPDATE;
    IF FOUND THEN
        PERFORM enqueue_event(
            'withdrawal',
            p_withdrawal_id::text,
            'withdrawal.resend',
            jsonb_build_object('withdrawal_id', p_withdrawal_id, 'attempts', p_attempts, 'reason', p_reason),
            'withdrawal:' || p_withdrawal_id || ':' || p_sends
        );
    END IF;
END
$$;

-- The payments in a list of events, each with the withdrawal that it agrees with, if any.
CREATE FUNCTION payments_of(p_events jsonb)
RETURNS TABLE (
    withdrawal_id uuid,
    tx_hash text,
    log_index int,
    block_number bigint,
    block_hash text,
    receiver text,
    amount numeric,
    known boolean
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        e.withdrawal_id,
        e.tx_hash,
        e.log_index,
        e.block_number,
        e.block_hash,
        e.receiver,
        e.amount,
        w.withdrawal_id IS NOT null AS known
    FROM
        jsonb_to_recordset(p_events)
            AS e (
                withdrawal_id uuid,
                tx_hash text,
                log_index int,
                block_number bigint,
                block_hash text,
                receiver text,
                amount numeric
            )
    LEFT JOIN withdrawals AS w
        ON e.withdrawal_id = w.withdrawal_id AND e.receiver = w.address AND e.amount = w.amount
    ORDER BY e.block_number, e.log_index;
END;

-- What the blocks above the cursor hold now: payments that are not deep enough. No money moves.
CREATE FUNCTION record_mined(p_events jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    UPDATE withdrawals AS w
    SET status = 'sent', block_number = null, block_hash = null, changed_at = clock_timestamp()
    WHERE w.status = 'mined'
        AND NOT EXISTS (
            SELECT FROM payments_of(p_events) AS e WHERE e.withdrawal_id = w.withdrawal_id AND e.known
        );
    UPDATE withdrawals AS w
    SET
        status = 'mined', tx_hash = e.tx_hash, block_number = e.block_number, block_hash = e.block_hash,
        changed_at = clock_timestamp()
    FROM payments_of(p_events) AS e
    WHERE
        e.withdrawal_id = w.withdrawal_id
        AND e.known
        AND w.status IN ('reserved', 'sent', 'mined')
        AND w.block_hash IS DISTINCT FROM e.block_hash;
END
$$;

-- Book payments that are deep enough; again does nothing. One that was returned before is taken back from the
-- user; one that no withdrawal of ours asked for is only told of: the reconciliation finds what it took.
-- False, having done nothing, while the platform is paused.
CREATE FUNCTION record_payments(p_events jsonb) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_payment record;
    v_before withdrawals;
    v_end bigint;
    v_receivables bigint[] := '{}';
    v_news event_draft[] := '{}';
BEGIN
    IF NOT pass_pause_gate() THEN
        RETURN false;
    END IF;
    PERFORM FROM accounts
    WHERE
        account_id IN (1, 6, 7)
        OR kind = 'user_available' AND user_id IN (
            SELECT w.user_id FROM payments_of(p_events) AS e
            INNER JOIN withdrawals AS w ON e.withdrawal_id = w.withdrawal_id
        )
    ORDER BY account_id FOR NO KEY UPDATE;
    FOR v_payment IN SELECT * FROM payments_of(p_events) LOOP
        IF NOT v_payment.known THEN
            v_news := v_news || ROW(
                'payment', v_payment.tx_hash || ':' || v_payment.log_index, 'alert.unknown_payment',
                to_jsonb(v_payment) || '{"title": "The vault paid what nobody asked for"}',
                'payment:' || v_payment.tx_hash || ':' || v_payment.log_index
            )::event_draft;
            CONTINUE;
        END IF;
        SELECT * INTO STRICT v_before FROM withdrawals
        WHERE withdrawal_id = v_payment.withdrawal_id FOR UPDATE;
        v_end := v_before.end_transaction_id;
        IF v_before.status = 'returned' THEN
            v_receivables := v_receivables || take_back(
                v_before.user_id, v_before.amount, 'withdraw_final',
                'withdrawal ' || v_before.withdrawal_id || ' was paid after it was returned'
            );
        ELSIF v_before.status <> 'final' THEN
            v_end := record_ledger_entry(6, 1, v_before.amount, 'withdraw_final', v_before.user_id);
            v_news := v_news || draft_notice(
                v_before.user_id,
                'notice.withdrawal_paid',
                'Withdrawal of ' || usdc_text(v_before.amount) || ' by ' || v_before.user_id || ' paid',
                'It went to ' || v_before.address || ' in transaction ' || v_payment.tx_hash || '.',
                v_before.amount,
                jsonb_build_object('withdrawal_id', v_before.withdrawal_id, 'tx_hash', v_payment.tx_hash),
                'notice:' || v_end
            );
        END IF;
        UPDATE withdrawals
        SET
            status = 'final', end_transaction_id = v_end, reason = null, tx_hash = v_payment.tx_hash,
            block_number = v_payment.block_number, block_hash = v_payment.block_hash,
            changed_at = clock_timestamp()
        WHERE withdrawal_id = v_before.withdrawal_id
            AND (status, block_hash) IS DISTINCT FROM ('final', v_payment.block_hash);
    END LOOP;
    PERFORM enqueue_events(v_news || ARRAY(SELECT receivable_alerts(v_receivables)));
    RETURN true;
END
$$;

-- The payments above a block that are in the books, to be held against the chain.
CREATE FUNCTION payments_above(p_number bigint)
RETURNS TABLE (withdrawal_id uuid, block_number bigint, block_hash text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        w.withdrawal_id,
        w.block_number,
        w.block_hash
    FROM withdrawals AS w
    WHERE w.block_number > p_number AND w.status = 'final';
END;

-- Undo what was booked for payments whose blocks (p_hashes) have left the chain: they are under way again.
-- False, having done nothing, while the platform is paused.
CREATE FUNCTION undo_payments(p_ids uuid[], p_hashes text[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_gone record;
BEGIN
    IF NOT pass_pause_gate() THEN
        RETURN false;
    END IF;
    PERFORM FROM accounts WHERE account_id IN (1, 6) ORDER BY account_id FOR NO KEY UPDATE;
    FOR v_gone IN
        SELECT w.withdrawal_id, w.user_id, w.amount
        FROM unnest(p_ids, p_hashes) AS g (withdrawal_id, block_hash)
        INNER JOIN withdrawals AS w ON g.withdrawal_id = w.withdrawal_id AND g.block_hash = w.block_hash
        WHERE w.status = 'final'
        ORDER BY w.withdrawal_id
        FOR UPDATE OF w
    LOOP
        PERFORM record_ledger_entry(1, 6, v_gone.amount, 'undo_withdraw', v_gone.user_id);
        UPDATE withdrawals
        SET status = 'sent', block_number = null, block_hash = null, changed_at = clock_timestamp()
        WHERE withdrawal_id = v_gone.withdrawal_id;
    END LOOP;
    RETURN true;
END
$$;

-- Give the user back what no transaction can pay any more: every nonce of its p_attempts attempts was used up
-- in a deep block, and the vault has not paid it there. False, having done nothing, when there is another
-- attempt by now, or it has ended, or the platform is paused.
CREATE FUNCTION return_withdrawal(p_withdrawal_id uuid, p_attempts int, p_reason text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_user_id text := (SELECT user_id FROM withdrawals WHERE withdrawal_id = p_withdrawal_id);
    v_account bigint := user_account(v_user_id);
    v_withdrawal withdrawals;
BEGIN
    IF NOT pass_pause_gate() THEN
        RETURN false;
    END IF;
    PERFORM FROM accounts WHERE account_id IN (6, v_account) ORDER BY account_id FOR NO KEY UPDATE;
    SELECT * INTO v_withdrawal FROM withdrawals
    WHERE withdrawal_id = p_withdrawal_id AND attempts = p_attempts AND status IN ('reserved', 'sent')
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE withdrawals
    SET
        status = 'returned', reason = p_reason, changed_at = clock_timestamp(),
        end_transaction_id = record_ledger_entry(
            6, v_account, v_withdrawal.amount, 'return_withdraw', v_user_id
        )
    WHERE withdrawal_id = p_withdrawal_id
    RETURNING * INTO v_withdrawal;
    PERFORM enqueue_events(ARRAY[draft_notice(
        v_user_id,
        'notice.withdrawal_returned',
        'Withdrawal of ' || usdc_text(v_withdrawal.amount) || ' by ' || v_user_id || ' returned',
        'It could not be paid (' || p_reason || '). The money is available again.',
        v_withdrawal.amount,
        jsonb_build_object('withdrawal_id', p_withdrawal_id, 'reason', p_reason),
        'notice:' || v_withdrawal.end_transaction_id
    )]);
    RETURN true;
END
$$;

CREATE VIEW books.withdrawals AS
SELECT
    withdrawal_id,
    user_id,
    address,
    amount AS amount_micro,
    status,
    transaction_id,
    end_transaction_id,
    reason,
    tx_hash,
    block_number,
    block_hash,
    attempts,
    sends,
    created_at,
    sent_at,
    changed_at
FROM withdrawals;

CREATE VIEW books.withdrawal_attempts AS
SELECT
    withdrawal_id,
    attempt,
    operator,
    nonce,
    tx_hash,
    created_at
FROM withdrawal_attempts;

REVOKE ALL ON
withdrawals,
operators,
operator_nonces,
withdrawal_attempts,
books.withdrawals,
books.withdrawal_attempts
FROM public;
REVOKE ALL ON FUNCTION
api_withdraw,
api_withdrawal,
withdrawal_to_pay,
withdrawal_signatures,
withdrawal_nonce,
nonce_is_abandoned,
withdrawal_signed,
withdrawal_sent,
withdrawals_unmined,
resend_withdrawal,
payments_of,
record_mined,
record_payments,
payments_above,
undo_payments,
return_withdrawal
FROM public;
GRANT EXECUTE ON FUNCTION api_withdraw, api_withdrawal TO seatrial_server;
GRANT EXECUTE ON FUNCTION
withdrawal_to_pay,
withdrawal_signatures,
withdrawal_nonce,
nonce_is_abandoned,
withdrawal_signed,
withdrawal_sent,
withdrawals_unmined,
resend_withdrawal,
record_mined,
record_payments,
payments_above,
undo_payments,
return_withdrawal
TO seatrial_relay;
GRANT SELECT ON books.withdrawals, books.withdrawal_attempts TO seatrial_judge;
