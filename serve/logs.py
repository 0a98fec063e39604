"""The server's log on stderr: lines for people, or JSON objects for machines. Neither has the key or a picture."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from .settings import LogFormat

FACTS = "facts"  # the attribute of a log record that holds what JSON lines have besides the message


def log_to_stderr(form: LogFormat) -> None:
    """Write what `chan_rt` and uvicorn log to stderr, from information upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    for name, level in (("chan_rt", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


class TextLines(logging.Formatter):
    """Time, level, message; control characters are escaped, because paths of requests come from others."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback where there is one."""
        facts = "".join(f" {name}={value}" for name, value in getattr(record, FACTS, {}).items())
        message = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in record.getMessage() + facts)
        line = f"{_time(record)} {record.levelname.lower():<7} {message}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `message`, facts of the request, and `error` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FACTS, {}),
        }
        if record.exc_info is not None:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True, default=str)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
