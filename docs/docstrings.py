"""What griffe does not see in our sources by itself: ``#:`` comments of fields, the ``__init__`` that attrs makes, and
references in Sphinx' notation.

Loaded by mkdocstrings while it builds the reference pages (``mkdocs.yml``).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|attr|mod|data):`~?([^`]+)`")


class Docstrings(griffe.Extension):
    """Completes docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Take the comment above a field for its docstring, and turn references into code."""
        if obj.docstring is None and isinstance(obj, griffe.Attribute):
            comment = _comment_above(obj)
            if comment:
                obj.docstring = griffe.Docstring(comment, parent=obj)
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Give a value whose docstring describes parameters the ``__init__`` that attrs gives it."""
        if cls.docstring is not None and ":param" in cls.docstring.value and "__init__" not in cls.members:
            fields = [member for member in cls.members.values() if _is_field(member)]
            parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
            parameters += [_parameter(field) for field in fields]
            cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))
            for field in fields:
                cls.del_member(field.name)


def _is_field(member: griffe.Object | griffe.Alias) -> bool:
    return isinstance(member, griffe.Attribute) and "instance-attribute" in member.labels


def _parameter(field: griffe.Object | griffe.Alias) -> griffe.Parameter:
    assert isinstance(field, griffe.Attribute)
    kind = griffe.ParameterKind.keyword_only
    return griffe.Parameter(field.name, annotation=field.annotation, kind=kind, default=_default(str(field.value)))


def _default(value: str) -> str:
    """The default of a field: the value itself, or the argument of ``attrs.field``."""
    tree = ast.parse(value, mode="eval").body
    keywords = tree.keywords if isinstance(tree, ast.Call) else []
    return next((ast.unparse(keyword.value) for keyword in keywords if keyword.arg == "default"), value)


def _comment_above(obj: griffe.Attribute) -> str:
    """The ``#:`` lines directly above an attribute, as one text."""
    assert isinstance(obj.filepath, Path)
    source = obj.lines_collection[obj.filepath]
    lines: list[str] = []
    number = (obj.lineno or 1) - 2
    while number >= 0 and source[number].strip().startswith("#:"):
        lines.insert(0, source[number].strip().removeprefix("#:").strip())
        number -= 1
    return " ".join(lines)
