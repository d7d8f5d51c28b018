"""The chain at the end of a run, as the judge reads it: chain/*.jsonl and chain/head.json.

Read from the node itself when no block is mined any more, from the first block that concerned the vault to
the last. A node that does not answer leaves no head.json, and the run is incomplete.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from chaos.custody import Custody
from chaos.quiescence import Drained
from chaos.rpc import RpcError
from chaos.vault import VaultError, address_of, balance_of, deposit_logs, payment_logs

FORMAT = 1


def export_chain(custody: Custody, run: Path, drained: Drained) -> str | None:
    """Write the folder chain/; why it could not be read, if so. Raises OSError on a full disk."""
    try:
        _export(custody, run, drained)
    except (RpcError, VaultError) as error:
        return str(error)
    return None


def _export(custody: Custody, run: Path, drained: Drained) -> None:
    folder = run / "chain"
    folder.mkdir(exist_ok=True)
    newest = custody.ask("eth_getBlockByNumber", "latest", False)
    head = int(newest["number"], 16)
    first = custody.first_block
    blocks = [custody.ask("eth_getBlockByNumber", hex(number), False) for number in range(first, head + 1)]
    _write(folder / "blocks.jsonl", [_block_row(block) for block in blocks])
    _write(folder / "deposits.jsonl", deposit_logs(custody.ask, custody.vault, first, head))
    _write(folder / "payments.jsonl", payment_logs(custody.ask, custody.vault, first, head))
    row = {
        "format": FORMAT,
        "chain_id": custody.chain_id,
        "vault": custody.vault.lower(),
        "usdc": custody.usdc.lower(),
        "operator": address_of(custody.operator_key),
        "from_block": first,
        "number": head,
        "hash": newest["hash"],
        "custody_micro": balance_of(custody.ask, custody.usdc, custody.vault, head),
        "confirmations": custody.plan.confirmations,
        "time_ns": time.monotonic_ns(),
        "drained": drained.drained,
        "why": drained.why,
    }
    # last: a chain without it is not whole
    (folder / "head.json").write_bytes(msgspec.json.encode(row) + b"\n")


def _block_row(block: dict[str, Any]) -> dict[str, Any]:
    return {
        "number": int(block["number"], 16),
        "hash": block["hash"],
        "timestamp_s": int(block["timestamp"], 16),
    }


def _write(path: Path, rows: Sequence[msgspec.Struct | dict[str, Any]]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
