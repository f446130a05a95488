"""Run nox where it is not installed: ``python3 noxfile.py`` on a machine that has only Python.

nox goes into ``.venv`` beside ``noxfile.py``, and the sessions' environments into ``.nox``; nothing outside of the
project is changed, so it works for any user, and where the system's Python refuses packages (PEP 668).

Standard library only, and no syntax newer than Python 3.7, so that an old ``python3`` still finds a new one, or says
what is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from tools.machine import VERSIONS, find_pythons

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin", "python")
NOX = "nox>=2025.2.9"

#: Succeeds where a nox that is new enough is installed, under a Python that is.
_CHECK = (
    "import sys, importlib.metadata as metadata;"
    "sys.exit(sys.version_info < (3, 11) or int(metadata.version('nox').split('.')[0]) < 2025)"
)

_FIX = """\
This Python ({python}) cannot make environments that have pip, and no other Python from {oldest} on was found.
Install venv and pip for it (Debian and Ubuntu: apt-get install python3-venv), or Python from python.org, and try again.
"""


class BootstrapError(Exception):
    """Raised if nox cannot be installed. The message is for the person at the terminal."""


def main(arguments: list[str]) -> int:
    """Install nox if need be, and run it, as far as possible in place of this process.

    :param arguments: what nox is called with
    :return: the exit code
    """
    if not os.access(os.path.expanduser("~"), os.W_OK):  # an account without a home, as in a container
        os.environ.setdefault("XDG_CACHE_HOME", os.path.join(ROOT, ".nox", "cache"))
    try:
        if not _succeeds(VENV_PYTHON, "-c", _CHECK):
            _install()
    except BootstrapError as error:
        sys.stderr.write(str(error).rstrip() + "\n")
        return 1
    except KeyboardInterrupt:
        return 130
    command = [VENV_PYTHON, "-m", "nox", "-f", os.path.join(ROOT, "noxfile.py"), *arguments]
    if os.name == "nt":  # there the shell would not wait for a program that replaces this one
        return subprocess.call(command)
    sys.stdout.flush()
    return os.execv(VENV_PYTHON, command)


def _install() -> None:
    """Make ``.venv``, or mend it, and install nox into it."""
    if not os.access(ROOT, os.W_OK):
        raise BootstrapError("Cannot write into {}: make a copy of the project of your own.".format(ROOT))
    if not _succeeds(VENV_PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"):
        _make_venv()
    if _succeeds(VENV_PYTHON, "-m", "pip", "--version"):
        pip = [VENV_PYTHON, "-m", "pip"]
    else:
        pip = [sys.executable, "-m", "pip", "--python", VENV_PYTHON]
    _show([*pip, "install", "--no-input", "--disable-pip-version-check", NOX], "installing nox into .venv")


def _make_venv() -> None:
    """Make ``.venv`` from the first Python that can."""
    candidates = list(find_pythons().values())
    if sys.version_info >= VERSIONS[0]:
        candidates.insert(0, sys.executable)
    for python in candidates:
        if _succeeds(python, "-c", "import ensurepip, venv"):
            _show([python, "-m", "venv", "--clear", VENV], "making .venv")
            return
    for python in candidates:
        if _succeeds(python, "-c", "import venv") and _succeeds(sys.executable, "-m", "pip", "--python", python, "-V"):
            _show([python, "-m", "venv", "--clear", "--without-pip", VENV], "making .venv")
            return
    oldest = "%d.%d" % VERSIONS[0]
    if not candidates:
        text = "pgq_anyio needs Python {} or newer; this is {}, and no newer one was found."
        raise BootstrapError(text.format(oldest, ".".join(map(str, sys.version_info[:3]))))
    raise BootstrapError(_FIX.format(python=candidates[0], oldest=oldest))


def _show(command: list[str], what: str) -> None:
    """Run a command and show that it is under way: a clock on a terminal, a line now and then elsewhere.

    :raises BootstrapError: if it fails; the message has its output
    """
    terminal = sys.stdout.isatty()
    start = shown = time.monotonic()
    sys.stdout.write("noxfile: {} ...{}".format(what, "" if terminal else "\n"))
    sys.stdout.flush()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        while process.poll() is None:
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if terminal:
                    sys.stdout.write("\rnoxfile: {} ... {:.0f} s ".format(what, now - start))
                elif now - shown >= 10:
                    shown = now
                    sys.stdout.write("noxfile: {} ... {:.0f} s\n".format(what, now - start))
                sys.stdout.flush()
        if terminal:
            sys.stdout.write("\n")
        if process.returncode != 0:
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
            raise BootstrapError("{}\n\nnoxfile: {} failed: {}".format(said, what, " ".join(command)))


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False
