"""The compiled contracts: ABI and bytecode of the committed files, for the client and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).parent / "contracts"
NAMES = ("USDC", "Vault")


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One compiled contract, and what it was compiled with."""

    compiler: str
    evm_version: str
    abi: list[dict[str, Any]]
    bytecode: str
    runtime_bytecode: str


def load_contract(name: str) -> Contract:
    """The committed contract of this name."""
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Contract)
