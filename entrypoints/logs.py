"""Where the library's log lines go when Cog runs it."""

import logging

from finetuner.libraries import hide_loading_bars


def show_library_log() -> None:
    """Let the library's INFO lines through to stderr, which Cog captures. Safe to call again."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("finetuner").setLevel(logging.INFO)
    hide_loading_bars()
