"""diffusers, transformers and peft, imported as if bitsandbytes were not installed. Whatever imports the library comes by here
first.

Where it is installed, they import it at once, and it imports PyTorch's compiler: 44 MB, a fifth of the time that all imports
take, and a line in the log of kernels that it lacks. Only an nf4 base needs it, and `quantise` imports it then.
"""

from __future__ import annotations

import sys

HIDDEN = "bitsandbytes"

hides = "diffusers" not in sys.modules and HIDDEN not in sys.modules
if hides:
    sys.modules[HIDDEN] = None  # type: ignore[assignment]  # importlib's way to say that there is no such module
try:
    import diffusers
    import diffusers.models.modeling_utils
    import peft  # noqa: F401
    import transformers
finally:
    if hides:
        del sys.modules[HIDDEN]


def hide_loading_bars() -> None:
    """Bars for each file that is loaded would bury the one that people watch."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
