"""The command line: one module per group of commands, typer for the arguments, rich for what is shown.

Commands take everything from the public API or from layers below it; nothing of the queue is decided here.
"""

from .program import main

__all__ = ["main"]
