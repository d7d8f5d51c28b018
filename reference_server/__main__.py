"""The command line of the reference server: `install` the schema, `serve` the API, `relay` the outbox."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

COMMANDS = {
    "install": "install the schema and its roles into a database; print how to connect as JSON",
    "deploy": "put the dollar and the vault on a development chain; print where they are as JSON",
    "serve": "serve the HTTP API until SIGTERM",
    "relay": "deliver the events of the outbox until SIGTERM",
    "watch": "book deposits and payments of the vault on the chain until SIGTERM",
    "reconcile": "hold the books against the chain; a drift is an alert or stops trading",
    "pause": "stop all money",
    "resume": "let money move again, as an administrator, after a clean reconciliation",
    "dead-letters": "list events that could not be delivered, or have them delivered again",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; each lives in the module of its name, imported only when asked for."""
    parser = argparse.ArgumentParser(prog="python -m reference_server", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = sys.argv[1:] if arguments is None else arguments
    asked = words[0] if words else None
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        if name == asked:
            module = import_module(f"reference_server.{name.replace('-', '_')}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(words)
    code: int = options.run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
