"""The choice of a PostgreSQL to run against, and to break: one of ours, or one that a DSN names."""

from __future__ import annotations

import os
from pathlib import Path

from chaos.cluster import Postgres, PostgresError
from chaos.postgres_dsn import DsnPostgres
from chaos.postgres_embedded import EmbeddedPostgres
from chaos.supervisor import Supervisor

__all__ = ["DSN_VARIABLE", "Postgres", "PostgresError", "choose_postgres"]

DSN_VARIABLE = "SEATRIAL_POSTGRES_DSN"
KINDS = ("auto", "docker", "embedded")


def choose_postgres(
    spec: str,
    *,
    supervisor: Supervisor,
    data_dir: Path,
    durable: bool = True,
    settings: dict[str, str] | None = None,
) -> Postgres:
    """The PostgreSQL that `spec` names: auto, docker, embedded or a DSN; not started yet.

    `settings` are added to those for load (durable) or for functional tests. Raises PostgresError.
    """
    asked = f"asked for with --postgres {spec}"
    if spec == "auto" and (dsn := os.environ.get(DSN_VARIABLE)):
        return DsnPostgres(dsn, why=f"the environment has {DSN_VARIABLE}")
    if spec in ("auto", "embedded"):
        return EmbeddedPostgres(
            supervisor=supervisor, data_dir=data_dir, why=asked, durable=durable, extra=settings
        )
    if "=" in spec or "://" in spec:
        return DsnPostgres(spec, why="asked for with --postgres and a DSN")
    raise PostgresError(f"--postgres {spec}: write {', '.join(KINDS)} or a DSN (postgresql://... )")
