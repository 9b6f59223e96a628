"""Whose job is next: each owner's in turn, so that who sends a thousand does not keep out who sends one."""

from __future__ import annotations

from collections import OrderedDict, deque


class FairQueue:
    """Ids of jobs, in turn by owner, and of each owner in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[str]] = OrderedDict()  # the owner whose turn it is comes first

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, owner: str, job_id: str) -> None:
        self._waiting.setdefault(owner, deque()).append(job_id)

    def next(self) -> str:
        """Raises KeyError where nothing waits."""
        owner, jobs = self._waiting.popitem(last=False)
        job_id = jobs.popleft()
        if jobs:
            self._waiting[owner] = jobs
        return job_id

    def remove(self, owner: str, job_id: str) -> None:
        """Does nothing where it waits no more."""
        jobs = self._waiting.get(owner, deque())
        if job_id in jobs:
            jobs.remove(job_id)
            if not jobs:
                del self._waiting[owner]
