-- The outbox: what the world is to be told, written in the transaction of the effect it tells of.
--
--   1. A function that changes something calls enqueue_event() in its transaction: both commit or neither.
--   2. A relay claims events (relay_claim): the oldest undelivered one of each aggregate, under a lease.
--   3. It calls the outside world, in no transaction.
--   4. It marks what came of it (relay_mark): delivered, to be tried again, or dead.
--
-- At-least-once towards the world plus receiver dedup (by dedup_key): exactly one effect (docs/outbox.md).
--
-- A claim raises lease_token, and a mark must name the token it was claimed under, so a relay that slept past
-- its lease cannot mark what another one has claimed since. A claim also counts as an attempt: an event that
-- takes its relay down with it dies too in the end.
--
-- Order: events of one aggregate are numbered in the order in which they commit (enqueue_event's lock), and a
-- dead one holds up the later ones of its own aggregate until it is replayed, and no other aggregate. Why not
-- step over it: its replay would then arrive behind its successors, and perhaps beside one of them.
--
-- Why not a position, "everything above the last id read": ids are given before they are committed, and a
-- transaction that commits late would be stepped over for ever. What is open is a state of the row.

CREATE TABLE outbox_events (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    aggregate_type text NOT NULL CHECK (char_length(aggregate_type) BETWEEN 1 AND 100),
    aggregate_id text NOT NULL CHECK (char_length(aggregate_id) BETWEEN 1 AND 255),
    event_type text NOT NULL CHECK (event_type ~ '^[a-z_]+(\.[a-z_]+)+$'),
    payload jsonb NOT NULL,
    dedup_key text NOT NULL UNIQUE CHECK (dedup_key ~ '^[ -~]{1,255}$'),
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'dead')),
    attempts int NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_token bigint NOT NULL DEFAULT 0,
    lease_expires_at timestamptz,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    delivered_at timestamptz,
    died_at timestamptz,
    CONSTRAINT delivered_events_say_when CHECK ((status = 'delivered') = (delivered_at IS NOT null)),
    CONSTRAINT dead_events_say_when CHECK ((status = 'dead') = (died_at IS NOT null)),
    CONSTRAINT only_pending_events_are_leased CHECK (lease_expires_at IS null OR status = 'pending')
) WITH (autovacuum_vacuum_scale_factor = 0.02);

COMMENT ON COLUMN outbox_events.dedup_key
IS 'By which a receiver knows a repetition; fit for an HTTP header.';
COMMENT ON COLUMN outbox_events.attempts IS 'Claims since it was enqueued or replayed.';
COMMENT ON COLUMN outbox_events.next_attempt_at
IS 'From when on it may be claimed: the end of its lease, or of the wait after a failure.';
COMMENT ON COLUMN outbox_events.lease_token
IS 'The fencing token: one more at each claim, also after a replay.';
COMMENT ON COLUMN outbox_events.last_error
IS 'Of the last failed attempt; stays when a later one succeeds.';

-- What is due, oldest first; leased events lie behind it.
CREATE INDEX outbox_events_due ON outbox_events (next_attempt_at, event_id) WHERE status = 'pending';
-- The oldest undelivered event of an aggregate.
CREATE INDEX outbox_events_open ON outbox_events (aggregate_type, aggregate_id, event_id)
WHERE status <> 'delivered';

-- An event that is to be enqueued.
CREATE TYPE event_draft AS (
    aggregate_type text,
    aggregate_id text,
    event_type text,
    payload jsonb,
    dedup_key text
);

-- Which of 1,024 locks holds an aggregate. Why not one each: a step of the watcher may have news for more
-- users than PostgreSQL has room for locks.
CREATE FUNCTION aggregate_lock(p_aggregate_type text, p_aggregate_id text) RETURNS int
LANGUAGE sql IMMUTABLE
RETURN hashtext(p_aggregate_type || ':' || p_aggregate_id) & 1023;

