#!/usr/bin/env python3
"""All checks, tests and errands of the project.

``python3 noxfile.py`` runs everything that CI runs, and ``python3 noxfile.py -s demo`` the demonstration; ``-l`` lists
the rest, and what follows ``--`` goes to the tool (``python3 noxfile.py -s tests-3.12 -- tests/db -x``). nox need not
be installed: run as a script, this file installs it into ``.venv`` and starts it.

- There is one test session for each CPython, and one for each major version of PostgreSQL, that this machine has.
- Every test runs in one of these sessions, on the oldest Python. The others leave out the heavy ones, which take many
  processes, servers of their own or many rounds, unless tests are named (``-s tests-3.13 -- tests`` runs all). Pythons
  between the oldest and the newest leave out uvloop, too.
- Environments are kept in ``.nox`` and used again until ``pyproject.toml`` changes.
- The tests run with the versions that ``tools/tests.lock`` names, each file checked by its hash.
- Installations print what pip prints: a minute of silence looks like a hang.
"""

from __future__ import annotations

import hashlib
import os
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, ROOT)

if __name__ == "__main__":
    from tools.bootstrap import main

    sys.exit(main(sys.argv[1:]))

import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import nox

from tools.machine import find_postgres, find_pythons

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = find_pythons() or {"%d.%d" % sys.version_info[:2]: sys.executable}
POSTGRES = find_postgres()
OLDEST, *OTHERS = PYTHONS
NEWEST = [OLDEST, *OTHERS][-1]

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"  # makes environments where Debian's ensurepip is missing, too
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = [
    "lint",
    "typing",
    "docs",
    "package",
    *(f"postgres-{major}" for major in POSTGRES),
    # An installed PostgreSQL is served by the newest Python: with one, both are tested in one run.
    *(f"tests-{version}" for version in (OTHERS[:-1] if POSTGRES else OTHERS)),
    "coverage",  # the tests on the oldest Python
]

#: The sessions that leave out the heavy tests: all but the one that measures coverage.
LIGHT = [name for name in nox.options.sessions if name.startswith(("tests-", "postgres-"))]
#: Those of them that leave out uvloop, which the Pythons at both ends are tested with.
WITHOUT_UVLOOP = [f"tests-{version}" for version in OTHERS[:-1]]

#: Most tests wait for something: eight at a time keep two cores busy.
PARALLEL = ("-n", "8", "--dist", "worksteal", "--durations", "25")

#: What the tests install: every version, with the hashes of its files, for all Pythons and platforms.
LOCK = "tools/tests.lock"

#: Rules of flake8-async that we do not follow: how anyio is imported (106), parameters called timeout (109), a list of
#: all startable functions (114), async functions without an await (124: handlers are async by kind), ``task_status``
#: passed on (128), a checkpoint in every function (9xx).
NOT_OURS = ("ASYNC106", "ASYNC109", "ASYNC114", "ASYNC124", "ASYNC128", "ASYNC9")


def prepare(session: nox.Session, *groups: str, extras: str | None = None) -> None:
    """Install dependency groups, and the package as it stands, into a session's environment, unless they are there.

    :param groups: names of ``[dependency-groups]``
    :param extras: extras of the package; ``None`` means that the session does not need the package
    """
    wanted = [*nox.project.dependency_groups(PROJECT, *groups)]
    if extras is not None:
        wanted += ["--editable", f".[{extras}]" if extras else "."]
    install_once(session, "\n".join(wanted), wanted)


def prepare_tests(session: nox.Session) -> None:
    """Install what the tests need, and the package as it stands, into a session's environment, unless they are there.

    The lock names every version, and pip refuses each file whose hash it does not name. Nothing else is downloaded: the
    package is built by what the lock has installed.
    """
    install_once(
        session,
        Path(LOCK).read_text("utf-8"),
        ["--require-hashes", "--requirement", LOCK],
        ["--no-deps", "--no-build-isolation", "--editable", "."],
    )
    # Hundreds of processes import the package; each would compile it anew where Python is told not to keep that.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""


