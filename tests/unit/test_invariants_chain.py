"""The chain invariants: a correct run with a chain passes all, and each sees what breaks it alone."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reports.evidence import Evidence, open_evidence
from reports.invariants.registry import Finding, load_registry
from tests import golden
from tests.golden import GoldenMoneyRun, golden_money_run
from tests.golden.chain import OPERATOR, Transaction, hash_of, payment_of
from tests.golden.defects import found_with
from tests.golden.findings import broken, findings
from tests.golden.market import Row
from tests.golden.money import DEEP, PLUS_MICRO, USDC
from tests.golden.reconciliation import change_platform
from tests.golden.recorder import MS, S

CREDITED = "deposits_are_credited_once"
PAID = "withdrawals_are_paid_once"
CUSTODY = "custody_equals_the_chain"
REVERSED = "reorganised_deposits_are_reversed"
DRIFT = "reconciliation_finds_exactly_the_drift"
PAUSE = "a_mismatch_pauses_trading"
EFFECTS = "external_effects_are_in_the_outbox_once"
ABORTED = "nothing_leaves_an_aborted_transaction"
NAMES = {CREDITED, PAID, CUSTODY, REVERSED, DRIFT, PAUSE}

BALANCES = {"balances_equal_entries", "money_is_conserved"}
FIRST_ID, RETURNED_ID = (f"5ea70000-0000-4000-8000-00000000000{number}" for number in (1, 2))
FINDINGS = "(42, 43, 45)"  # the runs that found the vault's drift, twice, and the accounts'


@pytest.fixture(scope="module")
def correct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    evidence = open_evidence(golden.money_run(tmp_path_factory.mktemp("golden")))
    yield evidence
    evidence.close()


def problems(finding: Finding) -> set[str]:
    """What the witnesses say is wrong."""
    said = [row.get("problems") or [row["problem"]] for row in finding.witness]
    return {problem for one in said for problem in one}


def copied(table: str, changes: str, where: str) -> str:
    """SQL that puts rows into a table that are like others but for some columns."""
    return f"INSERT INTO {table} SELECT * REPLACE ({changes}) FROM {table} WHERE {where};"


def test_the_golden_run_breaks_nothing(tmp_path: Path) -> None:
    found = findings(golden_money_run(), tmp_path)
    assert broken(found) == []
    assert {name: (found[name].examined, found[name].unresolved) for name in NAMES} == {
        # 8 deposits in the chain, 10 bookings
        CREDITED: (18, None),
        # 6 withdrawals, 5 payments for them and one of the trial
        PAID: (12, None),
        CUSTODY: (4, None),
        # 10 bookings, 1 receivable
        REVERSED: (11, None),
        # 52 reconciliations, 2 planted drifts
        DRIFT: (54, None),
        # and two pauses, each with its resumption
        PAUSE: (56, None),
    }


# --- deposits_are_credited_once


def test_a_deposit_that_was_never_booked_is_seen_in_a_run(tmp_path: Path) -> None:
    """The watcher overlooked it, and so did the reconciliations."""
    run = golden_money_run()
    run.do(run.deposit("u3", 2 * USDC))
    for _ in range(1 + DEEP):
        run.chain.mine(run.unix_ns // S)
    log = run.chain.logs("deposit")[-1]
    found = findings(run, tmp_path)
    assert broken(found) == sorted([CREDITED, CUSTODY])
    witness = [{"log": f"{log['tx_hash']}:{log['log_index']}", "problems": ["not booked"]}]
    assert found[CREDITED] == Finding(examined=19, violations=1, witness=witness)


@pytest.mark.parametrize(
    ("defect", "also", "problem"),
    [
        (
            "UPDATE deposits SET status = 'seen', transaction_id = NULL WHERE deposit_id = 1",
            {EFFECTS},
            "not booked",
        ),
        (copied("deposits", "11 AS deposit_id", "deposit_id = 3"), {EFFECTS, CUSTODY}, "booked again"),
        ("DELETE FROM chain_deposits WHERE amount_micro = 50000000", set(), "not in the chain"),
        (
            "UPDATE chain_deposits SET amount_micro = amount_micro + 1 WHERE user_id = 'u3'",
            set(),
            "booked as another than it is",
        ),
        ("UPDATE deposits SET sender = '0x' WHERE deposit_id = 3", set(), "booked as another than it is"),
        (
            "UPDATE deposits SET named_user_id = 'x' WHERE deposit_id = 3",
            set(),
            "booked as another than it is",
        ),
        (
            "UPDATE chain_deposits SET user_id = NULL WHERE user_id = 'nobody'",
            set(),
            "booked as another than it is",
        ),
        # the name of the deposit that is in suspense is a user's
        (
            """UPDATE deposits SET named_user_id = 'u4' WHERE deposit_id = 3;
            UPDATE chain_deposits SET user_id = 'u4' WHERE user_id = 'nobody'""",
            set(),
            "not for the owner that it names",
        ),
        (
            "UPDATE deposits SET status = 'refused' WHERE deposit_id = 3",
            {CUSTODY},
            "refused although it fits",
        ),
        (
            "UPDATE deposits SET status = 'refused' WHERE deposit_id = 3",
            {CUSTODY},
            "not the transaction of its credit",
        ),
        (
            """UPDATE faults SET evidence = json_merge_patch(evidence, '{"confirmations": 5}')
            WHERE fault = 'reorganise'""",
            set(),
            "booked before it was deep",
        ),
        (
            "UPDATE transactions SET kind = 'fund' WHERE transaction_id = 23",
            set(),
            "not the transaction of its credit",
        ),
        (
            "UPDATE deposits SET amount_micro = 7000001 WHERE deposit_id = 3",
            {EFFECTS, CUSTODY},
            "not the transaction of its credit",
        ),
        # to another user: nobody would miss it in the sums
        (
            """UPDATE entries SET account_id = (SELECT account_id FROM accounts WHERE user_id = 'u6'
                AND kind = 'user_available') WHERE transaction_id = 23 AND credit_micro > 0""",
            {"balances_equal_entries", "running_balances_are_continuous", "entries_never_change"},
            "not the transaction of its credit",
        ),
        # what was booked and is reversed was booked all the same
        (
            "UPDATE transactions SET kind = 'fund' WHERE transaction_id = 37",
            set(),
            "not the transaction of its credit",
        ),
        (
            """INSERT INTO transactions
            SELECT 99, 'deposit', NULL, NULL, NULL, created_at FROM transactions LIMIT 1""",
            {"every_transaction_balances", "operations_are_all_or_nothing"},
            "not the credit of one deposit",
        ),
    ],
)
def test_a_deposit_that_is_not_booked_as_it_is_is_seen(
    correct: Evidence, defect: str, also: set[str], problem: str
) -> None:
    found = found_with(correct, defect)
    assert set(broken(found)) - {"every_effect_has_a_cause"} == {CREDITED} | also
    assert problem in problems(found[CREDITED])


def test_a_deposit_that_is_not_deep_is_not_judged(tmp_path: Path) -> None:
    run = golden_money_run()
    run.do(run.deposit("u3", 2 * USDC))
    run.pass_blocks(1)
    run.drained, run.why = False, "1 deposits not booked"
    found = findings(run, tmp_path)
    assert broken(found) == []
    assert found[CREDITED].examined == 18


def test_a_deposit_that_does_not_fit_may_be_refused(correct: Evidence) -> None:
    refused = f"""
        UPDATE deposits SET amount_micro = {9 * 10**18}, status = 'refused', transaction_id = NULL
        WHERE deposit_id = 3;
        UPDATE chain_deposits SET amount_micro = {9 * 10**18} WHERE user_id = 'nobody';
        UPDATE chain_head SET custody_micro = custody_micro + {9 * 10**18} - 7000000;"""
    assert CREDITED in broken(found_with(correct, refused))  # its transaction is still there
    gone = """DELETE FROM entries WHERE transaction_id = 25;
        DELETE FROM transactions WHERE transaction_id = 25;
        UPDATE accounts SET balance_micro = balance_micro + 7000000 WHERE kind = 'external_onchain';
        UPDATE accounts SET balance_micro = 0 WHERE kind = 'suspense';"""
    assert not {CREDITED, CUSTODY} & set(broken(found_with(correct, refused + gone)))


# --- withdrawals_are_paid_once


def test_a_withdrawal_that_is_under_way_for_ever_is_seen_in_a_run(tmp_path: Path) -> None:
    run = golden_money_run()
    run.do(run.withdraw("u3", 2 * USDC))
    run.relay()
    run.chain.pool.clear()
    run.pass_blocks(DEEP)
    row = run.withdrawal(7)
    found = findings(run, tmp_path)
    assert broken(found) == [PAID]
    witness = [{"withdrawal_id": row["withdrawal_id"], "problems": ["under way for ever"]}]
    assert found[PAID] == Finding(examined=13, violations=1, witness=witness)


def test_a_payment_that_nobody_asked_for_is_seen_in_a_run(tmp_path: Path) -> None:
    """A withdrawal that was refused, and paid: also the reconciliation finds what is missing."""
    run = golden_money_run()
    word = hash_of("of a request that was refused")
    run.chain.send(payment_of("a payment of nothing", word, OPERATOR, USDC // 2))
    run.pass_blocks(DEEP)
    found = findings(run, tmp_path)
    assert broken(found) == sorted([PAID, ABORTED, CUSTODY, DRIFT])
    assert problems(found[PAID]) == {"paid, and nobody asked for it"}


@pytest.mark.parametrize(
    ("defect", "also", "problem"),
    [
        (f"DELETE FROM chain_payments WHERE withdrawal_id = '{FIRST_ID}'", set(), "final, and not paid"),
        (
            copied("chain_payments", "7 AS log_index", f"withdrawal_id = '{FIRST_ID}'"),
            {"chain_effects_happen_once"},
            "paid again",
        ),
        (
            f"""UPDATE chain_payments SET withdrawal_id = '{RETURNED_ID}', tx_hash = (SELECT tx_hash
                FROM withdrawal_attempts WHERE withdrawal_id = '{RETURNED_ID}')
            WHERE withdrawal_id = '{FIRST_ID}'""",
            {EFFECTS},
            "returned, and paid",
        ),
        (
            f"UPDATE chain_payments SET receiver = '0x' WHERE withdrawal_id = '{FIRST_ID}'",
            {EFFECTS},
            "not paid as it was asked for",
        ),
        (
            f"UPDATE chain_payments SET amount_micro = 1 WHERE withdrawal_id = '{FIRST_ID}'",
            {EFFECTS},
            "not paid as it was asked for",
        ),
        (
            f"UPDATE withdrawals SET block_hash = '0x' WHERE withdrawal_id = '{FIRST_ID}'",
            set(),
            "not paid where the books say",
        ),
        (
            "UPDATE chain_head SET confirmations = 22",
            set(),
            "not paid where the books say",
        ),
        (
            "UPDATE transactions SET kind = 'fund' WHERE transaction_id = 27",
            {"acknowledged_operations_are_durable", "operations_are_all_or_nothing"},
            "not reserved by its transaction",
        ),
        (
            f"UPDATE withdrawals SET end_transaction_id = 1 WHERE withdrawal_id = '{FIRST_ID}'",
            set(),
            "not ended by its transaction",
        ),
        (
            f"UPDATE withdrawals SET end_transaction_id = 32 WHERE withdrawal_id = '{FIRST_ID}'",
            set(),
            "the end of two withdrawals",
        ),
        (
            f"UPDATE withdrawals SET status = 'returned' WHERE withdrawal_id = '{FIRST_ID}'",
            set(),
            "not ended by its transaction",
        ),
        (
            f"DELETE FROM withdrawals WHERE withdrawal_id = '{FIRST_ID}'",
            {EFFECTS, "acknowledged_operations_are_durable", "operations_are_all_or_nothing"},
            "not the reservation of one withdrawal",
        ),
        # undone for another user than it was booked for
        (
            "UPDATE transactions SET user_id = 'u4' WHERE transaction_id = 40",
            set(),
            "a sum is in flight that is not that of the open withdrawals",
        ),
        (
            "UPDATE transactions SET user_id = 'u4' WHERE transaction_id = 40",
            set(),
            "a sum has left the books that is not that of the final withdrawals",
        ),
    ],
)
def test_a_withdrawal_that_is_not_what_was_paid_is_seen(
    correct: Evidence, defect: str, also: set[str], problem: str
) -> None:
    found = found_with(correct, defect)
    assert set(broken(found)) - {"every_effect_has_a_cause"} == {PAID} | also
    assert problem in problems(found[PAID])


# --- custody_equals_the_chain


def test_a_vault_that_holds_less_than_the_books_is_seen_in_a_run(tmp_path: Path) -> None:
    """Out of it went what no log tells of."""
    run = golden_money_run()
    run.chain.head.transactions.append(Transaction(hash_of("a hole"), "mint", {"amount_micro": -1}))
    held = run.chain.custody_micro(run.chain.head.number)
    found = findings(run, tmp_path)
    assert broken(found) == [CUSTODY]
    witness: Row = {"kind": "external_onchain", "held_against": "the vault at the last block"}
    witness |= {"balance_micro": held + 1, "found_micro": held, "difference_micro": 1}
    assert found[CUSTODY] == Finding(examined=4, violations=1, witness=[witness])


@pytest.mark.parametrize(
    ("kind", "held_against"),
    [
        ("withdraw_in_flight", "withdrawals under way"),
        ("suspense", "deposits in suspense"),
        ("suspense_receivable", "what users owe"),
    ],
)
def test_a_balance_that_nothing_accounts_for_is_seen(correct: Evidence, kind: str, held_against: str) -> None:
    found = found_with(
        correct, f"UPDATE accounts SET balance_micro = balance_micro - 1 WHERE kind = '{kind}'"
    )
    assert CUSTODY in broken(found)
    assert not (NAMES - {CUSTODY}) & set(broken(found))
    assert [row["held_against"] for row in found[CUSTODY].witness] == [held_against]


def test_a_drift_that_was_not_taken_out_is_in_the_vault_exactly(correct: Evidence) -> None:
    left = f"""
        UPDATE faults SET evidence = json_merge_patch(evidence, '{{"to_block": {{}}}}')
        WHERE fault_id = 'f006' AND state = 'healed';
        UPDATE chain_head SET custody_micro = custody_micro + {PLUS_MICRO}"""
    assert CUSTODY not in broken(found_with(correct, left.replace("{}", "null", 1)))
    assert CUSTODY in broken(found_with(correct, left.replace("{}", "null", 1) + " + 1"))
    without = left.split(";")[0].replace("{}", "null", 1)
    assert CUSTODY in broken(found_with(correct, without))


def test_a_drift_of_which_nobody_knows_whether_it_was_taken_out_may_be_in_the_vault(
    correct: Evidence,
) -> None:
    failed = """UPDATE faults SET state = 'failed', evidence = '{"why": "not healed"}'
        WHERE fault_id = 'f006' AND state = 'healed';"""
    more = "UPDATE chain_head SET custody_micro = custody_micro + "
    assert broken(found_with(correct, failed)) == []
    assert broken(found_with(correct, f"{failed} {more} {PLUS_MICRO}")) == []
    assert broken(found_with(correct, f"{failed} {more} 1")) == [CUSTODY]


# --- reorganised_deposits_are_reversed


def test_a_deposit_whose_block_is_gone_and_that_was_kept_is_seen_in_a_run(tmp_path: Path) -> None:
    run = golden_money_run()
    op = run.do(run.deposit("u3", 2 * USDC))
    run.pass_blocks(DEEP)
    (row,) = run.deposits_of(op)
    run.chain.reorganise(DEEP, [])
    found = findings(run, tmp_path)
    assert broken(found) == [REVERSED]
    witness = {"deposit_id": row["deposit_id"], "user_id": "u3", "transaction_id": row["transaction_id"]}
    witness["problem"] = "not reversed, and its block is not in the chain"
    assert found[REVERSED] == Finding(examined=12, violations=1, witness=[witness])


@pytest.mark.parametrize(
    ("defect", "also", "problem"),
    [
        (
            "UPDATE deposits SET block_number = block_number + 1 WHERE deposit_id = 1",
            set(),
            "not reversed, and its block is not in the chain",
        ),
        (
            """UPDATE deposits SET status = 'reversed', reversed_at = booked_at, transaction_id = NULL
            WHERE deposit_id = 3""",
            {CREDITED, CUSTODY, EFFECTS},
            "reversed, and its block is in the chain",
        ),
        (
            "DELETE FROM entries WHERE transaction_id = 43",
            {"every_transaction_balances"},
            "not reversed by its amount",
        ),
        (
            "UPDATE transactions SET kind = 'fund' WHERE transaction_id = 44",
            set(),
            "not reversed by its amount",
        ),
        ("UPDATE transactions SET user_id = 'u3' WHERE transaction_id = 44", set(), "reverses nothing"),
        (
            """UPDATE entries SET account_id = (SELECT account_id FROM accounts WHERE user_id = 'u6'
                AND kind = 'user_available') WHERE transaction_id = 44 AND debit_micro > 0""",
            {"balances_equal_entries", "running_balances_are_continuous"},
            "not reversed by its amount",
        ),
        (
            "UPDATE receivables SET amount_micro = amount_micro - 1",
            set(),
            "not what its transaction made the user owe",
        ),
        ("UPDATE receivables SET user_id = 'u1'", {EFFECTS}, "not what its transaction made the user owe"),
        ("DELETE FROM receivables", {EFFECTS}, "owed without a receivable"),
        (copied("receivables", "2 AS receivable_id, 0 AS amount_micro", "true"), set(), "owed twice"),
        (
            "UPDATE receivables SET owed_micro = 1",
            {CUSTODY},
            "owed and paid off is not the amount",
        ),
        (
            "UPDATE receivables SET owed_micro = -1",
            {CUSTODY},
            "paid off before an older one",
        ),
        (
            copied("receivables", "0 AS receivable_id, 1 AS owed_micro", "true"),
            {CUSTODY, EFFECTS},
            "paid off before an older one",
        ),
    ],
)
def test_a_reversal_that_is_not_that_of_a_lost_block_is_seen(
    correct: Evidence, defect: str, also: set[str], problem: str
) -> None:
    found = found_with(correct, defect)
    assert set(broken(found)) - {"every_effect_has_a_cause"} >= {REVERSED} | also
    assert set(broken(found)) <= {REVERSED} | also | LEDGER
    assert problem in problems(found[REVERSED])


# What an entry breaks beside, that is not where it was.
LEDGER = {
    *BALANCES,
    *("running_balances_are_continuous", "entries_never_change", "every_transaction_balances"),
    *("no_account_goes_below_its_floor", "every_effect_has_a_cause", "operations_are_all_or_nothing"),
}


def test_a_block_that_comes_back_brings_its_deposits_back_as_other_rows(tmp_path: Path) -> None:
    """Two reorganisations, the second back to the first branch: the same block, another booking."""
    run = golden_money_run()
    op = run.do(run.deposit("u3", 2 * USDC))
    run.pass_blocks(DEEP)
    old = [(block.hash, list(block.transactions)) for block in run.chain.blocks]
    run.chain.reorganise(DEEP, [op.known["tx_hash"]])
    run.look()
    for block, (block_hash, transactions) in zip(run.chain.blocks, old, strict=True):
        block.hash, block.transactions = block_hash, transactions
    run.look()
    rows = run.deposits_of(op)
    run.pass_blocks(DEEP)
    assert [row["status"] for row in rows] == ["reversed", "credited"]
    assert rows[0]["block_hash"] == rows[1]["block_hash"]
    assert broken(findings(run, tmp_path)) == []


# --- reconciliation_finds_exactly_the_drift


def test_a_drift_that_the_reconciliation_overlooks_is_seen_in_a_run(tmp_path: Path) -> None:
    """Its custody is what the books want it to be."""
    run = golden_money_run()
    for row in run.rows("reconciliations"):
        if row["run_id"] in (42, 43):
            row["custody_micro"] -= PLUS_MICRO
            row |= {"difference_micro": 0, "drift_micro": 0, "verdict": "clean", "consecutive": 0}
            row |= {"paused_at": None, "first_found_at": None}
    found = findings(run, tmp_path)
    assert set(broken(found)) == {DRIFT, EFFECTS}
    planted = {"block_number": 45, "verdict": "clean", "difference_micro": 0, "account_drift_micro": 0}
    planted |= {"planted_micro": PLUS_MICRO, "account_planted_micro": 0}
    wrong = ["the vault: not the drift that was planted"]
    assert found[DRIFT] == Finding(
        examined=54,
        violations=3,
        witness=[
            {"run_id": 42, **planted, "problems": wrong},
            {"run_id": 43, **planted, "block_number": 46, "problems": wrong},
            {"fault_id": "f006", "problems": ["planted, and never found"]},
        ],
    )


@pytest.mark.parametrize(
    ("defect", "also", "problem"),
    [
        # a micro-dollar too much, where there is one and where there is none
        (
            """UPDATE reconciliations SET difference_micro = difference_micro + 1,
                custody_micro = custody_micro + 1, drift_micro = drift_micro + 1 WHERE run_id = 43""",
            {EFFECTS},
            "the vault: not the drift that was planted",
        ),
        (
            """UPDATE reconciliations SET difference_micro = -1, custody_micro = custody_micro - 1,
                drift_micro = 1, verdict = 'alert' WHERE run_id = 7""",
            {EFFECTS},
            "the vault: not the drift that was planted",
        ),
        (
            """UPDATE reconciliations SET block_number = 44 WHERE run_id = 42""",
            set(),
            "the vault: not the drift that was planted",
        ),
        (
            """UPDATE reconciliations SET account_drift_micro = 119000000, drift_micro = 119000000
            WHERE run_id = 45;
            UPDATE reconciliation_items SET amount_micro = amount_micro - 1000000
            WHERE NOT explains AND amount_micro > 0""",
            {EFFECTS},
            "the accounts: not the drift that was planted",
        ),
        (
            """UPDATE reconciliations SET account_drift_micro = 2, drift_micro = 2, accounts_wrong = 1,
                verdict = 'alert' WHERE run_id = 7;
            INSERT INTO reconciliation_items VALUES (7, 'account', '1', 2, false, 'wrong')""",
            {EFFECTS},
            "the accounts: not the drift that was planted",
        ),
        (
            """UPDATE reconciliations SET accounts_wrong = 1, verdict = 'alert' WHERE run_id = 7;
            INSERT INTO reconciliation_items VALUES (7, 'account', '1', 0, false, 'its version is wrong')""",
            {EFFECTS},
            "the accounts: not the drift that was planted",
        ),
        ("UPDATE reconciliations SET books_micro = 0 WHERE run_id = 7", set(), "its figures do not add up"),
        (
            "UPDATE reconciliations SET trouble = 'the node lags' WHERE run_id = 7",
            set(),
            "its figures do not add up",
        ),
        (
            "UPDATE reconciliations SET drift_micro = 0 WHERE run_id = 43",
            {EFFECTS},
            "its figures do not add up",
        ),
        (
            "UPDATE reconciliation_items SET amount_micro = 0 WHERE run_id = 7 AND explains",
            set(),
            "its figures do not add up",
        ),
        ("DELETE FROM reconciliation_items WHERE run_id = 45", set(), "its figures do not add up"),
        (
            "UPDATE reconciliations SET verdict = 'clean' WHERE run_id = 43",
            {EFFECTS, PAUSE},
            "its verdict is not what it found",
        ),
        (
            "UPDATE reconciliations SET verdict = 'inconclusive' WHERE run_id = 7",
            {EFFECTS},
            "its verdict is not what it found",
        ),
        (
            "UPDATE reconciliations SET verdict = 'alert' WHERE run_id = 7",
            {EFFECTS},
            "its verdict is not what it found",
        ),
        (
            """UPDATE faults SET evidence = json_merge_patch(evidence, '{"from_block": 90}')
            WHERE fault_id = 'f006' AND state = 'landed'""",
            set(),
            "planted, and never found",
        ),
        (
            """UPDATE faults SET evidence = json_merge_patch(evidence,
                '{"from_unix_ns": 1767312035000000000, "by_unix_ns": 1767312035000000000,
                "removed_from_unix_ns": 1767312035000000000, "removed_by_unix_ns": 1767312035000000000}')
            WHERE fault_id = 'f007'""",
            set(),
            "planted, and never found",
        ),
    ],
)
def test_a_reconciliation_that_does_not_say_what_there_is_is_seen(
    correct: Evidence, defect: str, also: set[str], problem: str
) -> None:
    found = found_with(correct, defect)
    assert set(broken(found)) == {DRIFT} | also
    assert problem in problems(found[DRIFT])


def test_a_run_while_two_accounts_are_being_made_wrong_may_find_it_or_not(correct: Evidence) -> None:
    """Its snapshot is from between its cut-off and its end, and the act took some time too."""
    during = (
        """UPDATE reconciliations SET cutoff_at = finished_at - INTERVAL {} MILLISECOND WHERE run_id = {}"""
    )
    # 44 ended 9 ms before the pair was planted, 45 began when it was there, 46 when it was gone
    assert broken(found_with(correct, during.format(0, 45))) == []
    assert broken(found_with(correct, during.format(600, 45))) == []
    assert broken(found_with(correct, during.format(2, 46))) == []
    slow = """UPDATE faults SET evidence = json_merge_patch(evidence, '{"by_unix_ns": 1767312031790000000}')
        WHERE fault_id = 'f007' AND state = 'landed'"""
    assert broken(found_with(correct, slow)) == []


def test_a_run_that_could_not_learn_the_custody_says_nothing_of_the_vault(correct: Evidence) -> None:
    unknown = """UPDATE reconciliations SET custody_micro = NULL, difference_micro = NULL,
        block_number = NULL, trouble = 'the node: no answer', verdict = 'inconclusive' WHERE run_id = 7;"""
    told = """INSERT INTO outbox_events SELECT o.* REPLACE (
            90 + run AS event_id, run::VARCHAR AS aggregate_id, 'reconciliation:' || run AS dedup_key,
            '{"run_id": ' || run || ', "drift_micro": 0, "verdict": "'
                || if(run = 7, 'inconclusive', 'clean') || '"}' AS payload)
        FROM outbox_events AS o, (SELECT unnest([7, 8]) AS run) WHERE event_id = 29;
        INSERT INTO deliveries SELECT d.* REPLACE ('reconciliation:' || run AS key, number + run AS number)
        FROM deliveries AS d, (SELECT unnest([7, 8]) AS run) WHERE key = 'reconciliation:42';"""
    assert broken(found_with(correct, unknown)) == [EFFECTS]
    assert broken(found_with(correct, unknown + told)) == []


# --- a_mismatch_pauses_trading


def test_a_trade_while_trading_is_paused_is_seen_in_a_run(tmp_path: Path) -> None:
    run = golden_money_run()
    pause = run.rows("platform_changes")[0]
    trade = run.trade(1)
    row = run.rows("transactions")[trade["transaction_id"] - 1]
    row["created_at"] = pause["changed_at"] + datetime.timedelta(microseconds=1)
    found = findings(run, tmp_path)
    assert broken(found) == [PAUSE]
    witness = {"change_id": 1, "transaction_id": row["transaction_id"]}
    witness |= {"moment": row["created_at"].replace(tzinfo=None)}
    witness["problem"] = "money moved while trading was paused"
    assert found[PAUSE] == Finding(examined=56, violations=1, witness=[witness])


MOVED_AT = """UPDATE transactions SET created_at = (
        SELECT changed_at FROM platform_changes WHERE change_id = {}
    ) {} WHERE transaction_id = 52;"""
SELLS = "UPDATE platform_changes SET sells_while_paused = true;"


@pytest.mark.parametrize(
    ("defect", "held"),
    [
        (MOVED_AT.format(1, ""), True),
        (MOVED_AT.format(1, "+ INTERVAL 1 MICROSECOND"), False),
        (MOVED_AT.format(2, "- INTERVAL 1 MICROSECOND"), False),
        (MOVED_AT.format(2, ""), True),
        # users may get out, and not in
        (SELLS + MOVED_AT.format(2, "- INTERVAL 1 MICROSECOND"), False),
        (
            SELLS
            + MOVED_AT.format(2, "- INTERVAL 1 MICROSECOND")
            + "UPDATE trades SET side = 'sell' WHERE transaction_id = 52",
            True,
        ),
        # a pause that nobody ended
        ("DELETE FROM platform_changes WHERE change_id = 4", False),
    ],
)
def test_money_moves_until_the_pause_and_from_the_resumption_on(
    correct: Evidence, defect: str, held: bool
) -> None:
    found = found_with(correct, defect)
    assert (PAUSE in broken(found)) is not held
    assert problems(found[PAUSE]) == (set() if held else {"money moved while trading was paused"})


@pytest.mark.parametrize(
    ("defect", "also", "problem"),
    [
        (
            """UPDATE withdrawal_attempts SET created_at = (SELECT changed_at + INTERVAL 1 SECOND
                FROM platform_changes WHERE change_id = 1) WHERE attempt = 2""",
            set(),
            "a payment was signed while trading was paused",
        ),
        (
            "UPDATE reconciliations SET verdict = 'alert', paused_at = NULL WHERE run_id = 43",
            {EFFECTS},
            "found what must pause trading, and its verdict is another",
        ),
        # less than critical, three times in a row
        (
            """UPDATE reconciliations SET verdict = 'alert', drift_micro = 1000000,
                difference_micro = 1000000, custody_micro = custody_micro + 1000000
            WHERE run_id BETWEEN 7 AND 9""",
            {EFFECTS, DRIFT},
            "found what must pause trading, and its verdict is another",
        ),
        # what is critical was set lower
        (
            """UPDATE faults SET evidence = json_merge_patch(evidence, '{"critical_micro": 1000000}')
            WHERE fault = 'plant_drift' AND state = 'landed';
            UPDATE reconciliations SET verdict = 'alert', drift_micro = 1000000, difference_micro = 1000000,
                custody_micro = custody_micro + 1000000 WHERE run_id = 7""",
            {EFFECTS, DRIFT},
            "found what must pause trading, and its verdict is another",
        ),
        (
            "DELETE FROM platform_changes WHERE change_id < 3; UPDATE reconciliations SET paused_at = NULL",
            set(),
            "its verdict is a pause, and trading went on",
        ),
        (
            "UPDATE platform_changes SET paused = false WHERE change_id = 1",
            set(),
            "says that it paused trading, and did not",
        ),
        (
            "UPDATE platform_changes SET changed_by = NULL WHERE change_id = 2",
            set(),
            "resumed by nobody, or for no reason",
        ),
        (
            "UPDATE platform_changes SET reason = '' WHERE change_id = 2",
            set(),
            "resumed by nobody, or for no reason",
        ),
        # the clean run was before the pause, or something was found since
        (
            """UPDATE reconciliations SET cutoff_at = (SELECT changed_at - INTERVAL 1 MICROSECOND
                FROM platform_changes WHERE change_id = 1) WHERE run_id = 44""",
            set(),
            "resumed without a clean reconciliation",
        ),
        (
            """UPDATE platform_changes SET changed_at = (SELECT finished_at FROM reconciliations
                WHERE run_id = 43) WHERE change_id = 2""",
            set(),
            "resumed without a clean reconciliation",
        ),
    ],
)
def test_a_mismatch_that_does_not_pause_until_it_is_gone_is_seen(
    correct: Evidence, defect: str, also: set[str], problem: str
) -> None:
    found = found_with(correct, defect)
    assert set(broken(found)) == {PAUSE} | also
    assert problem in problems(found[PAUSE])


def test_a_small_drift_is_an_alert_and_three_in_a_row_pause(tmp_path: Path) -> None:
    """Also what is planted the other way round, and found beside another reconciliation."""
    run = golden_money_run()
    fault = run.begin_fault("plant_drift")
    word = hash_of("another made-up word")
    facts: Row = {"kind": "minus", "drift_micro": -2 * USDC, "account_drift_micro": 0, "words": [word]}
    facts |= {"from_block": run.chain.head.number + 1, "critical_micro": 100 * USDC}
    facts |= {"from_unix_ns": run.unix_ns, "by_unix_ns": run.unix_ns}
    run.chain.send(payment_of("a drift", word, OPERATOR, 2 * USDC))
    run.pass_blocks(4)
    assert [row["verdict"] for row in run.rows("reconciliations")[-4:]] == [
        "alert",
        "alert",
        "pause",
        "pause",
    ]
    run.fault("landed", fault_id=fault, fault="plant_drift", **facts)
    facts = {"to_block": run.chain.head.number + 1, "removed_from_unix_ns": run.unix_ns, "words": []}
    run.chain.send(Transaction(hash_of("back again"), "mint", {"amount_micro": 2 * USDC}))
    run.pass_blocks(1)
    facts |= {"removed_by_unix_ns": run.unix_ns}
    run.tick(MS)
    change_platform(run.books, paused=False, reason="it is back", changed_by="admin")
    run.pass_blocks(DEEP + 1)
    run.fault("healed", fault_id=fault, fault="plant_drift", **facts)
    assert broken(findings(run, tmp_path)) == []


def test_a_pause_by_hand_holds(tmp_path: Path) -> None:
    run = golden_money_run()
    run.tick(MS)
    change_platform(run.books, paused=True, reason="a look at it")
    run.tick(MS)
    change_platform(run.books, paused=True, reason="a longer look at it")
    run.pass_blocks(2)
    run.tick(MS)
    change_platform(run.books, paused=False, reason="all is well", changed_by="admin")
    run.do(run.deposit("u3", 2 * USDC))
    run.pass_blocks(DEEP)
    assert broken(findings(run, tmp_path)) == []


@pytest.mark.parametrize("look", [GoldenMoneyRun.look, lambda run: run.books.watch(run.chain)])
def test_a_second_watcher_changes_nothing(tmp_path: Path, look: Callable[[GoldenMoneyRun], None]) -> None:
    run = golden_money_run()
    run.do(run.deposit("u3", 2 * USDC))
    run.do(run.withdraw("u1", 2 * USDC))
    for _ in range(DEEP + 1):
        run.pass_blocks(1)
        look(run)
    assert broken(findings(run, tmp_path)) == []


def test_empty_books_are_examined_and_nothing_is_found(tmp_path: Path) -> None:
    evidence = open_evidence(golden.run(tmp_path))
    try:
        found = {known.name: known.check(evidence) for known in load_registry() if known.group == "chain"}
    finally:
        evidence.close()
    assert set(found) == NAMES
    assert {(one.examined, one.violations) for one in found.values()} == {(0, 0)}
