"""The log that the chain is rebuilt from: one checksummed line per record, appended and fsynced.

A record that a crash tore is the last one and was never answered for: it is cut off at the next opening.
Damage anywhere else is an error, because what follows it rests on it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from zlib import crc32

import msgspec

CHECKSUM_BYTES = 8
LOG_NAME = "blocks.log"


class BlockLogError(Exception):
    """The log cannot be used; says why and where."""


class GenesisRecord(msgspec.Struct, frozen=True, tag="genesis", tag_field="record"):
    """The first record: what this chain began with."""

    chain_id: int
    seed: int
    accounts: int
    balance_wei: str
    timestamp: int
    slots_in_an_epoch: int


class BlockRecord(msgspec.Struct, frozen=True, tag="block", tag_field="record"):
    """One block: all that its execution depends on, and the hash that must come out of it."""

    hash: str
    timestamp: int
    base_fee_wei: int
    prevrandao: str
    clock_offset_s: int
    transactions: list[tuple[str, str]]  # sender, raw bytes


class GiftRecord(msgspec.Struct, frozen=True, tag="gift", tag_field="record"):
    """A balance that was set after the last block."""

    address: str
    balance_wei: str


class CutRecord(msgspec.Struct, frozen=True, tag="cut", tag_field="record"):
    """The chain went back: only its first `steps` blocks and gifts remain."""

    steps: int


Record = GenesisRecord | BlockRecord | GiftRecord | CutRecord


class BlockLog:
    """The append-only file of one chain; raises BlockLogError when another process has it open."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG_NAME
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise BlockLogError(f"{self.path} is open in another process") from None
        _sync_folder(folder)

    def read(self) -> Iterator[Record]:
        """Every whole record; a torn last one is cut off the file. Raises BlockLogError."""
        whole_bytes = 0
        size_bytes = os.fstat(self._file).st_size
        decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
        with self.path.open("rb") as lines:
            for line in lines:
                payload = _payload(line)
                if payload is None:
                    if whole_bytes + len(line) < size_bytes:
                        raise BlockLogError(f"{self.path} is damaged at byte {whole_bytes}")
                    break
                yield decoder.decode(payload)
                whole_bytes += len(line)
        if whole_bytes < size_bytes:
            os.ftruncate(self._file, whole_bytes)
            os.fsync(self._file)

    def append(self, records: Iterable[Record]) -> None:
        """Write records, on disk when this returns; raises OSError, after which the log is spent."""
        lines = b"".join(map(_line, records))
        written = 0
        while written < len(lines):
            written += os.write(self._file, lines[written:])
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _line(record: Record) -> bytes:
    payload = msgspec.json.encode(record)
    return b"%08x %b\n" % (crc32(payload), payload)


def _payload(line: bytes) -> bytes | None:
    """The record's JSON, None when the line is not whole."""
    payload = line[CHECKSUM_BYTES + 1 : -1]
    return payload if line.endswith(b"\n") and line == b"%08x %b\n" % (crc32(payload), payload) else None


def _sync_folder(folder: Path) -> None:
    """Have the file's name on disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