def install_once(session: nox.Session, state: str, *installations: Sequence[str]) -> None:
    """Have pip install, unless that was done before for the same state of the project."""
    # The place is part of it: an editable installation points to it, and a copied environment to the original.
    state = "\n".join([state, ROOT, Path("pyproject.toml").read_text("utf-8")])
    digest = hashlib.sha256(state.encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / "prepared"
    if stamp.exists() and stamp.read_text() == digest:
        return
    stamp.unlink(missing_ok=True)
    for arguments in installations:
        session.install(*arguments, silent=False)
    stamp.write_text(digest)


def empty_directory(session: nox.Session) -> str:
    """Where a session gathers results; empty. What nox's ``create_tmp`` makes, the tests would take for their own."""
    directory = Path(session.virtualenv.location, "results")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return str(directory)


def chosen_tests(session: nox.Session) -> list[str]:
    """Which tests a session runs, and how, in pytest's words."""
    if session.posargs:
        return [*PARALLEL, *session.posargs]
    if session.name not in LIGHT:
        return [*PARALLEL, "--promises"]
    return [*PARALLEL, "-m", "not heavy", *(["-k", "not uvloop"] if session.name in WITHOUT_UVLOOP else [])]


def run_tests(session: nox.Session) -> None:
    """The test suite, against the embedded PostgreSQL."""
    prepare_tests(session)
    session.run("python", "-m", "pytest", *chosen_tests(session))


def run_tests_on_postgres(session: nox.Session) -> None:
    """The test suite, against an installed PostgreSQL."""
    major = int(session.name.rpartition("-")[2])
    prepare_tests(session)
    session.run("python", "-m", "pytest", f"--postgres-bin={POSTGRES[major]}", *chosen_tests(session))


for _version, _python in PYTHONS.items():
    nox.session(name=f"tests-{_version}", python=_python)(run_tests)
for _major in POSTGRES:
    nox.session(name=f"postgres-{_major}", python=PYTHONS[NEWEST])(run_tests_on_postgres)


@nox.session(python=PYTHONS[OLDEST])
def coverage(session: nox.Session) -> None:
    """The test suite on the oldest Python, and how much of the package it runs, child processes included."""
    prepare_tests(session)
    session.env["COVERAGE_FILE"] = os.path.join(ROOT, session.virtualenv.location, "data")  # with its hundreds of parts
    session.run("python", "-m", "coverage", "erase")
    session.run("python", "-m", "coverage", "run", "-m", "pytest", *chosen_tests(session))
    session.run("python", "-m", "coverage", "combine", "--quiet")
    session.run("python", "-m", "coverage", "report", *(["--fail-under=0"] if session.posargs else []))


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, the rules of structured concurrency, and the layers."""
    prepare(session, "lint")
    session.run("python", "-m", "ruff", "format", "--check")
    session.run("python", "-m", "ruff", "check")
    sources = [str(path) for path in sorted(Path("pgq_anyio").rglob("*.py"))]
    session.run("flake8-async", "--anyio", "--enable=ASYNC", f"--disable={','.join(NOT_OURS)}", *sources)
    session.run("lint-imports", "--no-cache")


@nox.session(python=PYTHONS[OLDEST])
def typing(session: nox.Session) -> None:
    """Check types: mypy on everything, pyright on what users see."""
    prepare(session, "typing", extras="")
    session.run("python", "-m", "mypy")
    session.run("python", "-m", "pyright", "--verifytypes", "pgq_anyio", "--ignoreexternal")


@nox.session(python=PYTHONS[OLDEST])
def docs(session: nox.Session) -> None:
    """Build the documentation into ``site``. A broken link, or a name that is not documented, is an error."""
    prepare(session, "docs", extras="")
    session.run("python", "-m", "mkdocs", "build", "--strict", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Build the source archive, from it the wheel, and look whether every file of the package is in it."""
    prepare(session, "package")
    target = Path(session.create_tmp())
    for old in target.glob("*.whl"):
        old.unlink()
    session.run("python", "-m", "build", "--no-isolation", f"--outdir={target}", ROOT)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = {path.as_posix() for path in Path("pgq_anyio").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    if files - packed:
        session.error(f"not in the wheel: {', '.join(sorted(files - packed))}")


@nox.session(python=PYTHONS[OLDEST], default=False)
def model(session: nox.Session) -> None:
    """Try many more interleavings and rounds at random than the tests do: about twenty minutes."""
    prepare_tests(session)
    chosen = session.posargs or ["tests/model", "tests/peer_bugs", "tests/fuzz", "tests/worker/test_every_point.py"]
    session.run("python", "-m", "pytest", "--hypothesis-profile=long", *chosen)


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """Run the examples as their readers would; the test suite has them too."""
    prepare_tests(session)
    session.run("python", "-m", "pytest", "tests/examples", *session.posargs)


@nox.session(default=False)
def figures(session: nox.Session) -> None:
    """Hold the times that the promises name exactly: on a machine that does nothing else."""
    prepare_tests(session)
    session.run("python", "-m", "pytest", "--figures", "-m", "figures", *session.posargs)


@nox.session(python=PYTHONS[OLDEST], default=False)
def stress(session: nox.Session) -> None:
    """The tests of all promises many times in a row, beside a process that keeps a core busy: hours.

    PGQ_ANYIO_TEST_STRESS_ROUNDS changes how often (20). The first round with a failure is the last one. The soak and
    the fault scenarios are left out: they are a load by themselves, and have sessions of their own.
    """
    prepare_tests(session)
    rounds = int(os.environ.get("PGQ_ANYIO_TEST_STRESS_ROUNDS", "20"))
    chosen = ("-m", "promise", "--ignore=tests/faults", "--ignore=tests/soak")
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for number in range(1, rounds + 1):
            session.log(f"round {number} of {rounds}")
            session.run("python", "-m", "pytest", *chosen, *PARALLEL, *session.posargs)
    finally:
        burner.kill()
        burner.wait()


@nox.session(python=PYTHONS[OLDEST], default=False)
def faults(session: nox.Session) -> None:
    """Kill, freeze, cut off and restart workers and servers, many times; the table goes into docs/reliability.md.

    Two scenarios at a time, as most of each is waiting: half an hour. With tests named (``-s faults --
    tests/faults/test_server.py``) the other rows stay as they are.
    """
    prepare_tests(session)
    rows = empty_directory(session)
    form = {"PGQ_ANYIO_TEST_FAULTS": "long", "PGQ_ANYIO_TEST_FAULT_ROWS": rows}
    chosen = session.posargs or ["-n", "2", "--dist", "worksteal", "tests/faults"]
    session.run("python", "-m", "pytest", *chosen, env=form)
    session.run("python", "-m", "tests.faults.report", rows, *([] if session.posargs else ["--whole"]))


@nox.session(python=PYTHONS[OLDEST], default=False)
def soak(session: nox.Session) -> None:
    """Jobs of all kinds and a fault every 20 s, for 30 minutes; the tables go into docs/reliability.md.

    PGQ_ANYIO_TEST_SOAK_MINUTES and PGQ_ANYIO_TEST_SOAK_RATE (2,000 jobs in a second) change the size.
    """
    prepare_tests(session)
    results = empty_directory(session)
    form = {"PGQ_ANYIO_TEST_SOAK_ROWS": results}
    form["PGQ_ANYIO_TEST_SOAK_MINUTES"] = os.environ.get("PGQ_ANYIO_TEST_SOAK_MINUTES", "30")
    session.run("python", "-m", "pytest", "-s", "tests/soak", *session.posargs, env=form)
    session.run("python", "-m", "tests.soak.report", results)


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Write the newest versions that the tests may run with, and their hashes, into the lock. Look at what changes."""
    prepare(session, "lock")
    groups = [f"--group={name}" for name in ("test", "build")]
    extras = [f"--extra={name}" for name in ("embedded", "uvloop")]
    text = ["--no-annotate", "--no-emit-index-url", "--no-emit-find-links", f"--output-file={LOCK}"]
    text += ["--custom-compile-command=python3 noxfile.py -s lock"]
    wanted = ["--universal", "--generate-hashes", "--upgrade", f"--python-version={OLDEST}", *groups, *extras]
    session.run("uv", "pip", "compile", "--quiet", "pyproject.toml", *wanted, *text, *session.posargs)


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Show the queue at work on a database of its own. Leaves nothing behind."""
    prepare(session, extras="embedded,uvloop")
    # After Ctrl-C the demonstration stops its workers and its server; nox would kill it after half a second.
    session.run("pgq-anyio", "demo", *session.posargs, interrupt_timeout=30, terminate_timeout=10)


@nox.session(python=PYTHONS[OLDEST], default=False)
def bench(session: nox.Session) -> None:
    """Measure all figures beside other queues, on its own database: an hour or so. What follows "--" names figures."""
    run_benchmarks(session)


@nox.session(name="bench-quick", python=PYTHONS[OLDEST], default=False)
def bench_quick(session: nox.Session) -> None:
    """Measure all figures in a small size: three minutes."""
    run_benchmarks(session, "--quick")


def run_benchmarks(session: nox.Session, *options: str) -> None:
    """The other queues have environments of their own; one that cannot be installed is reported as missing."""
    prepare(session, "bench", extras="embedded,uvloop")
    session.run("python", "-m", "benchmarks", "peers", success_codes=[0, 1])
    command = ("python", "-m", "benchmarks", *options, *session.posargs)
    session.run(*command, interrupt_timeout=30, terminate_timeout=10)
