"""The committed contracts are what their sources compile to, byte for byte."""

from __future__ import annotations

import pytest

from reference_server.chain import compile as compiler
from reference_server.chain.contracts import FOLDER, NAMES, load_contract


def test_the_committed_bytecode_is_what_the_sources_compile_to(capsys: pytest.CaptureFixture[str]) -> None:
    code = compiler.main(["--check"])
    assert (code, capsys.readouterr().err) == (0, "")


def test_every_source_is_compiled_and_every_file_has_its_source() -> None:
    assert {path.stem for path in FOLDER.glob("*.vy")} == set(NAMES)
    assert {path.stem for path in FOLDER.glob("*.json")} == set(NAMES)


def test_a_difference_is_found_and_the_pins_are_in_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        source = (FOLDER / f"{name}.vy").read_text()
        assert f"# pragma version {compiler.COMPILER}\n" in source
        assert f"# pragma evm-version {compiler.EVM_VERSION}\n" in source
        assert load_contract(name).evm_version == compiler.EVM_VERSION
    monkeypatch.setattr(compiler, "compiled", lambda name: b"other" if name == "Vault" else b"")
    assert set(compiler.differing()) == set(NAMES)
    assert compiler.main(["--check"]) == 1
