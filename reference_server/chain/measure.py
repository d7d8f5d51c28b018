"""`python -m reference_server.chain.measure`: how fast the embedded chain takes transfers, and comes back.

Transfers are signed first, then sent over HTTP from a few connections, each in a block of its own that is
on disk before the answer. The rate of each thousand shows whether it stays flat; then the node is killed,
and the time is taken until it answers again with the same head.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from eth_account import Account

from reference_server.chain.blocks import FIRST_BASE_FEE_WEI

TRANSFER_GAS = 21_000
START_TIMEOUT_S = 60


class Node:
    """A node in a process of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        command = [sys.executable, "-m", "reference_server.chain", "--port", str(port), "--data", str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the node ended with code {self.process.wait(START_TIMEOUT_S)}")
        self.announcement: dict[str, Any] = json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(START_TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reference_server.chain.measure", description=__doc__)
    parser.add_argument("--transfers", type=int, default=4_000, help="(default: %(default)s)")
    parser.add_argument("--connections", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=18_545, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="(default: %(default)s)")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="seatrial-chain-", dir=arguments.folder) as folder:
        node = Node(Path(folder), arguments.port)
        try:
            batches = sign(node.announcement, arguments.transfers, arguments.connections)
            send(arguments.port, batches)
            head = ask(
                http.client.HTTPConnection("127.0.0.1", arguments.port),
                "eth_getBlockByNumber",
                "latest",
                False,
            )
            node.kill()
            began = time.monotonic()
            node = Node(Path(folder), arguments.port)
            assert newest_block(arguments.port) == head
            print(f"back after SIGKILL: {int(head['number'], 16)} blocks in {time.monotonic() - began:.2f} s")
        finally:
            node.kill()
    return 0


def sign(announcement: dict[str, Any], transfers: int, connections: int) -> list[list[str]]:
    """One list for each connection, of one sender each, so that nonces come in order."""
    accounts = announcement["accounts"]
    receiver = bytes.fromhex(accounts[-1]["address"][2:])
    return [
        [
            Account.sign_transaction(
                {
                    "type": 2,
                    "chainId": announcement["chain_id"],
                    "nonce": nonce,
                    "to": receiver,
                    "value": 1,
                    "gas": TRANSFER_GAS,
                    "maxFeePerGas": 2 * FIRST_BASE_FEE_WEI,
                    "maxPriorityFeePerGas": 1,
                    "data": b"",
                },
                account["private_key"],
            ).raw_transaction.to_0x_hex()
            for nonce in range(transfers // connections)
        ]
        for account in accounts[:connections]
    ]


def send(port: int, batches: list[list[str]]) -> None:
    """Send all, and print the rate of each thousand and of the whole."""
    answered: list[float] = []

    def send_one_by_one(batch: list[str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for raw in batch:
            ask(connection, "eth_sendRawTransaction", raw)
            answered.append(time.monotonic())

    began = time.monotonic()
    with ThreadPoolExecutor(len(batches)) as threads:
        list(threads.map(send_one_by_one, batches))
    answered.sort()
    for end in range(1_000, len(answered) + 1, 1_000):
        since = answered[end - 1_001] if end > 1_000 else began
        print(f"transfers {end - 999} to {end}: {1_000 / (answered[end - 1] - since):.0f}/s")
    print(f"all {len(answered)}: {len(answered) / (answered[-1] - began):.0f}/s, each in a block on disk")


def newest_block(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        block: dict[str, Any] = ask(connection, "eth_getBlockByNumber", "latest", False)
    finally:
        connection.close()
    return block


def ask(connection: http.client.HTTPConnection, method: str, *parameters: Any) -> Any:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters})
    connection.request("POST", "/", body, {"content-type": "application/json"})
    reply = json.loads(connection.getresponse().read())
    if "error" in reply:
        raise SystemExit(f"{method}: {reply['error']}")
    return reply["result"]


if __name__ == "__main__":
    sys.exit(main())
