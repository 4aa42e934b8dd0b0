"""The plan: the writes that make what is stored agree with what a batch of documents yields."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bson import Timestamp, encode
from bson.errors import BSONError

from distributary.change import CODEC, Identity, Version, decoded, identity, new_tuple
from distributary.derive.records import ENGINE_FIELD, EncodedRecord, Place

#: A record older than any that the engine writes: what is stored without a readable version.
UNKNOWN_VERSION = Version(0, Timestamp(0, 0))


class Owner(NamedTuple):
    """The transform and source key that yield a record."""

    transform: str
    identity: Identity


@dataclass(eq=False, slots=True)
class Desired:
    """What one document yields through one transform now; no records when it is gone or yields none.

    `fresh` promises that nothing is stored for this owner. `size` is that of the records, in bytes.
    """

    transform: str
    key: Any
    owner: Owner
    version: Version
    records: Sequence[EncodedRecord]
    fresh: bool = False
    size: int = 0


class Stored(NamedTuple):
    """A derived document as it is stored, `raw` in BSON.

    `owner` is None when its engine field is missing or unreadable.
    """

    place: Place
    key: Any
    owner: Owner | None
    version: Version
    raw: bytes

    @property
    def collection(self) -> str:
        """The derived collection."""
        return self.place[0]

    @property
    def body(self) -> bytes:
        """The record without the engine's field; empty when it holds what no encoder takes."""
        document = decoded(self.raw) if self.raw else {}
        document.pop(ENGINE_FIELD, None)
        try:
            return encode(document, codec_options=CODEC) if self.raw else b""
        except (BSONError, UnicodeError):
            return b""

    def shows(self, record: EncodedRecord) -> bool:
        """Whether the stored document is this record, whatever its version: all bytes up to the version agree."""
        raw, wanted = self.raw, record.document
        start = len(wanted) - 1 - record.tail
        named = start + LENGTH_END
        return len(raw) == len(wanted) and raw[4:named] == wanted[4:named]


#: From the start of the engine's field to the end of its length: a type byte, the name, four bytes.
LENGTH_END = 1 + len(ENGINE_FIELD) + 1 + 4


def stored(collection: str, document: dict[str, Any], raw: bytes) -> Stored:
    """Read a derived document; whatever a hand did to its engine field, it is read as something."""
    key, origin = document["_id"], document.get(ENGINE_FIELD)
    return new_tuple(Stored, ((collection, identity(key)), key, _owner(origin), version_in(origin), raw))


def _owner(origin: Any) -> Owner | None:
    if isinstance(origin, dict) and isinstance(origin.get("by"), str) and "key" in origin:
        return new_tuple(Owner, (origin["by"], identity(origin["key"])))
    return None


def version_in(origin: Any) -> Version:
    """Read the version in an engine's field."""
    if (
        isinstance(origin, dict)
        and isinstance(origin.get("at"), Timestamp)
        and isinstance(origin.get("epoch"), int)
    ):
        return new_tuple(Version, (origin["epoch"], origin["at"]))
    return UNKNOWN_VERSION


#: One write: the record, and the document that yields it.
Write = tuple[EncodedRecord, Desired]


class Contest(NamedTuple):
    """A document that yields a record which another document already owns.

    `free` says that the holder lost out itself in the same batch, so that trying again at once is worth it.
    """

    desired: Desired
    place: Place
    key: Any
    holder: Owner
    free: bool = False


@dataclass(slots=True)
class Plan:
    """The writes of a batch, by derived collection; `deletes` holds keys, `removers` who yields each no more.

    Deletes come first, so that what they free can be taken.
    """

    deletes: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    removers: dict[str, list[Desired]] = field(default_factory=lambda: defaultdict(list))
    replaces: dict[str, list[Write]] = field(default_factory=lambda: defaultdict(list))
    inserts: dict[str, list[Write]] = field(default_factory=lambda: defaultdict(list))
    contests: list[Contest] = field(default_factory=list)
    unchanged: int = 0
    overtaken: int = 0


