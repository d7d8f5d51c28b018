"""What the chain and the world say at the end of a run, as tables, after every rule has been checked.

chain_head (one row), chain_blocks, chain_deposits and chain_payments come from the folder chain/, whose
head.json is written last. deliveries is what reached the receiver of alerts and notices, in order of arrival.
Without a chain all five are empty.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import msgspec

from reports.json_lines import only, read_lines
from scenarios.history import FORMAT, HistoryError


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """chain/head.json: the last block, and what the vault holds there."""

    format: int
    chain_id: int
    vault: str
    usdc: str
    operator: str
    from_block: int
    number: int
    hash: str
    custody_micro: int
    confirmations: int
    time_ns: int
    drained: bool
    why: str | None = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A block of the chain as it is in the end."""

    number: int
    hash: str
    timestamp_s: int


class Deposit(msgspec.Struct, frozen=True, kw_only=True):
    """Money that came into the vault."""

    block_number: int
    block_hash: str
    tx_hash: str
    log_index: int
    sender: str
    amount_micro: int
    user_id: str | None = None


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """Money that left the vault."""

    block_number: int
    block_hash: str
    tx_hash: str
    log_index: int
    word: str
    receiver: str
    amount_micro: int
    withdrawal_id: str | None = None


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One arrival at the receiver."""

    time_ns: int
    number: int
    status: int
    applied: bool
    key: str | None = None
    title: str | None = None


HEAD = {
    "chain_id": "BIGINT",
    "vault": "VARCHAR",
    "usdc": "VARCHAR",
    "operator": "VARCHAR",
    "from_block": "BIGINT",
    "number": "BIGINT",
    "hash": "VARCHAR",
    "custody_micro": "BIGINT",
    "confirmations": "BIGINT",
    "time_ns": "BIGINT",
    "drained": "BOOLEAN",
    "why": "VARCHAR",
}
BLOCKS = {"number": "BIGINT", "hash": "VARCHAR", "timestamp_s": "BIGINT"}
PLACE = {"block_number": "BIGINT", "block_hash": "VARCHAR", "tx_hash": "VARCHAR", "log_index": "BIGINT"}
DEPOSITS = PLACE | {"sender": "VARCHAR", "user_id": "VARCHAR", "amount_micro": "BIGINT"}
PAYMENTS = PLACE | {
    "word": "VARCHAR",
    "withdrawal_id": "VARCHAR",
    "receiver": "VARCHAR",
    "amount_micro": "BIGINT",
}
DELIVERIES = {
    "time_ns": "BIGINT",
    "number": "BIGINT",
    "key": "VARCHAR",
    "title": "VARCHAR",
    "status": "BIGINT",
    "applied": "BOOLEAN",
}
FILES: dict[str, tuple[str, dict[str, str], type[msgspec.Struct]]] = {
    "chain_blocks": ("chain/blocks.jsonl", BLOCKS, Block),
    "chain_deposits": ("chain/deposits.jsonl", DEPOSITS, Deposit),
    "chain_payments": ("chain/payments.jsonl", PAYMENTS, Payment),
    "deliveries": ("deliveries.jsonl", DELIVERIES, Delivery),
}
HEAD_FILE = "chain/head.json"

HASH = "'0x[0-9a-f]{64}'"
ADDRESS = "'0x[0-9a-f]{40}'"
WORD_OF_ID = "regexp_replace(word, '^0x(.{8})(.{4})(.{4})(.{4})(.{12})0{32}$', '\\1-\\2-\\3-\\4-\\5')"
PLACE_RULES = f"""
    WHEN block_number IS NULL OR block_hash IS NULL OR tx_hash IS NULL OR log_index IS NULL
        OR amount_micro IS NULL THEN 'a log has its block, transaction, index and amount'
    WHEN NOT regexp_full_match(tx_hash, {HASH}) THEN 'tx_hash is 0x and 64 hex digits in lower case'
    WHEN (block_number, block_hash) NOT IN (SELECT (b.number, b.hash) FROM chain_blocks AS b) THEN
        'its block is not one of blocks.jsonl'
    WHEN log_index < 0 OR amount_micro < 0 THEN 'log_index and amount_micro are not below 0'
    WHEN count(*) OVER (PARTITION BY block_number, log_index) > 1 THEN 'the same log is there twice'
