"""`python -m reference_server deploy`: the dollar and the vault onto a chain, for trials and development.

The key's account owns the dollar, and so can mint, and operates the vault. It is read from the environment
and is neither printed nor kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `deploy`."""
    parser.add_argument("--rpc", metavar="URL", required=True, help="JSON-RPC endpoint")
    parser.add_argument(
        "--key-env",
        metavar="NAME",
        required=True,
        help="environment variable with the private key of who will own and operate the contracts",
    )


def run(options: argparse.Namespace) -> int:
    """Deploy and print where; 2 with a message when the key is none, or the node is away or refuses."""
    key = os.environ.get(options.key_env)
    if not key:
        print(f"deploy: ${options.key_env} is to hold the owner's key", file=sys.stderr)
        return 2
    # web3 takes a second to import
    from reference_server.chain.connection import ChainError, account_of, connect
    from reference_server.chain.deploy import deploy_contracts

    try:
        account_of(key)
    except ValueError:
        # without the cause: it has the key in it
        print(f"deploy: ${options.key_env} is not a private key", file=sys.stderr)
        return 2
    try:
        made = deploy_contracts(connect(options.rpc), key)
    except ChainError as error:
        print(f"deploy: the node: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"usdc": made.addresses.usdc, "vault": made.addresses.vault, "block": made.block}))
    return 0
