"""`python -m reference_server.chain`: an embedded development chain on loopback, until SIGTERM.

When it can be asked it prints one line of JSON: its url, its chain id, and the development accounts with
their keys. All of them are functions of the seed; nothing of value belongs on such a chain.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from reference_server.chain.block_log import BlockLogError, GenesisRecord
from reference_server.chain.machine import MachineError
from reference_server.chain.node import Node
from reference_server.chain.serve import BACKLOG, serve

HOST = "127.0.0.1"
WEI = 10**18

log = logging.getLogger("reference_server.chain")


def main(words: list[str] | None = None) -> int:
    """The exit code is 0 after a signal, 2 with a message when the chain cannot be opened or served."""
    arguments = parse(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    started = time.monotonic()
    try:
        # The port first: clients that connect while the log is replayed wait instead of being refused.
        with listen(arguments.port) as listener:
            node = open_node(arguments)
            log.info("block %d after %.2f s", node.chain.head.number, time.monotonic() - started)
            try:
                uvloop.run(
                    serve(
                        node,
                        listener,
                        block_time_s=arguments.block_time,
                        ready=lambda: announce(node, listener, arguments.ready_file),
                    )
                )
            finally:
                node.close()
    except (BlockLogError, MachineError, OSError) as error:
        print(f"reference_server.chain: {error}", file=sys.stderr)
        return 2
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m reference_server.chain", description=__doc__)
    parser.add_argument("--port", type=int, default=8545, help="on 127.0.0.1 (default: %(default)s)")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the chain; made if it is not there"
    )
    parser.add_argument("--chain-id", type=int, default=31_337, help="(default: %(default)s)")
    parser.add_argument(
        "--block-time",
        type=float,
        default=0,
        help="seconds between blocks (default: a block per transaction)",
    )
    parser.add_argument("--no-mining", action="store_true", help="make blocks only when asked to")
    parser.add_argument("--seed", type=int, default=0, help="of the accounts' keys (default: %(default)s)")
    parser.add_argument("--accounts", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument(
        "--balance", type=int, default=10_000, help="of each, in ether (default: %(default)s)"
    )
    parser.add_argument(
        "--slots-in-an-epoch",
        type=int,
        default=32,
        help="blocks until the head is safe; after twice as many it is final (default: %(default)s)",
    )
    parser.add_argument("--ready-file", type=Path, help="where to write the line that is printed when ready")
    arguments = parser.parse_args(words)
    if not 0 <= arguments.port <= 65_535:
        parser.error("--port: from 0 to 65535")
    if not 0 <= arguments.block_time <= 86_400:
        parser.error("--block-time: from 0 to a day")
    if arguments.chain_id < 1 or arguments.slots_in_an_epoch < 0 or not 0 <= arguments.accounts <= 1_000:
        parser.error("--chain-id from 1, --slots-in-an-epoch from 0, --accounts from 0 to 1000")
    return arguments


def listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        # To take the port over at once from a node that was killed.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def open_node(arguments: argparse.Namespace) -> Node:
    """The node of the data folder; raises BlockLogError when that holds a chain with another beginning."""
    genesis = GenesisRecord(
        chain_id=arguments.chain_id,
        seed=arguments.seed,
        accounts=arguments.accounts,
        balance_wei=str(arguments.balance * WEI),
        timestamp=int(time.time()),
        slots_in_an_epoch=arguments.slots_in_an_epoch,
    )
    automine = not arguments.no_mining and not arguments.block_time
    node = Node(arguments.data, genesis, automine=automine)
    found = node.chain.genesis
    if msgspec.structs.replace(found, timestamp=genesis.timestamp) != genesis:
        node.close()
        raise BlockLogError(f"{arguments.data} holds a chain that began with other options: {found}")
    return node


def announce(node: Node, listener: socket.socket, ready_file: Path | None) -> None:
    """Say in one line how to reach the chain, and whose keys have money."""
    announcement = {
        "url": f"http://{HOST}:{listener.getsockname()[1]}",
        "chain_id": node.chain.genesis.chain_id,
        "accounts": [
            {"address": account.address, "private_key": account.private_key}
            for account in node.chain.accounts
        ],
    }
    line = msgspec.json.encode(announcement)
    if ready_file is not None:
        # Renamed into place: who sees the file sees all of it.
        unfinished = ready_file.with_suffix(".unfinished")
        unfinished.write_bytes(line)
        unfinished.replace(ready_file)
    print(line.decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
