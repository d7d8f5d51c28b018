"""The embedded chain as a process: it comes back after a kill with all that anybody heard of."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chaos.chain import ChainError, ChainOptions, EmbeddedChain, choose_chain, find_anvil
from chaos.ports import free_port
from chaos.supervisor import ROOT, Supervisor
from tests.integration.chain_desk import ChainDesk, until

WAIT_S = 20.0


@pytest.fixture
def own_supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "run") as supervisor:
        yield supervisor


@pytest.fixture
def chain(own_supervisor: Supervisor, tmp_path: Path) -> EmbeddedChain:
    chain = choose_chain("embedded", supervisor=own_supervisor, data_dir=tmp_path / "chain")
    assert isinstance(chain, EmbeddedChain)
    chain.start()
    return chain


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """The command, when it is expected to end by itself."""
    command = [sys.executable, "-m", "reference_server.chain", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_everything_answered_for_is_there_after_a_kill(chain: EmbeddedChain) -> None:
    desk = ChainDesk(chain)
    senders = desk.accounts[:4]

    def send_some(index: int) -> list[str]:
        return [
            desk.send(senders[index], nonce=nonce, to=desk.accounts[9].address).to_0x_hex()
            for nonce in range(25)
        ]

    with ThreadPoolExecutor(len(senders)) as threads:
        hashes = [each for some in threads.map(send_some, range(len(senders))) for each in some]
    desk.rpc("anvil_reorg", 5, [])
    desk.give(desk.accounts[0], 77)
    head = desk.rpc("eth_getBlockByNumber", "latest", True)
    receipts = [desk.rpc("eth_getTransactionReceipt", each) for each in hashes]

    chain.kill()
    assert chain.pids() == []
    chain.restart_after_kill()

    assert desk.rpc("eth_getBlockByNumber", "latest", True) == head
    assert [desk.rpc("eth_getTransactionReceipt", each) for each in hashes] == receipts
    assert desk.balance_wei(desk.accounts[0].address) == 77 * 10**18
    assert desk.mined(desk.send(desk.accounts[0]))["blockNumber"] == int(head["number"], 16) + 1


def test_what_only_waited_is_lost_with_the_process(chain: EmbeddedChain) -> None:
    desk = ChainDesk(chain)
    waiting = desk.send(desk.accounts[0], nonce=1)
    assert desk.is_known(waiting)
    chain.kill()
    chain.restart_after_kill()
    assert not desk.is_known(waiting)


def test_a_torn_last_record_is_cut_off(chain: EmbeddedChain) -> None:
    desk = ChainDesk(chain)
    desk.mined(desk.send(desk.accounts[0]))
    head = desk.rpc("eth_getBlockByNumber", "latest", False)
    chain.kill()
    with (chain.data_dir / "blocks.log").open("ab") as log:
        log.write(b'0000abcd {"record":"block","hash":"12')
    chain.restart_after_kill()
    assert desk.rpc("eth_getBlockByNumber", "latest", False) == head
    later = desk.mined(desk.send(desk.accounts[0]))
    chain.kill()
    chain.restart_after_kill()
    assert desk.rpc("eth_blockNumber") == hex(later["blockNumber"])


def test_damage_inside_the_log_is_refused(chain: EmbeddedChain) -> None:
    desk = ChainDesk(chain)
    desk.rpc("anvil_mine", "0x3")
    chain.stop()
    path = chain.data_dir / "blocks.log"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"timestamp":1', b'"timestamp":2', 1)
    path.write_bytes(b"".join(lines))
    with pytest.raises(ChainError, match="damaged at byte"):
        chain.start()


def test_the_command_announces_itself_and_ends_in_order_when_asked(tmp_path: Path) -> None:
    options = ["--port", "0", "--data", str(tmp_path), "--seed", "5", "--accounts", "2", "--chain-id", "99"]
    with subprocess.Popen(
        [sys.executable, "-m", "reference_server.chain", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None
            line = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
            assert process.stdout.read() == b""
        finally:
            process.kill()
    assert line["chain_id"] == 99
    assert line["url"].startswith("http://127.0.0.1:")
    assert [set(account) for account in line["accounts"]] == [{"address", "private_key"}] * 2


def test_two_nodes_do_not_share_a_folder_or_a_port(chain: EmbeddedChain, tmp_path: Path) -> None:
    same_folder = run("--port", "0", "--data", str(chain.data_dir))
    assert (same_folder.returncode, "open in another process" in same_folder.stderr) == (2, True)
    same_port = run("--port", str(chain.port), "--data", str(tmp_path / "other"))
    assert (same_port.returncode, "in use" in same_port.stderr) == (2, True)


def test_a_chain_does_not_continue_under_other_options(chain: EmbeddedChain) -> None:
    chain.stop()
    other = run("--port", "0", "--data", str(chain.data_dir), "--chain-id", "5")
    assert (other.returncode, "began with other options" in other.stderr) == (2, True)


def test_blocks_come_at_the_block_time_from_the_beginning(own_supervisor: Supervisor, tmp_path: Path) -> None:
    chain = choose_chain(
        "embedded",
        supervisor=own_supervisor,
        data_dir=tmp_path / "chain",
        options=ChainOptions(block_time_s=0.05),
    )
    chain.start()
    desk = ChainDesk(chain)
    height = desk.height()
    until(lambda: desk.height() >= height + 5)
    chain.kill()
    chain.restart_after_kill()
    height = desk.height()
    until(lambda: desk.height() > height)


def test_the_accounts_are_a_function_of_the_seed(own_supervisor: Supervisor, tmp_path: Path) -> None:
    kinds = ["embedded"] + (["anvil"] if find_anvil() else [])
    for kind in kinds:
        found = []
        for number, seed in enumerate((1, 1, 2)):
            chain = choose_chain(
                kind,
                supervisor=own_supervisor,
                data_dir=tmp_path / f"{kind}{number}",
                options=ChainOptions(seed=seed),
            )
            chain.start()
            found.append(chain.accounts)
            chain.stop()
        assert found[0] == found[1] != found[2]
        assert len(found[0]) == 10


def test_a_chain_of_somebody_else_is_used_and_left_alone(
    chain: EmbeddedChain, own_supervisor: Supervisor, tmp_path: Path
) -> None:
    other = choose_chain(chain.url, supervisor=own_supervisor, data_dir=tmp_path)
    other.start()
    assert (other.kind, other.chain_id, other.pids()) == ("url", chain.chain_id, [])
    other.stop()
    with pytest.raises(ChainError, match="not ours to be killed"):
        other.kill()
    assert ChainDesk(chain).height() == 0


def test_a_chain_that_cannot_be_had_says_what_to_do(own_supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(ChainError, match="embedded, anvil or a URL"):
        choose_chain("ganache", supervisor=own_supervisor, data_dir=tmp_path)
    nobody = choose_chain(
        f"http://127.0.0.1:{free_port()}/secret", supervisor=own_supervisor, data_dir=tmp_path
    )
    with pytest.raises(ChainError, match="does not answer") as caught:
        nobody.start()
    assert "secret" not in str(caught.value)
