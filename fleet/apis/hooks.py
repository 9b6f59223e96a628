"""The webhooks that a request asks for, checked."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fleet.apis.problems import refused
from fleet.fetching import FetchError, check_address
from fleet.webhooks import REPLICATE_EVENTS


class Hooks(BaseModel):
    """The fields that Replicate's API and Cog's have for them."""

    webhook: str | None = None
    webhook_events_filter: list[str] | None = None

    def checked(self, base: str) -> dict[str, Any] | None:
        """What a job keeps of them. ``base``: where the client reaches us, for the addresses that a call carries."""
        if self.webhook is None:
            return None
        events = self.webhook_events_filter or list(REPLICATE_EVENTS)
        if unknown := [event for event in events if event not in REPLICATE_EVENTS]:
            sentence = f"webhook_events_filter: {unknown[0]!r} is not one of {', '.join(REPLICATE_EVENTS)}."
            raise refused("webhook_events_filter", sentence)
        return {"url": check_webhook("webhook", self.webhook), "events": events, "base": base}


def check_webhook(field: str, address: str) -> str:
    """The address; raises `Problem` where it is none. Where it leads is seen when it is called."""
    try:
        check_address(address)
    except FetchError as error:
        raise refused(field, f"{field}: {error}") from error
    return address
