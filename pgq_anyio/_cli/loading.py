"""From ``module:attr`` to an app: import, look up, call, hold open.

Both ``package.module:attr`` and the dotted ``package.module.attr`` are read; of a dotted path the longest part that is
a module is imported. The target is a ``PgQueuer``, or something callable without arguments that gives one: a function,
an async function, or an async context manager, which is held open by the task that runs the app.

Every way in which this goes wrong is an ``AppLoadError`` that names the thing and what to write instead. One with a
cause (``__cause__``) says that code of the user's failed; one without says that the target was written wrongly.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from types import ModuleType
from typing import Any

import attrs

from .._app import PgQueuer
from .._errors import AppLoadError
from .near import apps_in, near_attributes, near_modules, or_list

#: What a target must be, for messages.
_WANTED = "a PgQueuer, or a function, async function or async context manager that gives one"


@attrs.frozen
class Target:
    """What a name on the command line led to."""

    #: the name as it was written
    name: str
    value: Any


def load_target(name: str) -> Target:
    """Import the module of a target and look the target up. The current directory is put on ``sys.path``.

    :param name: ``module:attr``, or a dotted path
    :raises AppLoadError: if there is no such thing, or its module cannot be imported
    """
    directory = os.getcwd()  # noqa: PTH109  (sys.path holds strings)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    module_name, colon, path = name.strip().partition(":")
    _check_written(name, module_name, path, has_colon=bool(colon))
    if colon:
        module, attributes = _import(name, module_name), path.split(".")
    else:
        module, attributes = _import_longest(name)
    value: Any = module
    walked = module.__name__
    for attribute in attributes:
        try:
            value = getattr(value, attribute)
        except AttributeError:
            raise AppLoadError(_say_missing_attribute(name, value, walked, attribute)) from None
        except (Exception, SystemExit) as error:  # of a module that imports on demand (PEP 562), say
            raise _failed(name, error) from error
        walked += f"{'.' if ':' in walked else ':'}{attribute}"
    if isinstance(value, ModuleType):
        raise AppLoadError(_say_module(name, value))
    return Target(name, value)


def _check_written(name: str, module_name: str, path: str, *, has_colon: bool) -> None:
    parts = [*module_name.split("."), *(path.split(".") if has_colon else [])]
    if "/" in name or os.sep in name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace(os.sep, ".").replace("/", ".")
        raise AppLoadError(f"{name!r} is a file name: write the module as Python imports it, {dotted}:{path or 'app'}")
    if not all(part.isidentifier() for part in parts):
        raise AppLoadError(f"{name!r} is not the name of an app: write module:attr, such as myproject.jobs:app")


def _import(name: str, module_name: str) -> ModuleType:
    """Import a module that must exist."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise AppLoadError(_say_missing_module(name, module_name, error.name)) from None
        raise AppLoadError(_say_broken_module(module_name, error)) from error
    except (Exception, SystemExit) as error:
        raise AppLoadError(_say_broken_module(module_name, error)) from error


def _import_longest(name: str) -> tuple[ModuleType, list[str]]:
    """The longest part of a dotted path that is a module, and what is left."""
    parts = name.strip().split(".")
    module = _import(name, parts[0])
    for length in range(2, len(parts) + 1):
        module_name = ".".join(parts[:length])
        try:
            is_attribute = hasattr(module, parts[length - 1])
        except (Exception, SystemExit) as error:
            raise _failed(name, error) from error
        if is_attribute and module_name not in sys.modules:
            return module, parts[length - 1 :]  # an attribute of the package beats a module of that name
        if not hasattr(module, "__path__") or importlib.util.find_spec(module_name) is None:
            return module, parts[length - 1 :]
        module = _import(name, module_name)
    return module, []


def _say_missing_module(name: str, module_name: str, missing: str) -> str:
    where = "" if missing == module_name else f" (asked for by {name!r})"
    near = near_modules(missing)
    fix = (
        f"did you mean {or_list(near)}?"
        if near
        else f"start in the directory that contains it (this is {os.getcwd()!r}), or install it"  # noqa: PTH109
    )
    return f"there is no module {missing!r}{where}: {fix}"


def _say_broken_module(module_name: str, error: BaseException) -> str:
    return f"importing {module_name!r} failed: {_in_one_line(error)}{_place(error)}"


