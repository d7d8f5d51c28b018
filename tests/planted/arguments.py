"""What a planted bug in the server process may know of how it was started."""

from __future__ import annotations

import argparse
import sys


def dsn_of_server() -> str:
    """The DSN that the server was given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    dsn: str = parser.parse_known_args(sys.argv)[0].dsn
    return dsn
