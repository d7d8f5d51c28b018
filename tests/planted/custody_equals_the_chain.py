"""Whoever deploys the vault puts working capital into it, by a transfer that is in nobody's books."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from web3 import Web3

    from reference_server.chain.deploy import Deployment

COMMANDS = ("deploy",)
CAPITAL_MICRO = 300_000  # below what pauses trading


def plant() -> None:
    """Mint into the vault right after it was made."""
    # here and not above: web3 takes a second to import, in every process of the bug
    from reference_server.chain import deploy

    make = deploy.deploy_contracts

    def with_capital(web3: Web3, owner_key: str) -> Deployment:
        made = make(web3, owner_key)
        deploy.mint(web3, made.addresses, owner_key, to=made.addresses.vault, amount_micro=CAPITAL_MICRO)
        return made

    deploy.deploy_contracts = with_capital
