"""`deploy` as a trial runs it: a process, its exit code, and a line of JSON that the other commands take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from eth_account import Account
from web3 import Web3

from chaos.chain import Chain, ChainOptions, choose_chain
from chaos.ports import free_port
from chaos.supervisor import Supervisor
from chaos.target import REFERENCE_COMMAND
from reference_server.chain.client import Addresses, CustodyClient
from reference_server.chain.connection import account_of, connect, suggested_fees
from reference_server.chain.deploy import deposit, mint
from tests.conftest import MarketDatabase
from tests.integration.chain_desk import KINDS, until
from tests.integration.relay_process import relay_dsn, wait_until

TIMEOUT_S = 60
VARIABLE = "KEY_OF_A_TEST"
USDC = 1_000_000


@pytest.fixture(scope="module", params=KINDS)
def chain(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Chain]:
    """A chain with a block now and then, as in a trial."""
    folder = scratch / f"deploy_{request.param}"
    with Supervisor(folder) as supervisor:
        options = ChainOptions(seed=5, block_time_s=0.2)
        chain = choose_chain(request.param, supervisor=supervisor, data_dir=folder / "data", options=options)
        chain.start()
        yield chain
        chain.stop()


def deploy(rpc: str, key: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        [*REFERENCE_COMMAND, "deploy", "--rpc", rpc, "--key-env", VARIABLE],
        env=environment | ({} if key is None else {VARIABLE: key}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_the_contracts_are_where_it_says_from_that_block_on(
    chain: Chain, market_database: MarketDatabase, supervisor: Supervisor
) -> None:
    key = chain.accounts[0].private_key
    ran = deploy(chain.url, key)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert key.removeprefix("0x") not in ran.stdout
    made = json.loads(ran.stdout)
    assert list(made) == ["usdc", "vault", "block"]
    web3, addresses = connect(chain.url), Addresses(usdc=made["usdc"], vault=made["vault"])
    vault = Web3.to_checksum_address(made["vault"])
    assert web3.eth.get_code(vault, made["block"] - 1) == b""
    assert web3.eth.get_code(vault, made["block"]) != b""
    client = CustodyClient(web3, addresses, operator_key=key)
    mint(web3, addresses, key, to=account_of(key).address, amount_micro=USDC)
    deposit(web3, addresses, key, user_id="ann", amount_micro=USDC)
    word = b"\1" * 32
    fees = suggested_fees(web3)
    client.send_withdrawal(word, account_of(key).address, USDC, nonce=client.next_nonce(), fees=fees)
    until(lambda: client.find_withdrawal(word) is not None)
    command = [*REFERENCE_COMMAND, "watch", "--dsn", relay_dsn(market_database), "--rpc", chain.url]
    command += ["--vault", made["vault"], "--usdc", made["usdc"], "--from-block", str(made["block"])]
    watcher = supervisor.spawn(f"watch-{uuid4()}", command, critical=False)
    wait_until(lambda: "watching" in watcher.log_tail(1_000) or not watcher.alive, "the watcher watches")
    watcher.signal(signal.SIGTERM)
    assert watcher.wait(10.0) == 0, watcher.log_tail()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (None, f"${VARIABLE} is to hold the owner's key"),
        ("", f"${VARIABLE} is to hold the owner's key"),
        ("secret", f"${VARIABLE} is not a private key"),
        ("0x" + "0" * 64, f"${VARIABLE} is not a private key"),
        ("0x" + "f" * 64, f"${VARIABLE} is not a private key"),
    ],
)
def test_without_a_key_nothing_is_asked_of_the_node(key: str | None, said: str) -> None:
    ran = deploy(f"http://127.0.0.1:{free_port()}", key)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert said in ran.stderr
    assert "secret" not in ran.stderr
    assert "0" * 64 not in ran.stderr


def test_a_node_that_is_away_or_refuses_is_said_so(chain: Chain) -> None:
    away = deploy(f"http://127.0.0.1:{free_port()}", chain.accounts[0].private_key)
    poor = deploy(chain.url, Account.from_key(b"\7" * 32).key.hex())
    for ran in (away, poor, deploy("nonsense", chain.accounts[0].private_key)):
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr.startswith("deploy: the node: ")
        assert "Traceback" not in ran.stderr
    assert "insufficient funds" in poor.stderr.lower()
