"""Pending groups on a real MongoDB."""

from distributary.ports.rollups import Group
from distributary.store.pending import PENDING, Pending
from tests.conftest import Databases


def test_a_group_that_cannot_be_computed_waits_a_while(databases: Databases) -> None:
    """A group with an error waits a minute by the server's clock; touched, it is tried at once."""
    pending, group = Pending(databases.state, "w"), Group("sums", "a")
    with databases.client.start_session() as session:

        def next_ones() -> list[Group]:
            return [each.group for each in pending.next((), 10, session)[0]]

        pending.mark([group], session)
        assert next_ones() == [group]
        pending.fail([(group, "$bad")], session)
        assert next_ones() == []
        (found,) = pending.known([group], session)
        assert found.error == "$bad"
        left = {"$subtract": ["$again_at", "$$NOW"]}
        (waits,) = databases.state[PENDING].aggregate([{"$project": {"left": left}}])
        assert 0 < waits["left"] <= 60_000
        databases.state[PENDING].update_one({}, [{"$set": {"again_at": {"$subtract": ["$$NOW", 1]}}}])
        assert next_ones() == [group]
        pending.fail([(group, "bad")], session)
        pending.mark([group], session)
        assert next_ones() == [group]
