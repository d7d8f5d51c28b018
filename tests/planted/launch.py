"""The reference server with one planted bug: `python -m tests.planted.launch INVARIANT install|serve|...`.

Takes the place of `python -m reference_server` in `seatrial run --server-command`. A bug is SQL that changes
the schema after `install`, or a module whose plant() changes the processes named in its COMMANDS, or both.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import psycopg

from reference_server.__main__ import COMMANDS
from reference_server.__main__ import main as reference_main
from reports.invariants.registry import load_registry

HERE = Path(__file__).parent
# patch_function(name, before, after): change a function's text, which must hold `before` exactly once.
PATCH_FUNCTION = """
CREATE FUNCTION pg_temp.patch_function(p_name regproc, p_before text, p_after text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_text text := pg_get_functiondef(p_name);
BEGIN
    IF (length(v_text) - length(replace(v_text, p_before, ''))) / length(p_before) <> 1 THEN
        RAISE EXCEPTION '% does not hold this text once: %', p_name, p_before;
    END IF;
    EXECUTE replace(v_text, p_before, p_after);
END
$$
"""


def planted_bugs() -> list[str]:
    """The invariants that have a planted bug: those that a file is named after."""
    named = {path.stem for path in HERE.iterdir() if path.suffix in (".sql", ".py", ".toml")}
    return [known.name for known in load_registry() if known.name in named]


def apply_sql(name: str, arguments: list[str]) -> None:
    """Run the SQL of a planted bug as the database's owner."""
    patch = HERE / f"{name}.sql"
    if not patch.is_file():
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    dsn = parser.parse_known_args(arguments)[0].dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(PATCH_FUNCTION)
        connection.execute(patch.read_text(encoding="utf-8").encode())


def plant(name: str, command: str) -> None:
    """Change this process, if the bug is one of processes and this is one of them."""
    if (HERE / f"{name}.py").is_file():
        module = importlib.import_module(f"tests.planted.{name}")
        if command in module.COMMANDS:
            module.plant()


def main(arguments: list[str]) -> int:
    """Run a command of the server with the bug; exit 2 when there is no such bug."""
    if len(arguments) < 2 or arguments[0] not in planted_bugs():
        usage = f"launch {'|'.join(planted_bugs())} {'|'.join(COMMANDS)} ..."
        print(f"usage: {usage}", file=sys.stderr)
        return 2
    name, command, *rest = arguments
    plant(name, command)
    code = reference_main([command, *rest])
    if command == "install" and code == 0:
        apply_sql(name, rest)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
