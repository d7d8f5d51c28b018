"""A PostgreSQL that somebody else runs, named by its DSN: used as it is, never started, stopped or killed."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from chaos.cluster import PostgresError, redacted, server_version


class DsnPostgres:
    """The cluster behind a DSN; start checks that it answers, stop leaves it alone."""

    kind = "dsn"
    can_kill = False

    def __init__(self, dsn: str, *, why: str) -> None:
        try:
            parts = conninfo_to_dict(dsn)
            self.dsn = make_conninfo(dsn, connect_timeout=parts.get("connect_timeout") or 5)
        except psycopg.Error:
            # libpq's own message would repeat the text, and with it the password.
            raise PostgresError(
                "the DSN is not valid: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or KEY=VALUE ..."
            ) from None
        self.why = why
        self.version = "unknown"

    def start(self) -> None:
        """Check that it answers; raises PostgresError, which names the DSN without its password."""
        try:
            self.version = server_version(self.dsn)
        except psycopg.Error as error:
            raise PostgresError(
                f"PostgreSQL at {redacted(self.dsn)} does not answer: {str(error).strip()}"
            ) from None

    def stop(self) -> None:
        """Nothing: it is not ours."""

    def kill(self) -> None:
        raise self._not_ours("killed")

    def restart_after_kill(self) -> float:
        raise self._not_ours("restarted")

    def pause(self) -> None:
        raise self._not_ours("paused")

    def resume(self) -> None:
        """Nothing: it is never paused."""

    def pids(self) -> list[int]:
        return []

    def _not_ours(self, what: str) -> PostgresError:
        return PostgresError(
            f"PostgreSQL at {redacted(self.dsn)} is not ours to be {what}: use --postgres embedded or docker"
        )
