"""RLP, the encoding that Ethereum hashes and signs: byte strings and lists of them, in one way only.

Why not the package of this name: it looks for a schema in every value, at ten times the cost.
"""

from __future__ import annotations

from collections.abc import Sequence

Item = bytes | list["Item"]
Encodable = bytes | int | Sequence["Encodable"]


class RlpError(ValueError):
    """Bytes that no encoder would have written."""


def encode(value: Encodable) -> bytes:
    """The encoding of bytes, a number, or a list of these."""
    if isinstance(value, int):
        value = value.to_bytes((value.bit_length() + 7) // 8, "big")
    if isinstance(value, bytes):
        if len(value) == 1 and value[0] < 0x80:
            return value
        return _prefix(len(value), 0x80) + value
    payload = b"".join(map(encode, value))
    return _prefix(len(payload), 0xC0) + payload


def decode_list(data: bytes) -> list[Item]:
    """The list that these bytes are the whole encoding of; raises RlpError."""
    item, end = _decode(data, 0, len(data))
    if end != len(data):
        raise RlpError(f"{len(data) - end} bytes too many")
    if not isinstance(item, list):
        raise RlpError("not a list")
    return item


def _prefix(length: int, offset: int) -> bytes:
    if length < 56:
        return bytes([offset + length])
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([offset + 55 + len(size)]) + size


def _decode(data: bytes, at: int, limit: int) -> tuple[Item, int]:
    """The item that begins at this byte, and where it ends; nothing of it is read from `limit` on."""
    if at >= limit:
        raise RlpError("it ends too early")
    first = data[at]
    if first < 0x80:
        return data[at : at + 1], at + 1
    offset = 0xC0 if first >= 0xC0 else 0x80
    length, start = first - offset, at + 1
    if length >= 56:
        size_end = start + length - 55
        size = data[start : min(size_end, limit)]
        length, start = int.from_bytes(size, "big"), size_end
        if size[:1] == b"\0" or length < 56:
            raise RlpError("a length is not in its shortest form")
    end = start + length
    if end > limit:
        raise RlpError("it ends too early")
    if offset == 0x80:
        if length == 1 and data[start] < 0x80:
            raise RlpError("a byte is not in its shortest form")
        return data[start:end], end
    items: list[Item] = []
    while start < end:
        item, start = _decode(data, start, end)
        items.append(item)
    return items, end
