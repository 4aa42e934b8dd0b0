"""Seeing elections: the driver tells of every change of the replica set."""

from collections.abc import Callable
from typing import Any

from pymongo.monitoring import (
    TopologyClosedEvent,
    TopologyDescriptionChangedEvent,
    TopologyListener,
    TopologyOpenedEvent,
)


class Elections(TopologyListener):
    """Calls `told` when a primary is another one than the last that was seen, or was elected again.

    To be given to a client when that is made. Each primary draws an id at its election.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self._last: dict[Any, Any] = {}

    def opened(self, event: TopologyOpenedEvent) -> None:
        """Nothing is seen yet."""

    def description_changed(self, event: TopologyDescriptionChangedEvent) -> None:
        """Compare the primary, if there is one, with the last one."""
        for address, server in event.new_description.server_descriptions().items():
            if server.election_id is None or not server.is_writable:
                continue
            elected = (address, server.election_id)
            last = self._last.setdefault(event.topology_id, elected)
            if last != elected:
                self._last[event.topology_id] = elected
                self._told()

    def closed(self, event: TopologyClosedEvent) -> None:
        """Forget a client that was closed."""
        self._last.pop(event.topology_id, None)
