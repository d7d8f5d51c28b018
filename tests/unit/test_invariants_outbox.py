"""The outbox invariants: a correct run with a chain passes all, and each sees what breaks it alone."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.evidence import Evidence, open_evidence
from reports.invariants.registry import Finding, load_registry
from tests import golden
from tests.golden import GoldenMoneyRun, golden_money_run
from tests.golden.chain import Transaction, word_of
from tests.golden.defects import found_with
from tests.golden.findings import broken, findings
from tests.golden.money import DEEP, USDC
from tests.golden.reconciliation import change_platform
from tests.golden.recorder import MS, S

EFFECTS = "external_effects_are_in_the_outbox_once"
DELIVERED = "the_outbox_delivers_everything"
ONCE = "chain_effects_happen_once"
ORDER = "events_leave_in_order"
ABORTED = "nothing_leaves_an_aborted_transaction"
PAID = "withdrawals_are_paid_once"
CUSTODY = "custody_equals_the_chain"
REVERSED = "reorganised_deposits_are_reversed"
NAMES = {EFFECTS, DELIVERED, ONCE, ORDER, ABORTED}

UNKNOWN_PAYMENT = "(SELECT dedup_key FROM outbox_events WHERE event_type = 'alert.unknown_payment')"
PAID_ID = "5ea70000-0000-4000-8000-000000000001"
REPLACED_ID = "5ea70000-0000-4000-8000-000000000004"


@pytest.fixture(scope="module")
def correct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    evidence = open_evidence(golden.money_run(tmp_path_factory.mktemp("golden")))
    yield evidence
    evidence.close()


def problems(finding: Finding) -> set[str]:
    """What the witnesses say is wrong."""
    said = [row.get("problems") or [row["problem"]] for row in finding.witness]
    return {problem for one in said for problem in one}


def event(event_id: int, kind: str, aggregate: tuple[str, str], key: str, **more: Any) -> str:
    """SQL that puts an event into the outbox, delivered late in the run."""
    row = {"payload": "{}", "status": "delivered", "attempts": 1, "lease_token": 1, **more}
    values = [event_id, *aggregate, kind, row["payload"], key, row["status"], row["attempts"]]
    told = ", ".join("NULL" if one is None else repr(one) for one in [*values, row["lease_token"]])
    return f"""INSERT INTO outbox_events SELECT {told}, NULL, max(created_at), max(delivered_at)
        + INTERVAL 1 SECOND, NULL FROM outbox_events;"""


def arrival(key: str, *, status: int = 200, applied: bool = True) -> str:
    """SQL that lets something arrive at the receiver, behind everything else."""
    return f"""INSERT INTO deliveries SELECT max(time_ns) + 1, max(number) + 1, {key}, NULL, {status},
        {applied} FROM deliveries;"""


def test_the_golden_run_breaks_nothing(tmp_path: Path) -> None:
    found = findings(golden_money_run(), tmp_path)
    assert broken(found) == []
    assert {name: (found[name].examined, found[name].unresolved) for name in NAMES} == {
        # 33 events, of which the watcher's wish to send again and an alert of a debt need not be there
        EFFECTS: (33 - 2 + 33, None),
        DELIVERED: (33, None),
        # 6 payments, 7 signed transactions, 26 keys
        ONCE: (39, None),
        ORDER: (15, None),
        # 34 arrivals
        ABORTED: (40, None),
    }


# --- external_effects_are_in_the_outbox_once


@pytest.mark.parametrize(
    "key",
    [
        f"'withdrawal:{PAID_ID}'",
        "'notice:23'",  # a deposit credited
        "'notice:reversed:4'",
        "'notice:30'",  # a withdrawal paid
        "'notice:36'",  # and one whose block has left the chain afterwards
        "'notice:32'",  # returned
        "'deposit:3'",  # in suspense
        "'reconciliation:42'",  # found
        "'reconciliation:44'",  # clean again
        "'dead_letter:25:4'",
        UNKNOWN_PAYMENT,
    ],
)
def test_an_effect_without_its_event_is_seen(correct: Evidence, key: str) -> None:
    forgotten = f"""DELETE FROM deliveries WHERE key = {key};
        DELETE FROM outbox_events WHERE dedup_key = {key};"""
    found = found_with(correct, forgotten)
    assert broken(found) == [EFFECTS]
    assert (found[EFFECTS].violations, problems(found[EFFECTS])) == (1, {"no event"})


def test_an_effect_that_the_outbox_forgot_is_seen_in_a_run(tmp_path: Path) -> None:
    run = golden_money_run()
    gone = run.event_row("notice.withdrawal_paid", "u4")
    run.rows("outbox_events").remove(gone)
    run.receiver.deliveries[:] = [row for row in run.receiver.deliveries if row["key"] != gone["dedup_key"]]
    for number, row in enumerate(run.receiver.deliveries, start=1):
        row["number"] = number
    found = findings(run, tmp_path)
    assert broken(found) == [EFFECTS]
    witness = {"dedup_key": "notice:34", "event_type": "notice.withdrawal_paid", "problems": ["no event"]}
    assert found[EFFECTS] == Finding(examined=63, violations=1, witness=[witness])


def test_a_debt_that_nobody_was_told_of_is_seen(correct: Evidence) -> None:
    """It must be told while it is owed; one that was paid off in the step that made it need not."""
    forgotten = """DELETE FROM deliveries WHERE key = 'receivable:1';
        DELETE FROM outbox_events WHERE dedup_key = 'receivable:1';"""
    assert broken(found_with(correct, forgotten)) == []
    found = found_with(correct, f"{forgotten} UPDATE receivables SET owed_micro = 1;")
    # nor is there a debt that was paid off, as the ledger has it
    assert broken(found) == sorted([EFFECTS, CUSTODY, REVERSED, "every_effect_has_a_cause"])
    assert found[EFFECTS].witness[0]["dedup_key"] == "receivable:1"


@pytest.mark.parametrize(
    ("defect", "problem"),
    [
        (
            f"""UPDATE outbox_events SET payload = replace(payload, '25000000', '25000001')
            WHERE dedup_key = 'withdrawal:{PAID_ID}'""",
            "it tells something else",
        ),
        (
            f"""UPDATE outbox_events SET payload = replace(payload, '0x', '0X')
            WHERE dedup_key = 'withdrawal:{PAID_ID}'""",
            "it tells something else",
        ),
        (
            "UPDATE outbox_events SET payload = replace(payload, '50000000', '5') WHERE event_id = 1",
            "it tells something else",
        ),
        (
            "UPDATE outbox_events SET payload = replace(payload, 'pause', 'alert') WHERE event_id = 29",
            "it tells something else",
        ),
        (
            "UPDATE outbox_events SET aggregate_id = 'u2' WHERE dedup_key = 'notice:32'",
            "its key belongs to another effect",
        ),
        (
            "UPDATE outbox_events SET event_type = 'notice.withdrawal_paid' WHERE dedup_key = 'notice:32'",
            "its key belongs to another effect",
        ),
        (
            event(99, "notice.deposit_credited", ("inbox", "u9"), "notice:99") + arrival("'notice:99'"),
            "an event without its effect",
        ),
        (
            event(99, "withdrawal.requested", ("withdrawal", "none"), "withdrawal:none"),
            "an event without its effect",
        ),
        (
            event(99, "withdrawal.resend", ("withdrawal", REPLACED_ID), f"withdrawal:{REPLACED_ID}:9"),
            "an event without its effect",
        ),
        (
            event(99, "alert.reconciliation", ("reconciliation", "41"), "reconciliation:41")
            + arrival("'reconciliation:41'"),
            "an event without its effect",
        ),
        (
            event(99, "alert.dead_letter", ("dead_letter", "1:1"), "dead_letter:1:1")
            + arrival("'dead_letter:1:1'"),
            "an event without its effect",
        ),
    ],
)
def test_an_event_that_does_not_tell_its_effect_is_seen(correct: Evidence, defect: str, problem: str) -> None:
    found = found_with(correct, defect)
    assert broken(found) == [EFFECTS]
    assert (found[EFFECTS].violations, problems(found[EFFECTS])) == (1, {problem})


def test_one_effect_with_two_events_is_seen(correct: Evidence) -> None:
    again = event(99, "alert.deposit_suspended", ("deposit", "3b"), "deposit:3")
    found = found_with(correct, again)
    assert broken(found) == [EFFECTS]
    assert "more than one event" in problems(found[EFFECTS])


def test_two_effects_with_one_event_are_seen(correct: Evidence) -> None:
    found = found_with(correct, "UPDATE deposits SET transaction_id = 49 WHERE deposit_id = 9")
    assert EFFECTS in broken(found)
    assert {"two effects under one key", "an event without its effect"} <= problems(found[EFFECTS])


def test_the_event_of_a_run_that_was_beside_another_may_be_there_or_not(correct: Evidence) -> None:
    """Who reconciles at the same time does not see the other's finding."""
    beside = """UPDATE reconciliations SET finished_at = (SELECT cutoff_at + INTERVAL 1 MILLISECOND
        FROM reconciliations WHERE run_id = 43) WHERE run_id = 42;"""
    told = event(99, "alert.reconciliation", ("reconciliation", "43"), "reconciliation:43")
    told = told.replace("'{}'", """'{"run_id": 43, "verdict": "pause", "drift_micro": 150000000}'""")
    assert broken(found_with(correct, beside)) == []
    assert broken(found_with(correct, beside + told + arrival("'reconciliation:43'"))) == []


