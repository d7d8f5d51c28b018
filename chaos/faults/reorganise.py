"""The newest blocks of the chain replaced by others, in which some deposits are missing."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from chaos.faults.branch import Branch, Placed, left_out, read_branch
from chaos.faults.fault import Custody, FaultError, ProcessFault, World
from chaos.faults.on_chain import Wait, asking, custody_of, height_of, let_go, patience_s, until
from chaos.faults.owner import owner_connection
from chaos.http_messages import Evidence
from chaos.rpc import RpcError
from chaos.vault import receipt_of

CREDITED = """
SELECT tx_hash FROM books.deposits
 WHERE tx_hash = ANY(%s) AND block_hash = ANY(%s) AND status IN ('credited', 'suspended')
"""
# Money that the books have, or show, for a block that is no more.
RESTING = """
SELECT (SELECT count(*) FROM books.deposits WHERE block_hash = ANY(%(old)s) AND status <> 'reversed'),
       (SELECT count(*) FROM books.withdrawals WHERE block_hash = ANY(%(old)s))
"""
REVERSED = """
SELECT count(*) FROM books.deposits
 WHERE tx_hash = ANY(%s) AND block_hash = ANY(%s) AND status = 'reversed'
"""
# How long the books may take to credit what is deep enough while no block comes.
CREDIT_S_MAX = 3.0


class Reorganise(ProcessFault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Other blocks in place of the newest `depth`, without at most `drop` of the deposits in them.

    Everything else is put back where it was, but what the same senders sent after a deposit that is left
    out. Deeper than the plan's confirmations, it leaves out deposits that the books have credited. Waits at
    most `wait_s` for one. Healed when nothing in the books rests on a block that is gone; with `send_again`
    what was left out is sent to the node again before that, and mined in other blocks.

    No undo: a chain of ours ends with the harness, and its branches are all valid chains.
    """

    target = "chain"
    depth: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    drop: Annotated[int, msgspec.Meta(ge=0, le=100)] = 1
    send_again: bool = False
    wait_s: Wait = 10.0

    def check(self, world: World) -> None:
        custody_of(world)

    def inject(self, world: World) -> Evidence:
        custody = custody_of(world)
        with asking():
            branch, out = self._found(world, custody)
            self._check_contracts(custody, branch)
            raws = {
                one.tx_hash: custody.ask("eth_getRawTransactionByHash", one.tx_hash)
                for one in branch.transactions
            }
            missing = {one.tx_hash for one in out}
            kept = [one for one in branch.transactions if one.tx_hash not in missing]
            credited = set(self._credited(world, branch, out))
            custody.ask("anvil_reorg", self.depth, [[raws[one.tx_hash], one.place] for one in kept])
            new = read_branch(custody.ask, custody.vault, head=branch.head, depth=self.depth)
        if set(new.hashes) & set(branch.hashes):
            raise FaultError(f"the node was told to replace {self.depth} blocks and did not")
        there = {one.tx_hash for one in new.transactions}
        gone = [one for one in branch.transactions if one.tx_hash not in there]
        return {
            "depth": self.depth,
            "confirmations": custody.plan.confirmations,
            "first_block": branch.first,
            "head": branch.head,
            "old_hashes": branch.hashes,
            "new_hashes": new.hashes,
            "dropped": [one.tx_hash for one in gone if one.deposit],
            "gone": [{"tx_hash": one.tx_hash, "raw": raws[one.tx_hash]} for one in gone],
            "put_back": len(there & {one.tx_hash for one in branch.transactions}),
            "credited": [one.tx_hash for one in gone if one.tx_hash in credited],
        }

    def heal(self, world: World, landed: Evidence) -> Evidence:
        custody = custody_of(world)
        evidence = let_go(custody)
        if not landed:
            return evidence
        if self.send_again:
            evidence |= _send_again(custody, landed["gone"])
        old = landed["old_hashes"]
        timeout_s = patience_s(custody, blocks=landed["confirmations"])
        with owner_connection(world) as connection:

            def followed() -> bool | None:
                return connection.execute(RESTING, {"old": old}).fetchone() == (0, 0) or None

            if until(followed, timeout_s=timeout_s) is None:
                raise FaultError(f"the books still rest on blocks that are gone after {timeout_s:.0f} s")
            row = connection.execute(REVERSED, [landed["dropped"], old]).fetchone()
        assert row is not None
        return {**evidence, "reversed": row[0]}

    def _found(self, world: World, custody: Custody) -> tuple[Branch, list[Placed]]:
        """The newest blocks, held back with what is to be left out of them; raises FaultError, RpcError."""

        def look() -> tuple[Branch, list[Placed]] | None:
            custody.mining(False)
            head = height_of(custody)
            if head <= self.depth:
                raise FaultError(f"the chain has {head} blocks, and {self.depth} of them cannot be replaced")
            branch = read_branch(custody.ask, custody.vault, head=head, depth=self.depth)
            out = left_out(branch.transactions, self._wanted(world, custody, branch), self.drop)
            if out or self.drop == 0:
                return branch, out
            custody.mining(True)
            return None

        found = until(look, timeout_s=self.wait_s, poll_s=custody.plan.block_time_s / 2)
        if found is None:
            what = "credited deposit" if self._deep(custody) else "deposit"
            raise FaultError(f"no {what} in the newest {self.depth} blocks for {self.wait_s:.0f} s")
        return found

    def _wanted(self, world: World, custody: Custody, branch: Branch) -> list[str]:
        """The deposits that may be left out, oldest first."""
        deposits = [one for one in branch.transactions if one.deposit]
        if not self._deep(custody):
            return [one.tx_hash for one in deposits]
        deep_enough = self.depth - custody.plan.confirmations
        candidates = [one for one in deposits if one.place < deep_enough]
        if not candidates:
            return []
        until(lambda: True if self._credited(world, branch, candidates) else None, timeout_s=CREDIT_S_MAX)
        credited = set(self._credited(world, branch, candidates))
        return [one.tx_hash for one in candidates if one.tx_hash in credited]

    def _deep(self, custody: Custody) -> bool:
        return self.depth > custody.plan.confirmations

    def _credited(self, world: World, branch: Branch, transactions: list[Placed]) -> list[str]:
        hashes = [one.tx_hash for one in transactions]
        with owner_connection(world) as connection:
            rows = connection.execute(CREDITED, [hashes, branch.hashes]).fetchall()
        credited = {row[0] for row in rows}
        return [tx_hash for tx_hash in hashes if tx_hash in credited]

    def _check_contracts(self, custody: Custody, branch: Branch) -> None:
        """Raise FaultError when the blocks hold the vault's own beginning: it would be gone with them."""
        if custody.ask("eth_getCode", custody.vault, hex(branch.first - 1)) in ("0x", None):
            raise FaultError(f"block {branch.first} is from before the vault")


def _send_again(custody: Custody, gone: list[dict[str, Any]]) -> Evidence:
    """Send what was left out to the node once more, in its order, and wait until it is mined."""
    taken: list[str] = []
    refused: dict[str, str] = {}
    for one in gone:
        try:
            custody.ask("eth_sendRawTransaction", one["raw"])
            taken.append(one["tx_hash"])
        except RpcError as error:
            # its sender has used the nonce otherwise meanwhile
            refused[one["tx_hash"]] = str(error)

    def mined() -> dict[str, int] | None:
        receipts = {tx_hash: receipt_of(custody.ask, tx_hash) for tx_hash in taken}
        numbers = {tx_hash: int(found["blockNumber"], 16) for tx_hash, found in receipts.items() if found}
        return numbers if len(numbers) == len(taken) else None

    timeout_s = patience_s(custody, blocks=3)
    with asking():
        numbers = until(mined, timeout_s=timeout_s)
    if numbers is None:
        raise FaultError(f"what was sent again was not mined within {timeout_s:.0f} s: {taken}")
    return {"mined_again": numbers, "refused": refused}