-- Put an event into the outbox of the calling transaction; returns its id. A dedup key that is there already
-- is the same event: its id, and no second row. Holds the aggregate until the transaction ends, behind every
-- other lock (gate, accounts, markets), and so is called once in a transaction: for several, enqueue_events.
-- Raises ST005 when the key belongs to an event of another type or aggregate.
CREATE FUNCTION enqueue_event(
    p_aggregate_type text,
    p_aggregate_id text,
    p_event_type text,
    p_payload jsonb,
    p_dedup_key text
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_event outbox_events;
BEGIN
    -- Or a later id could commit, and leave, before an earlier one. The lock of two numbers meets no other.
    PERFORM pg_advisory_xact_lock(5392, aggregate_lock(p_aggregate_type, p_aggregate_id));
    INSERT INTO outbox_events (aggregate_type, aggregate_id, event_type, payload, dedup_key)
    VALUES (p_aggregate_type, p_aggregate_id, p_event_type, p_payload, p_dedup_key)
    ON CONFLICT (dedup_key) DO NOTHING
    RETURNING * INTO v_event;
    IF FOUND THEN
        -- a hint, one a transaction; who misses it finds the event by polling
        PERFORM pg_notify('outbox', '');
        RETURN v_event.event_id;
    END IF;
    SELECT * INTO STRICT v_event FROM outbox_events WHERE dedup_key = p_dedup_key;
    IF (v_event.aggregate_type, v_event.aggregate_id, v_event.event_type)
        <> (p_aggregate_type, p_aggregate_id, p_event_type) THEN
        RAISE EXCEPTION 'the dedup key belongs to another event, %', v_event.event_id USING ERRCODE = 'ST005';
    END IF;
    RETURN v_event.event_id;
END
$$;

-- Put several events into the outbox (null: none): those of one aggregate in the order given, and all in the
-- order of their locks, so that two transactions with common aggregates cannot wait for each other.
CREATE FUNCTION enqueue_events(p_drafts event_draft[]) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    v_draft event_draft;
BEGIN
    FOR v_draft IN
        SELECT d.aggregate_type, d.aggregate_id, d.event_type, d.payload, d.dedup_key
        FROM unnest(p_drafts) WITH ORDINALITY
            AS d (aggregate_type, aggregate_id, event_type, payload, dedup_key, n)
        WHERE num_nonnulls(d.aggregate_type, d.dedup_key) > 0
        ORDER BY aggregate_lock(d.aggregate_type, d.aggregate_id), d.n
    LOOP
        PERFORM enqueue_event(
            v_draft.aggregate_type, v_draft.aggregate_id, v_draft.event_type, v_draft.payload,
            v_draft.dedup_key
        );
    END LOOP;
END
$$;

-- News for a user's inbox, for people and (p_facts) for programs; the amount in micro-USDC.
CREATE FUNCTION draft_notice(
    p_user_id text,
    p_event_type text,
    p_title text,
    p_text text,
    p_amount bigint,
    p_facts jsonb,
    p_dedup_key text
) RETURNS event_draft
LANGUAGE sql IMMUTABLE
RETURN row(
    'inbox',
    p_user_id,
    p_event_type,
    jsonb_build_object('title', p_title, 'text', p_text, 'user_id', p_user_id, 'amount_micro', p_amount)
    || p_facts,
    p_dedup_key
)::event_draft;

-- Micro-USDC as people write it: 12.5 USDC.
CREATE FUNCTION usdc_text(p_micro bigint) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN trim_scale(p_micro::numeric / 1000000) || ' USDC';

-- Lease up to p_limit events for p_lease_s seconds: of each aggregate the oldest undelivered one, if it is
-- due and of one of these types ('alert.drift', 'alert.*'; null: of any). Concurrent claims share no event.
CREATE FUNCTION relay_claim(p_limit int, p_lease_s float8, p_event_types text[] DEFAULT null)
RETURNS TABLE (
    event_id bigint,
    aggregate_type text,
    aggregate_id text,
    event_type text,
    payload jsonb,
    dedup_key text,
    attempts int,
    lease_token bigint
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
-- without control flow, but plpgsql keeps the plan
BEGIN
    RETURN QUERY
    WITH due AS MATERIALIZED (
        SELECT d.event_id
        FROM outbox_events AS d
        WHERE
            d.status = 'pending'
            AND d.next_attempt_at <= statement_timestamp()
            AND (
                p_event_types IS null
                OR d.event_type = ANY(p_event_types)
                OR split_part(d.event_type, '.', 1) || '.*' = ANY(p_event_types)
            )
            -- a subquery with a value, not NOT EXISTS: one look into the index for each event passed
            AND d.event_id = (
                SELECT o.event_id
                FROM outbox_events AS o
                WHERE
                    o.aggregate_type = d.aggregate_type
                    AND o.aggregate_id = d.aggregate_id
                    AND o.status <> 'delivered'
                ORDER BY o.aggregate_type, o.aggregate_id, o.event_id
                LIMIT 1
            )
        ORDER BY d.next_attempt_at, d.event_id
        LIMIT p_limit
        FOR UPDATE SKIP LOCKED
    ),

    claimed AS (
        UPDATE outbox_events AS e
        SET
            attempts = e.attempts + 1,
            lease_token = e.lease_token + 1,
            lease_expires_at = statement_timestamp() + make_interval(secs => p_lease_s),
            next_attempt_at = statement_timestamp() + make_interval(secs => p_lease_s)
        WHERE e.event_id = ANY(ARRAY(SELECT due.event_id FROM due))
        RETURNING e.*
    )

    SELECT
        c.event_id,
        c.aggregate_type,
        c.aggregate_id,
        c.event_type,
        c.payload,
        c.dedup_key,
        c.attempts,
        c.lease_token
    FROM claimed AS c;
END
$$;

-- Write down what came of claimed events, by position: no error means delivered, else a wait of so many
-- seconds or death. Returns the ids of those that were still held under their token; no other is touched.
-- The token decides, not the clock: past the lease it is still valid while nobody else has claimed the event.
-- A death is an event itself, for the alert, but not the death of such an alert.
CREATE FUNCTION relay_mark(
    p_event_ids bigint[],
    p_lease_tokens bigint[],
    p_errors text[],
    p_retries_s float8[],
    p_dead boolean[]
) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_event outbox_events;
    v_deaths event_draft[] := '{}';
BEGIN
    FOR v_event IN
        UPDATE outbox_events AS e
        SET
            status = CASE WHEN m.error IS null THEN 'delivered' WHEN m.dead THEN 'dead' ELSE 'pending' END,
            next_attempt_at = CASE
                WHEN m.error IS null OR m.dead THEN e.next_attempt_at
                ELSE v_now + make_interval(secs => m.retry_s)
            END,
            lease_expires_at = null,
            last_error = coalesce(m.error, e.last_error),
            delivered_at = CASE WHEN m.error IS null THEN v_now END,
            died_at = CASE WHEN m.error IS NOT null AND m.dead THEN v_now END
        FROM unnest(p_event_ids, p_lease_tokens, p_errors, p_retries_s, p_dead)
            AS m (event_id, lease_token, error, retry_s, dead)
        -- not by status: with old statistics the index of pending events would seem the shorter way
        WHERE e.event_id = m.event_id AND e.lease_token = m.lease_token AND e.lease_expires_at IS NOT null
        RETURNING e.*
    LOOP
        IF v_event.status = 'dead' AND v_event.event_type <> 'alert.dead_letter' THEN
            -- an aggregate of its own: an alert that dies must not hold up the next
            v_deaths := v_deaths || ROW(
                'dead_letter',
                v_event.event_id || ':' || v_event.lease_token,
                'alert.dead_letter',
                jsonb_build_object(
                    'title', 'Dead letter ' || v_event.event_id || ': ' || v_event.event_type,
                    'event_id', v_event.event_id,
                    'event_type', v_event.event_type,
                    'aggregate_type', v_event.aggregate_type,
                    'aggregate_id', v_event.aggregate_id,
                    'dedup_key', v_event.dedup_key,
                    'attempts', v_event.attempts,
                    'error', v_event.last_error
                ),
                'dead_letter:' || v_event.event_id || ':' || v_event.lease_token
            )::event_draft;
        END IF;
        RETURN NEXT v_event.event_id;
    END LOOP;
    PERFORM enqueue_events(v_deaths);
END
$$;

-- relay_mark for one event that was delivered; false when the lease is lost.
CREATE FUNCTION relay_delivered(p_event_id bigint, p_lease_token bigint) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT count(*) > 0 AS marked
    FROM relay_mark(
        ARRAY[p_event_id], ARRAY[p_lease_token], ARRAY[null::text], ARRAY[null::float8], ARRAY[false]
    );
END;

-- relay_mark for one event that was not delivered: due again in p_retry_s seconds, or dead.
CREATE FUNCTION relay_failed(
    p_event_id bigint, p_lease_token bigint, p_error text, p_retry_s float8, p_dead boolean
) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT count(*) > 0 AS marked
    FROM relay_mark(
        ARRAY[p_event_id],
        ARRAY[p_lease_token],
        ARRAY[coalesce(p_error, 'unknown')],
        ARRAY[p_retry_s],
        ARRAY[p_dead]
    );
END;

-- The dead events, oldest death first, each with the number of events that wait behind it.
CREATE FUNCTION dead_letters()
RETURNS TABLE (
    event_id bigint,
    aggregate_type text,
    aggregate_id text,
    event_type text,
    payload jsonb,
    dedup_key text,
    attempts int,
    last_error text,
    created_at timestamptz,
    died_at timestamptz,
    held_up bigint
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT
        e.event_id,
        e.aggregate_type,
        e.aggregate_id,
        e.event_type,
        e.payload,
        e.dedup_key,
        e.attempts,
        e.last_error,
        e.created_at,
        e.died_at,
        (
            SELECT count(*)
            FROM outbox_events AS o
            WHERE
                o.aggregate_type = e.aggregate_type
                AND o.aggregate_id = e.aggregate_id
                AND o.event_id > e.event_id
                AND o.status <> 'delivered'
        ) AS held_up
    FROM outbox_events AS e
    WHERE e.status = 'dead'
    ORDER BY e.died_at, e.event_id;
END;

-- Make a dead event pending again, at once and with all its attempts: the same row, id and dedup key, so a
-- receiver that did get it takes the replay for the repetition it is. False when it is not dead.
CREATE FUNCTION replay_dead_letter(p_event_id bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    UPDATE outbox_events
    SET status = 'pending', attempts = 0, next_attempt_at = clock_timestamp(), died_at = null
    WHERE event_id = p_event_id AND status = 'dead';
    IF FOUND THEN
        PERFORM pg_notify('outbox', '');
        RETURN true;
    END IF;
    RETURN false;
END
$$;

CREATE VIEW books.outbox_events AS
SELECT
    event_id,
    aggregate_type,
    aggregate_id,
    event_type,
    payload::text AS payload,
    dedup_key,
    status,
    attempts::bigint AS attempts,
    lease_token,
    last_error,
    created_at,
    delivered_at,
    died_at
FROM outbox_events;

-- Enqueueing is for the functions of other files alone.
REVOKE ALL ON outbox_events, books.outbox_events FROM public;
REVOKE ALL ON FUNCTION
aggregate_lock,
enqueue_event,
enqueue_events,
draft_notice,
usdc_text,
relay_claim,
relay_mark,
relay_delivered,
relay_failed,
dead_letters,
replay_dead_letter
FROM public;

GRANT USAGE ON SCHEMA public TO seatrial_relay;
GRANT EXECUTE ON FUNCTION
relay_claim,
relay_mark,
relay_delivered,
relay_failed,
dead_letters,
replay_dead_letter
TO seatrial_relay;
GRANT SELECT ON books.outbox_events TO seatrial_judge;
