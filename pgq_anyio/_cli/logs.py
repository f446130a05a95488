"""Logging of the command line: lines with the time, or JSON, on standard error.

Set up before the app is loaded, so that a ``logging.basicConfig()`` in the user's module changes nothing. The stream is
looked up for every record: a progress bar puts another one in its place while it is shown.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from enum import StrEnum
from typing import TextIO


class LogLevel(StrEnum):
    """What is logged: this and everything worse."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How it is written."""

    TEXT = "text"
    JSON = "json"


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is ``sys.stderr`` now."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record to the standard error of this moment."""
        self.stream = sys.stderr
        super().emit(record)


class TextFormatter(logging.Formatter):
    """``2025-01-31 12:00:00.123 INFO pgq_anyio.signals: …`` in local time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``process``, and ``error`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        return json.dumps(fields, ensure_ascii=False)


def set_up_logging(level: LogLevel, log_format: LogFormat) -> None:
    """Log to standard error from now on, and nowhere else.

    :param level: the least that is logged
    :param log_format: how it is written
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(StderrHandler(TextFormatter() if log_format is LogFormat.TEXT else JsonFormatter()))
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
