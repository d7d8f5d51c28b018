"""Transactions off the wire: what a wallet signs is read as it was meant, and nothing else is read at all."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from reference_server.chain import rlp
from reference_server.chain.accounts import development_accounts
from reference_server.chain.rendering import checksummed
from reference_server.chain.transactions import (
    S_MAX,
    TransactionError,
    created_address,
    decode_transaction,
    intrinsic_gas,
)

SIGNER = cast(LocalAccount, Account.from_key("0x" + "42" * 32))
RECEIVER = "0x" + "ab" * 20
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
COMMON: dict[str, Any] = {
    "chainId": 31_337,
    "nonce": 7,
    "to": bytes.fromhex(RECEIVER[2:]),
    "value": 10**18,
    "gas": 90_000,
    "data": b"\0\1hello",
}
DYNAMIC: dict[str, Any] = COMMON | {"type": 2, "maxFeePerGas": 50, "maxPriorityFeePerGas": 3}
ACCESS = [{"address": RECEIVER, "storageKeys": ["0x" + "00" * 31 + "05", "0x" + "ff" * 32]}]


def raw(**fields: Any) -> bytes:
    return bytes(SIGNER.sign_transaction(fields).raw_transaction)


@pytest.mark.parametrize(
    ("fields", "kind", "fee", "tip"),
    [
        (COMMON | {"gasPrice": 9}, 0, 9, 9),
        (COMMON | {"type": 1, "gasPrice": 9, "accessList": ACCESS}, 1, 9, 9),
        (DYNAMIC | {"accessList": ACCESS}, 2, 50, 3),
        (DYNAMIC, 2, 50, 3),
    ],
)
def test_every_kind_is_read_as_it_was_signed(fields: dict[str, Any], kind: int, fee: int, tip: int) -> None:
    signed = SIGNER.sign_transaction(fields)
    transaction = decode_transaction(bytes(signed.raw_transaction))
    assert transaction.hash == bytes(signed.hash)
    assert transaction.sender == SIGNER.address.lower()
    assert (transaction.type, transaction.max_fee_wei, transaction.max_priority_fee_wei) == (kind, fee, tip)
    assert (transaction.chain_id, transaction.nonce, transaction.gas) == (31_337, 7, 90_000)
    assert (transaction.to, transaction.value_wei, transaction.data) == (RECEIVER, 10**18, b"\0\1hello")
    if "accessList" in fields:
        assert transaction.access_list == ((RECEIVER, (5, 2**256 - 1)),)
        assert intrinsic_gas(transaction) == 21_000 + 4 + 6 * 16 + 2_400 + 2 * 1_900


def test_a_creation_has_no_receiver_and_its_place_follows_from_who_and_when() -> None:
    transaction = decode_transaction(raw(**DYNAMIC | {"to": b""}))
    assert transaction.to is None
    assert intrinsic_gas(transaction) == 21_000 + 4 + 6 * 16 + 32_000 + 2
    # A contract of the main network.
    assert created_address("0x6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0", 0) == (
        "0xcd234a471b72ba2f1ccf0a70fcaba648a5eecd8d"
    )


def test_a_transaction_pays_the_base_fee_and_its_tip_up_to_its_maximum() -> None:
    transaction = decode_transaction(raw(**DYNAMIC))
    assert [transaction.price_wei(base) for base in (10, 47, 49)] == [13, 50, 50]
    assert [transaction.tip_wei(base) for base in (10, 49, 51)] == [3, 1, -1]
    assert transaction.cost_max_wei == 90_000 * 50 + 10**18


def test_a_signature_has_one_spelling() -> None:
    fields = rlp.decode_list(raw(**DYNAMIC)[1:])
    parity, s = int.from_bytes(cast(bytes, fields[9]), "big"), int.from_bytes(cast(bytes, fields[11]), "big")
    assert s <= S_MAX
    other = b"\2" + rlp.encode([*fields[:9], 1 - parity, fields[10], CURVE_ORDER - s])
    with pytest.raises(TransactionError, match="invalid signature"):
        decode_transaction(other)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\2",
        b"\2\xc0",
        b"\3" + raw(**DYNAMIC)[1:],
        b"\x7f",
        raw(**DYNAMIC) + b"\0",
        raw(**DYNAMIC)[:-1],
        rlp.encode([b"\0", 1, 2, b"", 0, b"", 62_709, 1, 1]),
        rlp.encode([1, 1, 2, b"short", 0, b"", 62_709, 1, 1]),
        rlp.encode([1, 1, 2, b"", 0, [b"list"], 62_709, 1, 1]),
        rlp.encode([1, 1, 2, b"", 0, b"", 27, 1, 1]),
        rlp.encode([1, 1, 2, b"", 0, b"", 62_709, 0, 0]),
        b"\2" + rlp.encode([1] * 8 + [[b"x"]] + [1] * 3),
        b"\xf9\xff\xff" + b"\xc1" * 3_000,
    ],
)
def test_what_is_no_transaction_is_refused(data: bytes) -> None:
    with pytest.raises(TransactionError):
        decode_transaction(data)


def test_no_bytes_make_the_decoder_fail_in_another_way() -> None:
    source = random.Random(1)
    whole = raw(**DYNAMIC | {"accessList": ACCESS})
    for _ in range(2_000):
        data = bytearray(whole)
        for _ in range(source.randrange(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            decode_transaction(bytes(data))
        except TransactionError:
            continue


def test_rlp_goes_there_and_back_and_has_one_spelling() -> None:
    source = random.Random(2)

    def make(depth: int) -> rlp.Item:
        if depth == 0 or source.random() < 0.5:
            return source.randbytes(source.choice([0, 1, 1, 2, 55, 56, 300, 70_000]))
        return [make(depth - 1) for _ in range(source.randrange(6))]

    for _ in range(200):
        items = [make(3)]
        assert rlp.decode_list(rlp.encode(items)) == items
    assert rlp.encode([b"dog", 1024, 0, []]) == bytes.fromhex("c983646f6782040080c0")
    for spelling in ("c28101", "b800", "f800", "c1b83700", "f83800"):
        with pytest.raises(rlp.RlpError):
            rlp.decode_list(bytes.fromhex(spelling))


def test_addresses_are_shown_with_their_checksum() -> None:
    # The examples of EIP-55.
    for address in (
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    ):
        assert checksummed(address.lower()) == address


def test_development_accounts_are_a_function_of_the_seed() -> None:
    accounts = development_accounts(7, 3)
    assert development_accounts(7, 2) == accounts[:2]
    assert development_accounts(8, 1) != accounts[:1]
    for account in accounts:
        assert Account.from_key(account.private_key).address.lower() == account.address