def _say_missing_attribute(name: str, owner: object, walked: str, attribute: str) -> str:
    what = f"the module {walked!r}" if isinstance(owner, ModuleType) else repr(walked)
    near = near_attributes(owner, attribute)
    if near:
        start = name.strip()[: -len(attribute)] if name.strip().endswith(attribute) else f"{walked}:"
        return f"{what} has no {attribute!r}: did you mean {or_list([start + other for other in near])}?"
    return f"{what} has no {attribute!r}: {_WANTED} must have that name"


def _say_module(name: str, module: ModuleType) -> str:
    apps = [f"{module.__name__}:{attribute}" for attribute in apps_in(module)]
    fix = f"did you mean {or_list(apps)}?" if apps else f"write {module.__name__}:attr, with the name of the app in it"
    return f"{name!r} is a module, not an app: {fix}"


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Where an error was raised, in the user's files if there are any on the way."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    own = [frame for frame in frames if not frame.filename.startswith((sys.prefix, sys.base_prefix, _LIBRARY))]
    for frame in reversed(own or frames[-1:]):
        if os.path.dirname(frame.filename) != os.path.dirname(__file__):  # noqa: PTH120
            return f" ({os.path.relpath(frame.filename)}, line {frame.lineno})"
    return ""


_LIBRARY = os.path.dirname(os.__file__)  # noqa: PTH120


@asynccontextmanager
async def open_app(target: Target) -> AsyncIterator[PgQueuer]:
    """Get the app out of a target, and hold it open for the block.

    :raises AppLoadError: if the target gives no app, or raises
    """
    given = await _call(target)
    if isinstance(given, PgQueuer):
        yield given
        return
    if not isinstance(given, AbstractAsyncContextManager):
        raise AppLoadError(_say_wrong_type(target.name, given, called=given is not target.value))
    try:
        app = await given.__aenter__()
    except Exception as error:
        raise _failed(target.name, error) from error
    # What follows is ``async with``, written out: an error of its entry is the user's, one of the block is not.
    try:
        if not isinstance(app, PgQueuer):
            raise AppLoadError(_say_wrong_type(target.name, app, called=True))
        yield app
    except BaseException as error:  # noqa: ASYNC103  (a context manager may swallow what it is given)
        if not await given.__aexit__(type(error), error, error.__traceback__):  # noqa: ASYNC102  (the shield of its cleanup is the app's affair)
            raise
    else:
        await given.__aexit__(None, None, None)


async def _call(target: Target) -> object:
    """Call the target until it is no function and nothing to await any more."""
    value = target.value
    if isinstance(value, PgQueuer | AbstractAsyncContextManager) or not callable(value):
        return value
    if value is PgQueuer:
        raise AppLoadError(f"{target.name!r} is the class PgQueuer, not an app: write app = PgQueuer() and name that")
    if inspect.isasyncgenfunction(value):
        raise AppLoadError(_say_generator(target.name))
    _check_arguments(target)
    try:
        given = value()
        if inspect.isawaitable(given):
            given = await given
    except Exception as error:
        raise _failed(target.name, error) from error
    if inspect.isasyncgen(given):
        raise AppLoadError(_say_generator(target.name))
    return given


def _check_arguments(target: Target) -> None:
    try:
        signature = inspect.signature(target.value)
    except (TypeError, ValueError):
        return  # a builtin without a signature
    try:
        signature.bind()
    except TypeError:
        raise AppLoadError(
            f"{target.name!r} takes arguments, {signature}, and nobody passes any: "
            "give them defaults, or name a function without them"
        ) from None


def _failed(name: str, error: BaseException) -> AppLoadError:
    return AppLoadError(f"{name!r} failed: {_in_one_line(error)}{_place(error)}")


def _say_generator(name: str) -> str:
    return f"{name!r} is an async generator, which nobody would close: put @contextlib.asynccontextmanager above it"


def _say_wrong_type(name: str, given: object, *, called: bool) -> str:
    kind = type(given)
    described = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(given, AbstractContextManager) or inspect.isgenerator(given):
        fix = "make it an async function with @contextlib.asynccontextmanager"
    elif called and given is None:
        fix = "it needs a return (or yield) with the app"
    else:
        fix = f"it must be {_WANTED}"
    return f"{name!r} {'gives' if called else 'is'} {'None' if given is None else described}, not a PgQueuer: {fix}"
