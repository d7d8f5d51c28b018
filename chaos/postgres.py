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
    if "=" in spec or "://" in spec:
        return DsnPostgres(spec, why="asked for by its DSN")
    if spec not in KINDS:
        raise PostgresError(f"--postgres {spec}: write {', '.join(KINDS)} or a DSN (postgresql://...)")
    why = f"asked for with --postgres {spec}"
    if spec == "auto":
        if dsn := os.environ.get(DSN_VARIABLE):
            return DsnPostgres(dsn, why=f"named by {DSN_VARIABLE}")
        spec, why = _docker_or_embedded()
    if spec == "docker":
        from chaos.postgres_docker import DockerPostgres

        return DockerPostgres(supervisor=supervisor, why=why, durable=durable, extra=settings)
    return EmbeddedPostgres(
        supervisor=supervisor, data_dir=data_dir, why=why, durable=durable, extra=settings
    )


def _docker_or_embedded() -> tuple[str, str]:
    """Which of the two this machine can have, and why."""
    # Docker's client is slow to import, and not needed by who asks for the embedded server.
    from chaos.docker_engine import engine_trouble, image_name, image_trouble

    image = image_name()
    trouble = engine_trouble() or image_trouble(image)
    if trouble is None:
        return "docker", f"a Docker engine answers and has the image {image}"
    return "embedded", trouble
