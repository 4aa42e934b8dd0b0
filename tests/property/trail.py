"""What an audit trail has to hold: every change of the source since the trigger began, once and in order."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bson import Timestamp

from distributary.state import TriggerStream
from distributary.store.checkpoints import Checkpoints
from tests.conftest import Databases
from tests.property.past import AUDIT

#: The collections whose changes are told.
SOURCES = ("orders", "users")

#: Where a mark is written that ends what is read of the history.
MARKS = "marks"


class _Change(NamedTuple):
    token: str
    time: Timestamp
    of: Any
    operation: str


class Trail:
    """The changes of one story's sources, held against what the triggers made of them."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases
        wanted = {"operationType": {"$in": ["insert", "update", "replace", "delete"]}}
        self._stream = databases.raw.watch([{"$match": wanted}], max_await_time_ms=1)
        self._changes: list[_Change] = []
        self._began: str | None = None
        self._looks: list[Sequence[str]] = []

    def close(self) -> None:
        """Read no further."""
        self._stream.close()

    def look(self) -> None:
        """Note what the trail holds after a commit; the first one says where the triggers began."""
        stream = self._saved()
        if stream is None:
            return
        if self._began is None:
            self._began = stream.position.token
        self._looks.append(self._found())

    def check(self) -> None:
        """Fail unless the trail holds all changes now, and always held all up to its last one; gaps are left out."""
        self._read()
        stream = self._saved()
        assert stream is not None
        self._began = self._began or stream.position.token
        known = [each for each in self._changes if each.token > self._began]
        self._compare(known)
        lost = {each.token for each in known for gap in stream.gaps if gap.since <= each.time <= gap.until}
        kept = [each.token for each in known if each.token not in lost]
        assert [each for each in self._found() if each not in lost] == kept, "not the changes of the source"
        for found in self._looks:
            held = [each for each in found if each not in lost]
            assert held == kept[: len(held)], "a change was left out for a while"
        self._looks.clear()

    def _compare(self, known: Sequence[_Change]) -> None:
        told = {each.token: (each.of, each.operation) for each in known}
        for each in self._databases.derived[AUDIT].find():
            assert told.get(each["_id"]) == (each["of"], each["operation"]), f"{each} never happened"

    def _found(self) -> list[str]:
        """Give the positions of the records in the order in which they were written."""
        found = self._databases.derived[AUDIT].find({}, {"_id": 1}).sort("$natural", 1)
        return [each["_id"] for each in found]

    def _saved(self) -> TriggerStream | None:
        checkpoint = Checkpoints(self._databases.state).load("default")
        return checkpoint.triggers if checkpoint else None

    def _read(self) -> None:
        """Read the history up to now."""
        mark = self._databases.raw[MARKS].insert_one({}).inserted_id
        while True:
            each = next(self._stream)
            source, key = each["ns"]["coll"], each["documentKey"]["_id"]
            if source == MARKS:
                if key == mark:
                    return
            elif source in SOURCES:
                change = _Change(each["_id"]["_data"], each["clusterTime"], key, each["operationType"])
                self._changes.append(change)
