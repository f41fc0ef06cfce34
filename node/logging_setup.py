"""Structured logs of a node process, on standard error.

Events of our own code (structlog) and of libraries (standard logging) take the same way out, as
lines for people or as JSON objects, one per line.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
# The network library tells every dial, stream and lookup at info; what we need of it we log.
_CHATTY: Final = ("libp2p", "aioquic", "hypercorn", "zeroconf", "httpcore", "httpx")


def set_up_logging(*, level: str, format: str) -> None:
    """Send all logs of this process to standard error.

    Args:
        level: the least important level shown, one of `LEVELS`.
        format: "console", "json", or "auto": console on a terminal, else JSON.
    """
    on_terminal = sys.stderr.isatty()
    as_json = format == "json" or (format == "auto" and not on_terminal)
    number = LEVELS[level]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=as_json),
            *_renderers(as_json, colors=on_terminal),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(number)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _renderers(as_json: bool, *, colors: bool) -> list[structlog.typing.Processor]:
    # Tracebacks without local variables: those hold links, keys and the mesh secret.
    if not as_json:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(transformer),
        structlog.processors.JSONRenderer(default=repr),
    ]


class _ToStructlog(logging.Handler):
    """Hands on what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            min(max(record.levelno, logging.DEBUG), logging.CRITICAL) // 10 * 10,
            record.getMessage(),
            logger=record.name,
            exc_info=record.exc_info,
        )
