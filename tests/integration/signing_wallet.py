"""A wallet in a test: it signs messages and is linked over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount

from tests.integration.market_client import MarketClient, User, accepted

DOMAIN = "localhost"
CHAIN_ID = 31337


class SigningWallet:
    """An account whose key is a number, so that every test has its own."""

    def __init__(self, number: int) -> None:
        self.key = f"0x{number:064x}"
        self.account: LocalAccount = Account.from_key(self.key)
        self.checksummed: str = self.account.address
        self.address = self.checksummed.lower()

    def message(self, nonce: str, **changes: str) -> str:
        """A message as EIP-4361 has it."""
        said = {
            "domain": DOMAIN,
            "address": self.checksummed,
            "uri": f"https://{DOMAIN}/wallets",
            "chain_id": str(CHAIN_ID),
            "issued_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        } | changes
        return (
            f"{said['domain']} wants you to sign in with your Ethereum account:\n{said['address']}\n\n"
            f"Link this wallet; no money moves.\n\nURI: {said['uri']}\nVersion: 1\n"
            f"Chain ID: {said['chain_id']}\nNonce: {nonce}\nIssued At: {said['issued_at']}"
        )

    def signed(self, message: str) -> dict[str, Any]:
        """The body that links the wallet, if the message is right."""
        signature = self.account.sign_message(encode_defunct(text=message)).signature
        return {"message": message, "signature": "0x" + bytes(signature).hex()}

    def link(self, client: MarketClient, user: User, **changes: str) -> httpx.Response:
        """Ask for a nonce, sign a message, link."""
        return ask(client, user, self.signed(self.message(new_nonce(client, user), **changes)))


def new_nonce(client: MarketClient, user: User) -> str:
    """A nonce of this user's."""
    reply = client.ask("POST", "/api/wallets/nonces", token=user.token)
    nonce: str = accepted(reply)["nonce"]
    return nonce


def ask(client: MarketClient, user: User, body: dict[str, Any]) -> httpx.Response:
    """POST /api/wallets."""
    return client.ask("POST", "/api/wallets", body, token=user.token)