# --- the_outbox_delivers_everything


@pytest.mark.parametrize(
    ("defect", "problem"),
    [
        (
            "UPDATE outbox_events SET status = 'pending', delivered_at = NULL WHERE event_id = 33",
            "not delivered",
        ),
        (
            "UPDATE outbox_events SET status = 'dead', delivered_at = NULL WHERE event_id = 26",
            "not delivered",
        ),
        ("DELETE FROM deliveries WHERE key = 'notice:30'", "its receiver never took it"),
        (
            "UPDATE deliveries SET applied = false, status = 503 WHERE key = 'reconciliation:42'",
            "its receiver never took it",
        ),
        # one event's words under the key of another
        ("UPDATE deliveries SET title = 'A deposit' WHERE key = 'notice:30'", "its receiver took another"),
    ],
)
def test_an_event_that_did_not_arrive_is_seen(correct: Evidence, defect: str, problem: str) -> None:
    found = found_with(correct, defect)
    assert broken(found) == [DELIVERED]
    assert (found[DELIVERED].violations, problems(found[DELIVERED])) == (1, {problem})


def test_an_event_that_was_marked_and_never_sent_is_seen_in_a_run(tmp_path: Path) -> None:
    run = golden_money_run()
    last = run.receiver.deliveries.pop()
    found = findings(run, tmp_path)
    assert broken(found) == [DELIVERED]
    assert found[DELIVERED].violations == 1
    assert found[DELIVERED].witness[0]["dedup_key"] == last["key"]


