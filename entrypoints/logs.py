"""Where the library's log lines go when Cog runs it."""

import logging

import diffusers
import transformers


def show_library_log() -> None:
    """Let the library's INFO lines through to stderr, which Cog captures. Safe to call again."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("finetuner").setLevel(logging.INFO)
    # Bars for each file that is loaded would bury the one that people watch.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
