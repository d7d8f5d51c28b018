"""The custody: what the vault holds at the block that the books have read up to, asked of a node.

At another block it could not be compared: the books do not know what the chain did there. Where nobody
watches the chain yet, it is the newest block.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import psycopg

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


class View(NamedTuple):
    """The chain as the watcher wrote it down: up to this block."""

    number: int
    hash: str
    chain_id: int
    vault: str


class Custody(NamedTuple):
    """What the vault holds at one block, or why that is not known; the view where the block is the books'."""

    micro: int | None
    block: int | None
    trouble: str | None = None
    view: View | None = None


class Vault(NamedTuple):
    """The node to ask, and the contracts to ask about."""

    rpc: str
    vault: str
    usdc: str


def view_of_books(connection: Connection) -> View | None:
    """How far the books have read the chain; None: nobody watches it."""
    row = connection.execute("SELECT head_number, head_hash, chain_id, vault FROM watched_chain").fetchone()
    return View(*row) if row else None


def ask_custody(vault: Vault, view: View | None) -> Custody:
    """The custody at the view's block; whatever the node does not do is trouble and no error."""
    # web3 takes a second to import, and a custody that is given needs none of it
    from reference_server.chain.client import Addresses, CustodyClient
    from reference_server.chain.connection import ChainError, connect

    try:
        client = CustodyClient(connect(vault.rpc), Addresses(usdc=vault.usdc, vault=vault.vault))
        if view is None:
            newest = client.block()
            if newest is None:
                return Custody(None, None, "the node has no block")
            return Custody(client.custody_balance(newest.number), newest.number)
        if (client.chain_id, vault.vault.lower()) != (view.chain_id, view.vault):
            return Custody(None, None, f"the books watch vault {view.vault} on chain {view.chain_id}")
        if client.block(view.number) is None:
            return Custody(None, view.number, f"the node lags: it does not have block {view.number}")
        micro = client.custody_balance(view.number)
        # looked at afterwards: it was the balance of this block, and not of one that took its place
        found = client.block(view.number)
    except ChainError as error:
        return Custody(None, None, f"the node: {error}")
    except (AttributeError, KeyError, TypeError) as error:
        # what web3 raises on an answer that is none; it must not end as an exit code that says "alert"
        return Custody(None, None, f"the node answers nonsense: {type(error).__name__}: {error}")
    if found is None or found.hash != view.hash:
        return Custody(None, view.number, f"the node and the books see different blocks {view.number}")
    return Custody(micro, view.number, None, view)
