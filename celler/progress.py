"""Progress: whether bars are shown."""

from __future__ import annotations

import logging


def has_progress() -> bool:
    """Whether progress is shown at all."""
    # scvi.settings.verbosity is the level of this logger: one setting keeps all its models silent
    return logging.getLogger("scvi").level <= logging.INFO
