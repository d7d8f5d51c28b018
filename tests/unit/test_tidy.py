"""The project's own laws, as far as a program can see them."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reports.invariants.registry import Invariant, load_registry

PROJECT = Path(__file__).resolve().parents[2]
CODE = ("reference_server", "scenarios", "chaos", "reports")
TOP_LEVEL = {
    *CODE,
    *("tests", "docs", "seatrial.py", "pyproject.toml", "requirements.lock", "Makefile"),
    *("README.md", "LICENSE", "CHANGELOG.md"),
}
KNOWN_DOTS = {".ci", ".github", ".gitignore"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
MODULE_LINES_MAX = 300
FUNCTION_LINES_MAX = 70


def committed() -> list[Path]:
    """The project's files: those that git knows, or, without git or a checkout, those that are there."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        made = {"runs", "build", "__pycache__", *(path.name for path in PROJECT.glob("*.egg-info"))}
        return [
            path
            for path in PROJECT.rglob("*")
            if path.is_file()
            and not made & set(path.relative_to(PROJECT).parts)
            and (path.parts[len(PROJECT.parts)] in KNOWN_DOTS or path.parts[len(PROJECT.parts)][0] != ".")
        ]
    return [PROJECT / name for name in listed.split("\0") if name and (PROJECT / name).is_file()]


FILES = committed()
MODULES = [path for path in FILES if path.suffix == ".py"]
OWN_MODULES = [path for path in MODULES if path.relative_to(PROJECT).parts[0] in (*CODE, "seatrial.py")]


def named(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_top_level_is_the_one_agreed() -> None:
    top = {path.relative_to(PROJECT).parts[0] for path in FILES}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_no_module_is_named_after_nothing() -> None:
    assert [named(path) for path in MODULES if path.stem in FORBIDDEN_NAMES] == []


@pytest.mark.parametrize("path", OWN_MODULES, ids=named)
def test_a_module_says_what_it_is_and_stays_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)

    assert (ast.get_docstring(tree) or "").strip(), "no first sentence"
    assert len(text.splitlines()) <= MODULE_LINES_MAX * 1.25, "split it along its nouns"
    long = [
        f"{node.name}: {node.end_lineno - node.lineno} lines"
        for node in functions(tree)
        if node.end_lineno is not None and node.end_lineno - node.lineno > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_sql_names_only_what_lower_files_define() -> None:
    defined: dict[str, int] = {}
    files = sorted((PROJECT / "reference_server" / "sql").glob("*.sql"))
    texts = [re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8")) for path in files]
    for number, text in enumerate(texts):
        for name in re.findall(r"CREATE (?:OR REPLACE )?(?:FUNCTION|TABLE|VIEW) (?:\w+\.)?(\w+)", text):
            defined.setdefault(name.lower(), number)
    assert len(defined) > 20

    forward = [
        f"{files[number].name} names {name} of {files[where].name}"
        for number, text in enumerate(texts)
        for name, where in defined.items()
        if where > number and re.search(rf"\b{name}\b\s*\(|\b(?:FROM|JOIN|INTO|UPDATE)\s+{name}\b", text)
    ]
    assert forward == []


def test_the_lock_has_hashes_and_names_no_index() -> None:
    lock = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==", lock, flags=re.MULTILINE)

    assert len(pinned) > 50
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert not re.search(r"https?://|file:|--index-url|--extra-index-url|--find-links", lock)


def test_no_file_names_a_machine_path() -> None:
    machine = re.compile(r"(?<![\w}.])/" + r"(?:work|root|home/\w+)/")
    named_paths = [
        f"{named(path)}: {found.group()}"
        for path in FILES
        if path.suffix in {".py", ".md", ".toml", ".sql", ".sh", ".yml", ".j2", ""} and path.name != "LICENSE"
        if (found := machine.search(path.read_text(encoding="utf-8", errors="replace")))
    ]
    assert named_paths == []


def test_a_sleep_says_what_bounds_it() -> None:
    silent = []
    for path in OWN_MODULES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if re.search(r"\b(?:time|asyncio|gevent)\.sleep\(", line):
                around = " ".join(lines[max(0, number - 6) : number + 2])
                if "#" not in around and not re.search(r"while .*(?:deadline|<)|deadline|timeout", around):
                    silent.append(f"{named(path)}, line {number + 1}: {line.strip()}")
    assert silent == []


def invariant_name(known: Invariant) -> str:
    return known.name


@pytest.mark.parametrize("known", load_registry(), ids=invariant_name)
def test_an_invariant_has_all_its_proofs(known: Invariant) -> None:
    """A golden pair, a canary, a planted bug and a place in the docs."""
    tests = PROJECT / "tests"
    golden = "".join(path.read_text() for path in (tests / "unit").glob("test_invariants_*.py"))
    planted = "".join(path.read_text() for path in (tests / "planted").glob("test_*.py"))
    patches = [path for path in (tests / "planted").glob(f"{known.name}.*") if path.suffix != ".pyc"]
    canary = PROJECT / "reports" / "canaries" / f"{known.name}.sql"

    assert known.statement.endswith((".", ":"))
    assert golden.count(known.name) >= 2, "no golden pair"
    assert patches or known.name in planted, "no planted bug"
    assert canary.is_file() == (known.group != "trial"), "no canary"
    assert f"`{known.name}`" in (PROJECT / "docs" / "verdict.md").read_text(), "not in the docs"