def reconcile(desired: Sequence[Desired], known: Iterable[Stored], unplugged: Collection[str] = ()) -> Plan:
    """Plan the writes that turn what is stored for these owners into what they yield now.

    `known` holds every stored record of the owners that are not fresh, and, where a key may be taken,
    the record under it. An owner of which something newer is stored is left alone. One key has one owner:
    who holds it keeps it while it yields it, a second owner is contested and keeps all that it had. Records of
    `unplugged` transforms hold nothing.
    """
    return _Reconciliation(desired, known, unplugged).plan()


class _Reconciliation:
    """One call of `reconcile`."""

    def __init__(
        self, desired: Sequence[Desired], known: Iterable[Stored], unplugged: Collection[str]
    ) -> None:
        self.unplugged = unplugged
        self.known: dict[Place, Stored] = {record.place: record for record in known}
        self.owned: Mapping[Owner, list[Stored]] = self._by_owner()
        self.result = Plan()
        self.active = {item.owner: item for item in desired if not self._overtaken(item)}
        self.claims: dict[Place, Owner] = {}

    def _by_owner(self) -> Mapping[Owner, list[Stored]]:
        owned: dict[Owner, list[Stored]] = {}
        for record in self.known.values():
            if record.owner is not None:
                owned.setdefault(record.owner, []).append(record)
        return owned

    def _overtaken(self, item: Desired) -> bool:
        owned = self.owned.get(item.owner)
        newer = owned is not None and any(record.version > item.version for record in owned)
        self.result.overtaken += newer
        return newer

    def plan(self) -> Plan:
        self.claims = self._claims()
        if self._is_undisputed():
            for item in self.active.values():
                if item.owner in self.owned:
                    self._write(item)
                else:
                    self._insert(item)
            return self.result
        contests: list[Contest] = []
        while lost := self._claim():
            contests += lost
            for contest in lost:
                self.active.pop(contest.desired.owner)
        for item in self.active.values():
            self._write(item)
        self.result.contests = [contest._replace(free=self._free(contest.place)) for contest in contests]
        return self.result

    def _claims(self) -> dict[Place, Owner]:
        return {record[0]: item.owner for item in self.active.values() for record in item.records}

    def _is_undisputed(self) -> bool:
        """Whether every key is claimed by one owner, and stored, if at all, as that owner's; as nearly always."""
        claims = self.claims
        if len(claims) < sum([len(item.records) for item in self.active.values()]):
            return False
        return all(
            place not in claims or claims[place] == record.owner for place, record in self.known.items()
        )

    def _free(self, place: Place) -> bool:
        return place not in self.claims and place not in self.known

    def _claim(self) -> list[Contest]:
        """Give every active owner its keys; who must go without is contested, and the claims are made anew."""
        self.claims = {}
        return [contest for item in self.active.values() if (contest := self._claim_all(item))]

    def _claim_all(self, item: Desired) -> Contest | None:
        claims, known, owner = self.claims, self.known, item.owner
        for place, key, _, _ in item.records:
            if place in claims or place in known:
                holder = self._holder(place, owner)
                if holder is not None:
                    return Contest(item, place, key, holder)
        for record in item.records:
            claims[record[0]] = owner
        return None

    def _holder(self, place: Place, owner: Owner) -> Owner | None:
        """Give the other owner that keeps this place from `owner`, if any."""
        claimed = self.claims.get(place)
        if claimed is not None and claimed != owner:
            return claimed
        record = self.known.get(place)
        if record is None or record.owner is None or record.owner == owner:
            return None
        if record.owner.transform in self.unplugged:
            return None
        return None if self._releases(record.owner, place) else record.owner

    def _releases(self, owner: Owner, place: Place) -> bool:
        item = self.active.get(owner)
        return item is not None and all(record.place != place for record in item.records)

    def _insert(self, item: Desired) -> None:
        """Write records of which nothing is stored."""
        inserts = self.result.inserts
        for record in item.records:
            inserts[record[0][0]].append((record, item))

    def _write(self, item: Desired) -> None:
        result, known = self.result, self.known
        for record in item.records:
            place = record[0]
            before = known.get(place)
            if before is None:
                result.inserts[place[0]].append((record, item))
            elif before.owner == item.owner and before.shows(record):
                result.unchanged += 1
            else:
                result.replaces[place[0]].append((record, item))
        for left in self.owned.get(item.owner, ()):
            if left.place not in self.claims:
                result.deletes[left.collection].append(left.key)
                result.removers[left.collection].append(item)
