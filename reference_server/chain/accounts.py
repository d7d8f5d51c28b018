"""The development accounts: keys that are a function of the seed, each with a balance at genesis."""

from __future__ import annotations

from dataclasses import dataclass

from coincurve import PrivateKey
from eth_hash.auto import keccak


@dataclass(frozen=True, slots=True)
class DevelopmentAccount:
    """An account whose key everybody knows; the address in lower case."""

    address: str
    private_key: str


def development_accounts(seed: int, count: int) -> list[DevelopmentAccount]:
    """The first `count` accounts of this seed; more of them begin with the same."""
    accounts = []
    for index in range(count):
        # A digest is no valid key once in 2**128 times.
        key = keccak(f"seatrial development account {seed} {index}".encode())
        public = PrivateKey(key).public_key.format(compressed=False)
        accounts.append(
            DevelopmentAccount(address="0x" + keccak(public[1:])[12:].hex(), private_key="0x" + key.hex())
        )
    return accounts