"""
# The first rule that a line breaks; null when it breaks none.
RULES = {
    "chain_blocks": f"""
    WHEN number IS NULL OR hash IS NULL OR timestamp_s IS NULL THEN 'a block has number, hash and timestamp_s'
    WHEN NOT regexp_full_match(hash, {HASH}) THEN 'a hash is 0x and 64 hex digits in lower case'
    WHEN number <> rowid + (SELECT from_block FROM chain_head) THEN
        'blocks run from from_block of head.json without a gap'
    WHEN timestamp_s < lag(timestamp_s) OVER (ORDER BY rowid) THEN 'the time decreases'
    WHEN number > (SELECT number FROM chain_head) THEN 'the block is above the head'
    WHEN number = (SELECT number FROM chain_head) AND hash <> (SELECT hash FROM chain_head) THEN
        'the last block is not that of head.json'
    WHEN rowid = max(rowid) OVER () AND number < (SELECT number FROM chain_head) THEN
        'the last block is not that of head.json'
    """,
    "chain_deposits": f"""{PLACE_RULES}
    WHEN sender IS NULL OR NOT regexp_full_match(sender, {ADDRESS}) THEN
        'an address is 0x and 40 hex digits in lower case'
    """,
    "chain_payments": f"""{PLACE_RULES}
    WHEN receiver IS NULL OR NOT regexp_full_match(receiver, {ADDRESS}) THEN
        'an address is 0x and 40 hex digits in lower case'
    WHEN word IS NULL OR NOT regexp_full_match(word, {HASH}) THEN
        'a word is 0x and 64 hex digits in lower case'
    WHEN withdrawal_id IS DISTINCT FROM CASE WHEN {WORD_OF_ID} <> word THEN {WORD_OF_ID} END THEN
        'withdrawal_id is not what the word says'
    """,
    "deliveries": """
    WHEN time_ns IS NULL OR status IS NULL OR applied IS NULL THEN
        'an arrival has time_ns, status and applied'
    WHEN number IS NULL OR number < 1 OR count(*) OVER (PARTITION BY number) > 1 THEN
        'every arrival has a number of its own, from 1 on'
    WHEN status NOT IN (200, 503, 0) THEN 'the status of an arrival is 200, 503 or 0'
    WHEN applied AND status = 503 THEN 'what was refused is not applied'
    WHEN applied AND key IS NOT NULL AND
        count(*) FILTER (applied) OVER (PARTITION BY key ORDER BY rowid ROWS UNBOUNDED PRECEDING) > 1
        THEN 'a key is applied once'
    """,
}


def read_chain(db: duckdb.DuckDBPyConnection, run: Path, *, has_chain: bool) -> list[str]:
    """Make the tables; reasons why they do not show the end of the run, [] when they do. Raises HistoryError.

    Where a file is missing none is read: half of what happened would look like losses of the other half.
    """
    _create(db, "chain_head", HEAD)
    for name, (_, columns, _) in FILES.items():
        _create(db, name, columns)
    if not has_chain:
        return []
    missing = [
        file for file in (HEAD_FILE, *(file for file, _, _ in FILES.values())) if not (run / file).is_file()
    ]
    if missing:
        return [f"what chain and world saw was not recorded to the end: no {', '.join(missing)}"]
    _read_head(db, run / HEAD_FILE)
    for name, (file, columns, kind) in FILES.items():
        read_lines(db, run / file, f"INSERT INTO {name} FROM", columns, only(kind))
        _refuse(db, run / file, name)
    return []


def _create(db: duckdb.DuckDBPyConnection, name: str, columns: dict[str, str]) -> None:
    db.execute(f"CREATE TABLE {name} ({', '.join(f'{column} {of}' for column, of in columns.items())})")


def _read_head(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    try:
        head = msgspec.json.decode(path.read_bytes(), type=Head)
    except msgspec.DecodeError as error:
        raise HistoryError(path, 1, f"not the head of a chain: {error}") from None
    if head.format != FORMAT:
        raise HistoryError(path, 1, f"format {head.format}, this reader knows {FORMAT}")
    db.execute(
        f"INSERT INTO chain_head VALUES ({', '.join('?' * len(HEAD))})",
        [getattr(head, name) for name in HEAD],
    )


def _refuse(db: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    """Raise HistoryError when a line breaks a rule; the first is named."""
    found = db.execute(
        f"SELECT line, rule FROM (SELECT rowid + 1 AS line, CASE {RULES[name]} END AS rule FROM {name})"
        " WHERE rule IS NOT NULL ORDER BY line LIMIT 1"
    ).fetchone()
    if found is not None:
        raise HistoryError(path, found[0], found[1])
