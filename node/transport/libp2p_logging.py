"""What py-libp2p logs goes to structlog at debug level, and nowhere else.

The library logs whole tracebacks of ordinary connection losses as warnings and installs no handler,
so Python would print them on stderr.
"""

from __future__ import annotations

import logging

import structlog

_log = structlog.get_logger("libp2p")


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _log.debug(
            "libp2p", source=record.name, severity=record.levelname, text=record.getMessage()
        )


def quieten_libp2p() -> None:
    """Route the library's loggers. Call after importing it (it sets them up when imported)."""
    logger = logging.getLogger("libp2p")
    if not any(isinstance(handler, _ToStructlog) for handler in logger.handlers):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.addHandler(_ToStructlog())
    # Its debug messages are formatted for every frame even when nobody reads them.
    logger.setLevel(logging.WARNING)
    logger.propagate = False
