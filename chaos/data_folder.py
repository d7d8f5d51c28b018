"""Where a PostgreSQL of ours keeps its data: a scratch folder, and in it one that is the server's alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from chaos.cluster import PostgresError
from chaos.postgres_binaries import Account

# Only a folder of this name is opened to the server's user.
SCRATCH_PREFIX = "seatrial-"


def make_scratch(purpose: str = "") -> Path:
    """A new folder in SEATRIAL_DATA_DIR or /var/tmp, which its caller removes; raises PostgresError."""
    place = os.environ.get("SEATRIAL_DATA_DIR", "/var/tmp")
    try:
        return Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX + purpose, dir=place))
    except OSError as error:
        raise PostgresError(
            f"no scratch folder can be made in {place}: {error.strerror}; name another place in"
            " SEATRIAL_DATA_DIR"
        ) from None


def make_data_folder(folder: Path, account: Account, *, free_mb: int) -> None:
    """Make it, empty and the account's own; raises PostgresError where that cannot be."""
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and any(folder.iterdir()):
            raise PostgresError(f"{folder} is not empty: PostgreSQL needs a new data folder")
        _check_disk(parent, needed_mb=free_mb)
        folder.mkdir(mode=0o700, exist_ok=True)
        if account.uid is not None and account.gid is not None:
            _let_in(account, parent)
            os.chown(folder, account.uid, account.gid)
        folder.chmod(0o700)
    except OSError as error:
        raise PostgresError(
            f"cannot make the data folder {folder}: {error}; name another place in SEATRIAL_DATA_DIR"
        ) from None
    if blocked := account.blocked_at(folder):
        raise PostgresError(
            f"the server runs as user `nobody`, who may not pass through {blocked}: name a folder that"
            " everybody can enter in SEATRIAL_DATA_DIR"
        )


def _check_disk(folder: Path, *, needed_mb: int) -> None:
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    if free_mb < needed_mb:
        raise PostgresError(
            f"{folder} has {free_mb} MB free, PostgreSQL needs {needed_mb} MB: make room, or name another"
            " place in SEATRIAL_DATA_DIR"
        )


def _let_in(account: Account, folder: Path) -> None:
    """Let the server's group pass through our own scratch folder (made 0700); nobody else's is touched."""
    ours = folder.name.startswith(SCRATCH_PREFIX) and folder.stat().st_uid == os.geteuid()
    if ours and not account.can_enter(folder) and account.gid is not None:
        os.chown(folder, -1, account.gid)
        folder.chmod(0o710)
