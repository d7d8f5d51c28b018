"""`python -m reference_server.chain.compile [--check]`: compile the contracts, or compare with what is
committed.

The compiler and the EVM version are pinned and the metadata, which would name paths, is left out: the same
source is the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import sys

import msgspec

from reference_server.chain.contracts import FOLDER, NAMES, Contract

COMPILER = "0.4.3"
EVM_VERSION = "cancun"


class CompileError(Exception):
    """The contracts cannot be compiled here; says why."""


def compiled(name: str) -> bytes:
    """The JSON file of a contract, compiled from its source; raises CompileError."""
    try:
        import vyper
        from vyper.compiler.settings import OptimizationLevel, Settings
    except ImportError:
        raise CompileError(f"the compiler is not installed: pip install vyper=={COMPILER}") from None
    if vyper.__version__ != COMPILER:
        raise CompileError(f"vyper {vyper.__version__} is installed, the contracts are pinned to {COMPILER}")
    outputs = vyper.compile_code(
        (FOLDER / f"{name}.vy").read_text(),
        output_formats=["abi", "bytecode", "bytecode_runtime"],
        settings=Settings(evm_version=EVM_VERSION, optimize=OptimizationLevel.GAS),
        no_bytecode_metadata=True,
    )
    contract = Contract(
        compiler=f"vyper {COMPILER}",
        evm_version=EVM_VERSION,
        abi=outputs["abi"],
        bytecode=outputs["bytecode"],
        runtime_bytecode=outputs["bytecode_runtime"],
    )
    return msgspec.json.format(msgspec.json.encode(contract), indent=1) + b"\n"


def differing() -> list[str]:
    """The contracts whose committed file is not what their source compiles to; raises CompileError."""
    return [
        name
        for name in NAMES
        if not (FOLDER / f"{name}.json").exists() or (FOLDER / f"{name}.json").read_bytes() != compiled(name)
    ]


def main(words: list[str] | None = None) -> int:
    """Exit code 0, 1 when --check finds a difference, 2 when the compiler is missing or another one."""
    parser = argparse.ArgumentParser(prog="python -m reference_server.chain.compile", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    arguments = parser.parse_args(words)
    try:
        names = differing()
        if arguments.check:
            for name in names:
                print(f"{name}.json is not what {name}.vy compiles to", file=sys.stderr)
            return 1 if names else 0
        for name in names:
            (FOLDER / f"{name}.json").write_bytes(compiled(name))
            print(f"wrote {name}.json")
    except CompileError as error:
        print(f"compile: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
