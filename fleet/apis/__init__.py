"""Three HTTP APIs in front of one engine: Replicate's, Black Forest Labs', Cog's.

In: requests of clients that were written for them. Out: jobs in the words of `finetuner.requests`, and answers as the clients
expect them; a rule of what may be asked for lies in the library, not here. Begin with app.py, then front.py.
"""

from fleet.apis.app import build_app, host

__all__ = ["build_app", "host"]
