"""What was accepted, and what became of it: it outlives every process of the fleet.

In: a `Job` that a client asks for. Out: the same job, durable, and what the engine notes of it until it ends. Begin with
job.py, then records.py.
"""

from fleet.records.job import FINAL, Job, Kind, OwnedFinetune, State
from fleet.records.records import Limits, QueueFull, QuotaExceeded, Records

__all__ = ["FINAL", "Job", "Kind", "Limits", "OwnedFinetune", "QueueFull", "QuotaExceeded", "Records", "State"]