def test_an_event_that_died_after_the_load_is_seen_and_one_that_waits_is_no_verdict(
    correct: Evidence,
) -> None:
    late = """UPDATE outbox_events SET created_at = TIMESTAMP '2026-01-02 00:00:38', delivered_at = NULL,
        status = '{}' WHERE event_id = 26"""
    assert broken(found_with(correct, late.format("dead"))) == [DELIVERED]
    found = found_with(correct, late.format("pending"))
    assert broken(found) == []
    assert found[DELIVERED].unresolved == (
        "1 events were written after the load was stopped and are not delivered"
    )


# --- chain_effects_happen_once


def test_a_withdrawal_that_is_paid_by_two_of_its_transactions_is_seen(tmp_path: Path) -> None:
    """The vault itself would have to be broken: it pays a word once."""
    run = golden_money_run()
    row = run.withdrawal(4)
    first = next(
        one for one in run.rows("withdrawal_attempts") if one["withdrawal_id"] == row["withdrawal_id"]
    )
    payment = next(log for log in run.chain.logs("payment") if log["withdrawal_id"] == row["withdrawal_id"])
    facts = {name: payment[name] for name in ("word", "withdrawal_id", "receiver", "amount_micro")}
    run.chain.head.transactions.append(Transaction(first["tx_hash"], "payment", facts))
    found = findings(run, tmp_path)
    # the vault holds less than the books know of, and the books say of one payment that it is the payment
    assert broken(found) == sorted([ONCE, PAID, CUSTODY])
    twice = {"withdrawal_id": row["withdrawal_id"], "times": 2}
    twice["transactions"] = [payment["tx_hash"], first["tx_hash"]]
    assert found[ONCE].witness == [
        {"problem": "one word, paid again", "word": payment["word"]} | twice,
        {"problem": "paid by two of its transactions"} | twice,
    ]


def test_a_withdrawal_that_is_paid_under_two_words_is_seen(correct: Evidence) -> None:
    """Signed anew under another id, which the vault cannot know to be the same."""
    again = f"""
        INSERT INTO chain_payments SELECT block_number, block_hash, (SELECT tx_hash FROM withdrawal_attempts
            WHERE withdrawal_id = '{REPLACED_ID}' AND attempt = 1), 7, replace(word, '00000004', '0000ffff'),
            replace(withdrawal_id, '00000004', '0000ffff'), receiver, amount_micro
        FROM chain_payments WHERE withdrawal_id = '{REPLACED_ID}'"""
    found = found_with(correct, again)
    assert broken(found) == sorted([ONCE, ABORTED, PAID, EFFECTS])
    assert problems(found[ONCE]) == {"paid by two of its transactions"}


