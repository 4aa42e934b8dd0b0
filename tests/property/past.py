"""What documents were, and what is shown of them: a stored state never gives way to an older one."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bson import encode
from pymongo.database import Database

from distributary.change import CODEC, Identity, identity
from distributary.derive.naming import SHADOW
from distributary.derive.plan import Owner
from distributary.derive.records import Place
from distributary.derive.transform import Failure, Transform, derive
from distributary.parts import is_parts
from tests.conftest import Databases
from tests.harness import content, put_together

#: What lies under each key, and whose it is.
Shown = Mapping[Place, tuple[Owner, bytes]]

#: What triggers fill, which is about changes and not about states.
AUDIT = "audit"

#: What one document yields.
Records = Mapping[Place, bytes]


def shown(databases: Databases) -> Shown:
    """Read everything that is stored, but for what is still to take its place.

    Shared records have to agree with their parts, which are read in their stead.
    """
    found: dict[Place, tuple[Owner, bytes]] = {}
    whole: dict[Identity, bytes] = {}
    for collection, document in _documents(databases.derived):
        if document["_src"].get("shared"):
            whole[identity(document["_id"])] = content(document)
        else:
            found |= _owned(collection, document)
    parts = [each for each in _documents(databases.state) if is_parts(each[0])]
    for collection, document in parts:
        found |= _owned(collection, document)
    assert whole == put_together(document for _, document in parts), "a shared record differs from its parts"
    return found


def _documents(database: Database[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for collection in database.list_collection_names():
        if SHADOW not in collection and collection != AUDIT:
            yield from ((collection, document) for document in database[collection].find())


def _owned(collection: str, document: dict[str, Any]) -> dict[Place, tuple[Owner, bytes]]:
    source = document.pop("_src")
    if "key" not in source:  # a group of a rollup
        return {}
    owner = Owner(source["by"], identity(source["key"]))
    return {(collection, identity(document["_id"])): (owner, encode(document, codec_options=CODEC))}


class Past:
    """Every state that each document was in, and per owner the oldest one that may be shown now.

    `codes` are the transforms that were ever plugged in: which of them built a record is not asked. While `lenient`,
    one may come to lack records: who is parked has only what nobody else has in a collection that was built anew.
    """

    def __init__(self) -> None:
        self._states: dict[tuple[str, Identity], list[dict[str, Any] | None]] = defaultdict(lambda: [None])
        self._yields: dict[tuple[str, str, Identity, int], Records | None] = {}
        self._codes: dict[str, dict[str, Transform]] = defaultdict(dict)
        self._oldest: dict[Owner, int] = {}
        self._torn: set[str] = set()
        self._lacking: dict[Owner, Records] = {}
        self.lenient = False

    def note(self, source: str, key: Any, document: dict[str, Any] | None) -> None:
        """Note that a document is like this now."""
        self._states[source, identity(key)].append(document)

    def plug(self, transforms: Iterable[Transform]) -> None:
        """Note which transforms are plugged in now; others give way to them, record by record."""
        present = {each.name: each for each in transforms}
        for each in present.values():
            self._codes[each.name][each.fingerprint] = each
        self._torn |= self._codes.keys() - present.keys()

    def built(self, names: Iterable[str]) -> None:
        """Note that these transforms are whole again."""
        self._torn -= set(names)

    def check(self, records: Shown) -> None:
        """Fail when what is shown of a document is older than what was, or was never yielded."""
        owned: dict[Owner, dict[Place, bytes]] = defaultdict(dict)
        for place, (owner, body) in records.items():
            owned[owner][place] = body
        for owner in owned.keys() | self._oldest.keys():
            present = owned.get(owner, {})
            if owner.transform in self._torn or self._lacking.get(owner) == present:
                continue
            try:
                self._oldest[owner] = self._state(owner, present)
                self._lacking.pop(owner, None)
            except AssertionError:
                if not self.lenient:
                    raise
                self._oldest.pop(owner, None)
                self._lacking[owner] = present

    def _state(self, owner: Owner, records: Records) -> int:
        """Give the oldest state, not older than the one before, that yields just these records."""
        codes = self._codes[owner.transform].values()
        states = self._states[next(iter(codes)).source, owner.identity]
        oldest = self._oldest.get(owner, 0)
        for index in range(oldest, len(states)):
            if any(self._yielded(code, owner, index) == records for code in codes):
                return index
        told = (
            "goes back"
            if any(self._yielded(code, owner, index) == records for code in codes for index in range(oldest))
            else "shows what it never was"
        )
        raise AssertionError(f"{owner} {told}: {dict(records)}; it was {states[: oldest + 1]}")

    def _yielded(self, code: Transform, owner: Owner, index: int) -> Records | None:
        """Give what a state yields; None when it fails."""
        known = (code.name, code.fingerprint, owner.identity, index)
        if known not in self._yields:
            document = self._states[code.source, owner.identity][index]
            output = [] if document is None else derive(code, document, 1000)
            records = [] if isinstance(output, Failure) else output
            yielded = {each.place: each.body for each in records}
            self._yields[known] = None if isinstance(output, Failure) else yielded
        return self._yields[known]
