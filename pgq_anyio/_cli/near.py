"""Names that somebody may have meant who wrote another one."""

from __future__ import annotations

import difflib
import os
import pkgutil
import sys
from collections.abc import Iterable
from types import ModuleType

from .._app import PgQueuer

#: How alike two names must be, of 1.
_CUTOFF = 0.6


def near_modules(name: str) -> list[str]:
    """Modules beside a missing one whose names are like its; for a top-level one those of the current directory."""
    parent, _, last = name.rpartition(".")
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else [os.getcwd()]  # noqa: PTH109
    siblings = [module.name for module in pkgutil.iter_modules(path)] if path is not None else []
    return [f"{parent}.{near}" if parent else near for near in difflib.get_close_matches(last, siblings, 3, _CUTOFF)]


def near_attributes(owner: object, name: str) -> list[str]:
    """What ``owner`` has that may be meant: names like this one, else the apps in it."""
    near = difflib.get_close_matches(name, _own_names(owner), 3, _CUTOFF)
    return near or apps_in(owner)


def apps_in(owner: object) -> list[str]:
    """The names of the apps that stand in a module."""
    return [name for name, value in vars(owner).items() if isinstance(value, PgQueuer)] if _has_dict(owner) else []


def _own_names(owner: object) -> list[str]:
    """Public names that are no modules and were not imported from elsewhere."""
    if not isinstance(owner, ModuleType):
        return [name for name in dir(owner) if not name.startswith("_")]
    return [
        name
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and (isinstance(value, PgQueuer) or getattr(value, "__module__", owner.__name__) == owner.__name__)
    ]


def _has_dict(owner: object) -> bool:
    return hasattr(owner, "__dict__")


def or_list(names: Iterable[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