def test_a_key_that_is_applied_again_is_seen(correct: Evidence) -> None:
    found = found_with(correct, arrival("'notice:51'"))
    assert broken(found) == [ONCE]
    witness = [{"problem": "one key, applied again", "key": "notice:51", "times": 2}]
    assert found[ONCE] == Finding(examined=39, violations=1, witness=witness)


# --- events_leave_in_order


def test_an_event_that_is_delivered_before_an_earlier_one_is_seen_in_a_run(tmp_path: Path) -> None:
    run = golden_money_run()
    first, second = (run.event_row("notice.withdrawal_paid", "u1", place) for place in (0, 1))
    first["delivered_at"] = second["delivered_at"] + datetime.timedelta(milliseconds=1)
    found = findings(run, tmp_path)
    assert broken(found) == [ORDER]
    assert [(row["event_id"], row["before_id"]) for row in found[ORDER].witness] == [(8, 7)]
    assert problems(found[ORDER]) == {"delivered before the one before it"}


@pytest.mark.parametrize(
    ("defect", "also", "problem"),
    [
        # marked by one statement: two of one aggregate were claimed at once
        (
            """UPDATE outbox_events SET delivered_at = (SELECT min(delivered_at) FROM outbox_events
            WHERE event_id = 7) WHERE event_id = 8""",
            [],
            "delivered before the one before it",
        ),
        (
            "UPDATE outbox_events SET status = 'pending', delivered_at = NULL WHERE event_id = 10",
            [DELIVERED],
            "begun before the one before it was delivered",
        ),
        (
            """UPDATE deliveries SET number = -number WHERE key IN ('notice:49', 'notice:50')""",
            [],
            "arrived before the one before it was applied",
        ),
        # only its first arrival was refused, and that was too early already
        (
            """UPDATE deliveries SET number = 100 WHERE key = 'notice:49' AND applied;
            INSERT INTO deliveries VALUES (0, 99, 'notice:50', 'told', 503, false);
            UPDATE deliveries SET number = 101 WHERE key = 'notice:50' AND applied""",
            [],
            "arrived before the one before it was applied",
        ),
    ],
)
def test_an_event_that_overtakes_another_is_seen(
    correct: Evidence, defect: str, also: list[str], problem: str
) -> None:
    found = found_with(correct, defect)
    assert broken(found) == sorted([ORDER, *also])
    assert problem in problems(found[ORDER])


def test_a_repetition_that_arrives_late_is_no_breach(correct: Evidence) -> None:
    """A relay that slept past its lease, behind its look at the clock, calls once more."""
    assert broken(found_with(correct, arrival("'notice:23'", applied=False))) == []


# --- nothing_leaves_an_aborted_transaction


def test_a_payment_that_was_not_written_down_is_seen_in_a_run(tmp_path: Path) -> None:
    run = golden_money_run()
    attempts = run.rows("withdrawal_attempts")
    gone = attempts.pop(0)
    found = findings(run, tmp_path)
    assert broken(found) == [ABORTED]
    witness = {"problem": "a payment that was never signed in the books"}
    witness |= {"withdrawal_id": gone["withdrawal_id"], "tx_hash": gone["tx_hash"]}
    assert found[ABORTED] == Finding(examined=40, violations=1, witness=[witness])


@pytest.mark.parametrize(
    ("defect", "also", "key"),
    [
        (arrival("'notice:999'"), [], "notice:999"),
        (arrival("NULL"), [], None),
        (arrival("'notice:999'", status=503, applied=False), [], "notice:999"),
        # a message under the key of what is not told to people
        (arrival(f"'withdrawal:{PAID_ID}'"), [], f"withdrawal:{PAID_ID}"),
        # told by who wrote it, in a transaction that was not over
        ("UPDATE outbox_events SET lease_token = 0, attempts = 0 WHERE event_id = 24", [], "notice:47"),
    ],
)
def test_an_arrival_that_no_event_explains_is_seen(
    correct: Evidence, defect: str, also: list[str], key: str | None
) -> None:
    found = found_with(correct, defect)
    assert broken(found) == sorted([ABORTED, *also])
    assert [row.get("key") for row in found[ABORTED].witness] == [key]


def test_a_payment_of_the_trial_is_only_its_own_under_the_word_that_it_says(correct: Evidence) -> None:
    silent = """UPDATE faults SET evidence = json_merge_patch(evidence, '{"words": []}')
        WHERE fault = 'plant_drift' AND state = 'healed'"""
    found = found_with(correct, silent)
    assert broken(found) == sorted([ABORTED, PAID])


