"""How a handler is named so that another process finds it: ``"module:qualname"``.

A program run as ``python app.py`` is ``__main__`` here and something else in the child, so its handlers are named by
the file (``"/srv/app.py:fetch"``), and with ``python -m pkg.app`` by the module's real name. The child runs such a file
once more, under the name :data:`MAIN_ALIAS`; the part that starts the worker has to stand under
``if __name__ == "__main__":``, as for :mod:`multiprocessing`. Without it the pool of the second worker refuses to open.

Registration happens in a decorator, before the function is bound to its name. So what is checked then is that the name
*can* be imported; that it leads to this very function is checked with ``bound=True``, when the module is complete.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

#: The name under which a child imports the file that the parent runs as its program.
MAIN_ALIAS = "__pgq_anyio_main__"

FIX = "handlers in processes are found by name: define it with `def` at the top level of a module"


def check_importable(function: Callable[..., Any], *, bound: bool = False) -> str:
    """
    Name a function so that a child process can import it.

    :param function: the handler, sync or async
    :param bound: also check that the name leads to ``function``. Only possible when its module has been imported
        whole. Defaults to False.
    :return: the target to pass to :meth:`ProcessPool.run`
    :raises ConfigurationError: if the function has no such name: lambdas, functions inside functions, methods of
        instances, partials, functions typed into an interactive session
    """
    module_name, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str):
        raise ConfigurationError(f"{function!r} has no name that a process could import it by: {FIX}")
    if "<lambda>" in qualname:
        raise ConfigurationError(f"the handler {module_name}.{qualname} is a lambda: {FIX}")
    if "<locals>" in qualname:
        hint = "a decorator around it needs functools.wraps"
        raise ConfigurationError(f"the handler {module_name}.{qualname} is defined inside a function: {FIX}; {hint}")
    if inspect.ismethod(function) and not inspect.isclass(function.__self__):
        raise ConfigurationError(f"the handler {module_name}.{qualname} is a method of an instance: {FIX}")
    origin = module_name
    if module_name == "__main__":
        main = main_origin()
        if main is None:
            raise ConfigurationError(f"the handler {qualname} is defined in an interactive session: {FIX} in a file")
        origin = main
    target = f"{origin}:{qualname}"
    if bound and not _leads_to(sys.modules.get(module_name), qualname, function):
        raise ConfigurationError(
            f"the name {module_name}.{qualname} does not lead to the handler {function!r}, "
            f"something else has taken it or it was deleted: {FIX}, under a name of its own"
        )
    return target


def main_origin() -> str | None:
    """Return the module name or the absolute path that this program can be imported from, or ``None``."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    # The spec of a directory or zip file run as a program is called "__main__", which nobody can import.
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    path = getattr(main, "__file__", None)
    if path is None or not Path(path).is_file():
        return None
    return str(Path(path).absolute())


def import_origin(origin: str) -> ModuleType:
    """Import what :func:`check_importable` put before the colon: a module, or a file by its path."""
    if not Path(origin).is_absolute():
        return importlib.import_module(origin)
    if MAIN_ALIAS not in sys.modules:
        spec = importlib.util.spec_from_loader(MAIN_ALIAS, SourceFileLoader(MAIN_ALIAS, origin))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[MAIN_ALIAS] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[MAIN_ALIAS]
            raise
    return sys.modules[MAIN_ALIAS]


def resolve(target: str) -> Callable[..., Any]:
    """
    Import the function that a target names.

    :raises ImportError: if the module cannot be imported
    :raises AttributeError: if the module has no such function
    """
    origin, _, qualname = target.rpartition(":")
    found: Any = import_origin(origin)
    for part in qualname.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found
    return function


def _leads_to(module: ModuleType | None, qualname: str, function: Callable[..., Any]) -> bool:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    # Class methods are made anew at every access: equal, not identical.
    return bool(found == function)
