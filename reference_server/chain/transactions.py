"""Signed transactions off the wire: decoding, the sender's recovery, and what a transaction costs at least.

Legacy (EIP-155), access list (EIP-2930) and dynamic fee (EIP-1559) transactions; blobs and delegations are
refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from coincurve import PublicKey
from eth_hash.auto import keccak

from reference_server.chain import rlp
from reference_server.chain.rlp import Item

# Half of the curve's order: a signature's s above it is the same signature spelt differently (EIP-2).
S_MAX = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
INITCODE_BYTES_MAX = 49_152  # EIP-3860


class TransactionError(Exception):
    """Bytes that are no transaction, or one that no chain like this can execute."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One signed transaction; a legacy one has its gas price as both fees."""

    hash: bytes
    raw: bytes
    type: int
    sender: str
    chain_id: int
    nonce: int
    max_priority_fee_wei: int
    max_fee_wei: int
    gas: int
    to: str | None
    value_wei: int
    data: bytes
    access_list: tuple[tuple[str, tuple[int, ...]], ...]
    v: int
    r: int
    s: int

    @property
    def cost_max_wei(self) -> int:
        """What the sender must own for it to be executed."""
        return self.gas * self.max_fee_wei + self.value_wei

    def price_wei(self, base_fee_wei: int) -> int:
        """What a unit of gas costs its sender in a block with this base fee."""
        return min(self.max_fee_wei, base_fee_wei + self.max_priority_fee_wei)

    def tip_wei(self, base_fee_wei: int) -> int:
        """What a unit of gas pays above the base fee; negative when it does not even pay that."""
        return min(self.max_fee_wei - base_fee_wei, self.max_priority_fee_wei)


def decode_transaction(raw: bytes, *, sender: str | None = None) -> Transaction:
    """The transaction of these bytes; a known `sender` spares the recovery. Raises TransactionError."""
    if not raw:
        raise TransactionError("Failed to decode transaction: it is empty")
    try:
        if raw[0] >= 0xC0:
            return _legacy(raw, rlp.decode_list(raw), sender)
        if raw[0] in (1, 2):
            return _typed(raw, rlp.decode_list(raw[1:]), sender)
    except (ValueError, RecursionError) as error:
        raise TransactionError(f"Failed to decode transaction: {error}") from None
    raise TransactionError(f"Failed to decode transaction: type {raw[0]} is not supported")


def intrinsic_gas(transaction: Transaction) -> int:
    """The gas it costs before its first instruction (yellow paper, EIP-2028, EIP-2930, EIP-3860)."""
    zeros = transaction.data.count(0)
    gas = 21_000 + 4 * zeros + 16 * (len(transaction.data) - zeros)
    if transaction.to is None:
        gas += 32_000 + 2 * ((len(transaction.data) + 31) // 32)
    keys = sum(len(keys) for _, keys in transaction.access_list)
    return gas + 2_400 * len(transaction.access_list) + 1_900 * keys


def _legacy(raw: bytes, fields: list[Item], sender: str | None) -> Transaction:
    nonce, price, gas, to, value, data, v, r, s = fields
    v_number = _integer(v)
    if v_number < 35:
        raise TransactionError("only replay-protected (EIP-155) transactions allowed over RPC")
    chain_id = (v_number - 35) // 2
    digest = keccak(rlp.encode([*fields[:6], chain_id, 0, 0]))
    signature = (_integer(r), _integer(s), (v_number - 35) % 2)
    return Transaction(
        hash=keccak(raw),
        raw=raw,
        type=0,
        sender=sender or recover(digest, *signature),
        chain_id=chain_id,
        nonce=_integer(nonce),
        max_priority_fee_wei=_integer(price),
        max_fee_wei=_integer(price),
        gas=_integer(gas),
        to=_recipient(to),
        value_wei=_integer(value),
        data=_data(data),
        access_list=(),
        v=v_number,
        r=signature[0],
        s=signature[1],
    )


def _typed(raw: bytes, fields: list[Item], sender: str | None) -> Transaction:
    if raw[0] == 1:
        chain_id, nonce, tip, gas, to, value, data, access_list, parity, r, s = fields
        fee = tip
    else:
        chain_id, nonce, tip, fee, gas, to, value, data, access_list, parity, r, s = fields
    signature = (_integer(r), _integer(s), _integer(parity))
    if sender is None:
        sender = recover(keccak(raw[:1] + rlp.encode(fields[:-3])), *signature)
    return Transaction(
        hash=keccak(raw),
        raw=raw,
        type=raw[0],
        sender=sender,
        chain_id=_integer(chain_id),
        nonce=_integer(nonce),
        max_priority_fee_wei=_integer(tip),
        max_fee_wei=_integer(fee),
        gas=_integer(gas),
        to=_recipient(to),
        value_wei=_integer(value),
        data=_data(data),
        access_list=_access_list(access_list),
        v=signature[2],
        r=signature[0],
        s=signature[1],
    )


def recover(digest: bytes, r: int, s: int, parity: int) -> str:
    """The address that signed this digest; raises TransactionError."""
    if parity not in (0, 1) or not 0 < s <= S_MAX:
        raise TransactionError("invalid signature")
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([parity])
    try:
        key = PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except Exception as error:  # noqa: BLE001 coincurve raises it bare when there is no such point
        raise TransactionError(f"invalid signature: {error}") from None
    return "0x" + keccak(key.format(compressed=False)[1:])[12:].hex()


def created_address(sender: str, nonce: int) -> str:
    """Where the contract of this sender's transaction with this nonce comes to lie."""
    return "0x" + keccak(rlp.encode([bytes.fromhex(sender[2:]), nonce]))[12:].hex()


def _integer(field: Item) -> int:
    if not isinstance(field, bytes) or len(field) > 32 or field[:1] == b"\0":
        raise TransactionError("Failed to decode transaction: not a number in its shortest form")
    return int.from_bytes(field, "big")


def _address(field: Item) -> str:
    if not isinstance(field, bytes) or len(field) != 20:
        raise TransactionError("Failed to decode transaction: an address has 20 bytes")
    return "0x" + field.hex()


def _access_list(field: Item) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Addresses and the 32-byte keys of their slots."""
    entries = []
    for entry in field:
        if not isinstance(entry, list) or len(entry) != 2:
            raise TransactionError("Failed to decode transaction: not an access list")
        entries.append((_address(entry[0]), tuple(_slot(key) for key in entry[1])))
    return tuple(entries)


def _slot(field: Item | int) -> int:
    if not isinstance(field, bytes) or len(field) != 32:
        raise TransactionError("Failed to decode transaction: a slot's key has 32 bytes")
    return int.from_bytes(field, "big")


def _data(field: Item) -> bytes:
    if not isinstance(field, bytes):
        raise TransactionError("Failed to decode transaction: the data is a list")
    return field


def _recipient(field: Item) -> str | None:
    return None if field == b"" else _address(field)