def test_a_drift_whose_end_was_not_recorded_explains_a_payment_to_the_operator(correct: Evidence) -> None:
    """Healing it failed: it may have been taken out all the same."""
    failed = """UPDATE faults SET state = 'failed', evidence = '{"why": "not healed"}'
        WHERE fault_id = 'f006' AND state = 'healed'"""
    assert broken(found_with(correct, failed)) == []
    other = f"{failed}; UPDATE chain_payments SET amount_micro = amount_micro - 1 WHERE withdrawal_id IS NULL"
    assert ABORTED in broken(found_with(correct, other))


# --- what a correct system may do


def the_end(run: GoldenMoneyRun) -> GoldenMoneyRun:
    """Everything deep, told and reconciled."""
    run.pass_blocks(DEEP)
    return run


def test_an_event_that_dies_twice_and_is_replayed_twice_holds(tmp_path: Path) -> None:
    run = golden_money_run()
    run.refused_event = "notice.deposit_credited u3"
    run.do(run.deposit("u3", 2 * USDC))
    run.pass_blocks(DEEP)
    dead = run.event_row("notice.deposit_credited", "u3", 1)
    assert dead["status"] == "dead"
    run.books.outbox.replay(dead)
    run.relay()
    assert dead["status"] == "dead"
    run.refused_event = ""
    run.books.outbox.replay(dead)
    run.relay()
    assert [row["event_type"] for row in run.rows("outbox_events")].count("alert.dead_letter") == 3
    assert broken(findings(the_end(run), tmp_path)) == []


def test_a_deposit_given_to_its_owner_or_reversed_out_of_suspense_holds(tmp_path: Path) -> None:
    run = golden_money_run()
    run.books.assign(3, "u1")
    facts = {"deposit_id": 3, "tx_hash": run.rows("deposits")[2]["tx_hash"]}
    run.books.outbox.notice("u1", "notice.deposit_credited", "credited", 7 * USDC, facts, "notice:25")
    gone = run.do(run.deposit("u3", 4 * USDC, names="nobody", sender="0x" + "5" * 40))
    run.pass_blocks(DEEP)
    assert run.deposits_of(gone)[0]["status"] == "suspended"
    run.chain.reorganise(DEEP, [gone.known["tx_hash"]])
    run.look()
    assert run.deposits_of(gone)[0]["status"] == "reversed"
    assert broken(findings(the_end(run), tmp_path)) == []


def test_a_withdrawal_that_is_paid_after_it_was_returned_holds(tmp_path: Path) -> None:
    """The deepest reorganisation: what had reverted succeeds in another block."""
    run = golden_money_run()
    row = run.withdrawal(2)
    payment = next(
        one for one in run.rows("withdrawal_attempts") if one["withdrawal_id"] == row["withdrawal_id"]
    )
    for block in run.chain.blocks:
        block.transactions = [one for one in block.transactions if one.hash != payment["tx_hash"]]
    facts = {
        "word": word_of(row["withdrawal_id"]),
        "withdrawal_id": row["withdrawal_id"],
        "receiver": row["address"],
    }
    facts["amount_micro"] = row["amount_micro"]
    run.chain.send(Transaction(payment["tx_hash"], "payment", facts))
    for _ in range(DEEP):
        run.chain.mine(run.unix_ns // S)
    run.look()
    found = findings(the_end(run), tmp_path)
    assert (row["status"], row["end_transaction_id"]) == ("final", 32)
    assert broken(found) == []


def test_events_that_wait_while_trading_is_paused_hold(tmp_path: Path) -> None:
    run = golden_money_run()
    run.refused_event = "notice.deposit_credited u3"
    run.do(run.deposit("u3", 2 * USDC))
    run.pass_blocks(DEEP - 1)
    run.tick(S)
    change_platform(run.books, paused=True, reason="a look at it")
    run.tick(MS)
    run.refused_event = ""
    run.look()
    run.pass_blocks(1)
    run.tick(MS)
    change_platform(run.books, paused=False, reason="all is well", changed_by="admin")
    assert broken(findings(the_end(run), tmp_path)) == []


def test_empty_books_are_examined_and_nothing_is_found(tmp_path: Path) -> None:
    evidence = open_evidence(golden.run(tmp_path))
    try:
        found = {known.name: known.check(evidence) for known in load_registry() if known.group == "outbox"}
    finally:
        evidence.close()
    assert set(found) == NAMES
    assert {(one.examined, one.violations) for one in found.values()} == {(0, 0)}
