"""Computing rollups in MongoDB: the groups that a transaction touches, and those that were left pending."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from bson import MinKey, encode
from bson.errors import BSONError
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure

from distributary.change import CODEC, Identity, Version, identity
from distributary.chunks import chunks
from distributary.derive.plan import Desired
from distributary.derive.records import ENGINE_FIELD, MAX_RECORD_BYTES, RawDocument
from distributary.derive.rollup import (
    COUNT,
    NOTHING,
    Computed,
    Rollup,
    computed,
    computing,
    group_of,
    within,
)
from distributary.derive.touched import Groups, Touched
from distributary.errors import ConfigurationError, Fault
from distributary.ports.records import Behind
from distributary.ports.rollups import (
    Drained,
    Group,
    GroupReader,
    Marked,
    PendingGroup,
    PendingStore,
    RollupRefused,
)
from distributary.quoting import quoting, said_by_server, together

#: Records that one transaction reads for one rollup; groups with more in all are left pending.
ROLLUP_RECORDS = 20_000

#: Groups of one rollup that a transaction computes: many small ones take as long as a large one, and room in the cache.
ROLLUP_GROUPS = 1_000

#: A group with more records is left pending at once, so that it takes no room from others.
LARGE_GROUP = 5_000

#: Groups that are remembered as large or failing; then they are learned anew.
REMEMBERED = 100_000

#: Groups in one aggregation.
QUERY_GROUPS = 500

#: Bytes of records, or of groups, in one command.
COMMAND_BYTES = 8 * 1024 * 1024

_UNAUTHORIZED = 13

Document = dict[str, Any]

#: Tells whether the same work may succeed a moment later.
Passes = Callable[[OperationFailure], bool]


class Written(NamedTuple):
    """How many groups were written or removed, by rollup, and how many are pending."""

    groups: Counter[str]
    pending: int


class Bounded(NamedTuple):
    """Groups that were computed, and the number of records that were read for them."""

    groups: dict[Identity, Computed]
    records: int


class Apart(NamedTuple):
    """Groups that were computed, and why others cannot be."""

    groups: dict[Identity, Computed]
    errors: dict[Identity, str]


class Server:
    """Runs the aggregations of rollups; a session, where given, says as of when."""

    def __init__(self, derived: Database[Any], passes: Passes) -> None:
        self._database = derived
        self._passes = passes
        self._hints: dict[str, Mapping[str, Any] | None] = {}

    def count(self, rollup: Rollup, groups: Sequence[Any], most: int, session: ClientSession) -> int:
        """Count the records of some groups, up to `most`."""
        stages: list[Document] = [
            {"$match": within(rollup, groups)},
            {"$limit": most},
            {"$count": "records"},
        ]
        found = list(self._database[rollup.over.name].aggregate(stages, session=session))
        return int(found[0]["records"]) if found else 0

    def compute(
        self, rollup: Rollup, groups: Sequence[Any], session: ClientSession | None = None
    ) -> dict[Identity, Computed]:
        """Compute groups; those that have records. Raises `RollupRefused` for what only other records would cure.

        `{by: 1}` also finds records whose field is a list with a 1 in it: they are in no group that was asked for.
        """
        return self._compute(rollup, groups, session, []).groups

    def compute_apart(
        self, rollup: Rollup, groups: Sequence[Any], session: ClientSession | None = None
    ) -> Apart:
        """Compute groups together, or in halves until those stand alone that cannot be computed."""
        try:
            return Apart(self.compute(rollup, groups, session), {})
        except RollupRefused as error:
            if len(groups) <= 1:
                return Apart({}, {identity(each): error.reason for each in groups})
        half = len(groups) // 2
        first = self.compute_apart(rollup, groups[:half], session)
        second = self.compute_apart(rollup, groups[half:], session)
        return Apart(first.groups | second.groups, first.errors | second.errors)

    def compute_within(
        self, rollup: Rollup, groups: Sequence[Any], room: int, session: ClientSession
    ) -> Bounded | None:
        """Compute groups, unless they have more than `room` records; records that `match` leaves out count, too."""
        if rollup.match is None:
            found = self._compute(rollup, groups, session, [{"$limit": room + 1}])
            return found if found.records <= room else None
        count = self.count(rollup, groups, room + 1, session)
        return self._compute(rollup, groups, session, [])._replace(records=count) if count <= room else None

    def _compute(
        self, rollup: Rollup, groups: Sequence[Any], session: ClientSession | None, bound: list[Document]
    ) -> Bounded:
        wanted = set(map(identity, groups))
        stages = [{"$match": within(rollup, groups)}, *bound, *computing(rollup)]
        found = self._run(rollup, lambda: self._aggregate(rollup, stages, session, self._hint(rollup)))
        read = {identity(each.group): each for one in found if (each := computed(rollup, one))}
        records = sum(int(one[COUNT]) for one in found)
        return Bounded({group: each for group, each in read.items() if group in wanted}, records)

    def try_out(self, rollup: Rollup) -> None:
        """Let the server look at a rollup without reading a record; raises `RollupRefused` when it takes it not."""
        stages = [{"$match": NOTHING}, *computing(rollup)]
        self._run(rollup, lambda: self._aggregate(rollup, stages, None))

    def try_records(self, rollup: Rollup, records: Sequence[bytes]) -> None:
        """Compute records that are not stored, all by themselves; raises `RollupRefused`.

        `$facet` makes one document of nothing, to hold them: for `$documents` a user who may only read is not enough.
        """
        given = {"$literal": [RawDocument(each) for each in records]}
        stages: list[Document] = [
            {"$match": NOTHING},
            {"$facet": {"none": [{"$limit": 1}]}},
            {"$project": {"records": given}},
            {"$unwind": "$records"},
            {"$replaceRoot": {"newRoot": "$records"}},
            *computing(rollup),
        ]
        self._run(rollup, lambda: self._aggregate(rollup, stages, None))

    def _aggregate(
        self,
        rollup: Rollup,
        stages: list[Document],
        session: ClientSession | None,
        hint: Mapping[str, Any] | None = None,
    ) -> list[Document]:
        options: Document = {"hint": hint} if hint else {}
        found = self._database[rollup.over.name]
        return list(found.aggregate(stages, session=session, allowDiskUse=True, **options))

    def _hint(self, rollup: Rollup) -> Mapping[str, Any] | None:
        """Give the index that begins with the fields of the groups, if these are several and it may be seen.

        Without a hint the server tries every index for every branch: 112 ms and not 13 for 500 groups of two fields.
        """
        if len(rollup.paths) > 1 and rollup.name not in self._hints:
            self._hints[rollup.name] = self._index(rollup)
        return self._hints.get(rollup.name)

    def _index(self, rollup: Rollup) -> Mapping[str, Any] | None:
        fields = set(rollup.paths)
        try:
            keys = [each["key"] for each in self._database[rollup.over.name].list_indexes()]
        except OperationFailure:  # it may not be seen
            return None
        return next((dict(each) for each in keys if set(list(each)[: len(fields)]) == fields), None)

    def _run(self, rollup: Rollup, work: Callable[[], list[Document]]) -> list[Document]:
        try:
            return work()
        except OperationFailure as error:
            if error.code == _UNAUTHORIZED or self._passes(error):
                raise
            self._hints.pop(rollup.name, None)
            message = str(error).partition(", full error: ")[0]
            raise RollupRefused(rollup.name, said_by_server("", message, error.code)) from error


class Rollups:
    """Keeps rollups equal to what they are over, in the transactions of one session.

    `passes` tells failures that pass by themselves from those that the data causes.
    """

    def __init__(
        self,
        derived: Database[Any],
        session: ClientSession,
        rollups: Mapping[str, Rollup],
        pending: PendingStore,
        passes: Passes,
    ) -> None:
        self._database = derived.with_options(codec_options=CODEC)
        self._session = session
        self._rollups = rollups
        self._pending = pending
        self._server = Server(self._database, passes)
        self._shunned: set[tuple[str, Identity]] = set()
        self._suspended: frozenset[str] = frozenset()

    def suspend(self, names: Collection[str]) -> None:
        """Leave these rollups alone, and no other ones: a job builds them from all records that are there then."""
        self._suspended = frozenset(names)

    def touched(self) -> Touched:
        """Give what collects the groups that a transaction touches."""
        return Touched(each for each in self._rollups.values() if each.name not in self._suspended)

    @property
    def names(self) -> Collection[str]:
        """The names of all rollups."""
        return self._rollups.keys()

    # --- what a transaction touches -------------------------------------------------------------------------

    def write(self, touched: Touched, version: Version, deferred: Collection[str]) -> Written:
        """Compute the groups that were touched; those of `deferred` rollups, and what is too much, become pending.

        To be called inside the transaction, behind its other writes. Raises `RollupRefused`.
        """
        groups: Counter[str] = Counter()
        left: list[Group] = []
        done: list[Group] = []
        for name, some in touched.groups.items():
            computed = set() if name in deferred else self._write(self._rollups[name], some, version, groups)
            for each, key in some.items():
                (done if each in computed else left).append(Group(name, key))
        self._pending.settle(done, self._session)
        self._pending.mark(left, self._session)
        return Written(groups, len(left))

    def _write(
        self, rollup: Rollup, groups: Groups, version: Version, written: Counter[str]
    ) -> set[Identity]:
        """Compute groups as long as they are small, and give those that were."""
        small = {each: key for each, key in groups.items() if (rollup.name, each) not in self._shunned}
        room, done = ROLLUP_RECORDS, set[Identity]()
        for some in chunks(list(small)[:ROLLUP_GROUPS], QUERY_GROUPS):
            keys = {each: small[each] for each in some}
            found = self._server.compute_within(rollup, list(keys.values()), room, self._session)
            if found is None:
                break
            written[rollup.name] += self._store(rollup.name, keys, found.groups, version)
            room, done = room - found.records, done | keys.keys()
        return done

    def _store(self, name: str, groups: Groups, found: Mapping[Identity, Computed], version: Version) -> int:
        """Store what groups came to, where something else is stored; gives the number of writes."""
        there = self._there(name, list(groups.values()))
        gone = [groups[each] for each in there.keys() - found.keys()]
        if gone:
            self._database[name].delete_many({"_id": {"$in": gone}}, session=self._session)
        bodies = {each: _encoded(name, result.document) for each, result in found.items()}
        differing = [each for each, body in bodies.items() if there.get(each) != body]
        self._replace(name, [found[each] for each in differing], version)
        return len(gone) + len(differing)

    def _there(self, name: str, groups: Sequence[Any]) -> dict[Identity, bytes]:
        """Read what is stored of groups, without the engine's field."""
        found = self._database[name].find({"_id": {"$in": list(groups)}}, session=self._session)
        return {identity(each["_id"]): _body(each) for each in found}

    def _replace(self, name: str, results: Iterable[Computed], version: Version) -> None:
        origin = {"by": name, "at": version.time, "epoch": version.epoch}
        statements: list[Document] = []
        size = 0
        for each in results:
            document = _encoded(name, {**each.document, ENGINE_FIELD: origin})
            if statements and size + len(document) > COMMAND_BYTES:
                self._update(name, statements)
                statements, size = [], 0
            statements.append({"q": {"_id": each.group}, "u": RawDocument(document), "upsert": True})
            size += len(document)
        if statements:
            self._update(name, statements)

    def _update(self, name: str, statements: list[Document]) -> None:
        command = {"update": name, "ordered": True, "updates": statements}
        reply = self._database.command(command, codec_options=CODEC, session=self._session)
        if errors := reply.get("writeErrors"):
            refused = f"MongoDB refuses a group of rollup {name!r}: "
            raise RollupRefused(name, said_by_server(refused, errors[0]["errmsg"], errors[0]["code"]))

    def culprits(self, name: str, desired: Iterable[Desired]) -> list[tuple[Desired, str]]:
        """Give the documents that yield records which cannot be computed even by themselves, and why."""
        rollup, found = self._rollups[name], dict[int, tuple[Desired, str]]()
        records = [
            (item, each.document)
            for item in desired
            for each in item.records
            if each.collection == rollup.over.name
        ]
        for some in _by_size(records):
            for item, reason in self._failing(rollup, some):
                told = together(f"MongoDB cannot compute rollup {name!r} with a record of it: ", reason)
                found.setdefault(id(item), (item, told))
        return list(found.values())

    def _failing(
        self, rollup: Rollup, records: Sequence[tuple[Desired, bytes]]
    ) -> Iterator[tuple[Desired, str]]:
        try:
            self._server.try_records(rollup, [each for _, each in records])
        except RollupRefused as error:
            if len(records) == 1:
                yield records[0][0], error.reason
                return
            half = len(records) // 2
            yield from self._failing(rollup, records[:half])
            yield from self._failing(rollup, records[half:])

    # --- what was left pending ------------------------------------------------------------------------------

    def settle(self, drained: Sequence[Drained], version: Version) -> Counter[str]:
        """Store pending groups that were computed, inside a transaction; see `Sink.settle`."""
        known = self._pending.known([each.pending.group for each in drained], self._session)
        now = {_place(each.group): each for each in known}
        current = [each for each in drained if _is_current(each.pending, now)]
        untouched = [each for each in current if now[_place(each.pending.group)].rev == each.pending.rev]
        errors = [(each.pending.group, each.error) for each in untouched if each.error]
        written = self._settled([each for each in current if not each.error], version)
        self._pending.settle([each.pending.group for each in untouched if not each.error], self._session)
        self._pending.fail(errors, self._session)
        self._learn(current)
        return written

    def _settled(self, drained: Iterable[Drained], version: Version) -> Counter[str]:
        by_rollup: dict[str, list[Drained]] = defaultdict(list)
        for each in drained:
            by_rollup[each.pending.group.rollup].append(each)
        return Counter({name: self._settle(name, some, version) for name, some in by_rollup.items()})

    def _settle(self, name: str, drained: Iterable[Drained], version: Version) -> int:
        groups: Groups = {}
        found: dict[Identity, Computed] = {}
        for each in drained:
            key = each.pending.group.key
            groups[identity(key)] = key
            if each.document is not None:
                found[identity(key)] = Computed(key, dict(each.document), each.records)
        return self._store(name, groups, found, version)

    def _learn(self, drained: Iterable[Drained]) -> None:
        """Remember which groups are better left pending, and which ones no longer are."""
        if len(self._shunned) > REMEMBERED:
            self._shunned.clear()
        for each in drained:
            place = _place(each.pending.group)
            if each.error or each.records > LARGE_GROUP:
                self._shunned.add(place)
            else:
                self._shunned.discard(place)

    # --- what is built anew ---------------------------------------------------------------------------------

    def mark(self, groups: Sequence[Group]) -> int:
        """Let groups of rollups that are plugged in be pending, inside a transaction."""
        plugged = [each for each in groups if each.rollup in self._rollups]
        self._pending.mark(plugged, self._session)
        return len(plugged)

    def mark_next(self, name: str, after: Behind, limit: int, *, stored: bool) -> Marked:
        """Let the groups of the next records be pending, inside a transaction; see `Sink.mark_next`."""
        rollup = self._rollups[name]
        fields = {"_id": 1} if stored else dict.fromkeys(("_id", *rollup.paths), 1)
        collection = self._database[name if stored else rollup.over.name]
        query = {"_id": {"$ne": after[0]}} if after else {}
        found = collection.find(query, fields, limit=limit, session=self._session)
        found = found.hint([("_id", 1)]).sort("_id", 1)
        found = found.min(cast("Any", [("_id", after[0] if after else MinKey())]))
        documents = list(found)
        groups = [each["_id"] if stored else group_of(rollup, each) for each in documents]
        distinct = {identity(each): Group(name, each) for each in groups if each is not None}
        self._pending.mark(list(distinct.values()), self._session)
        return Marked(len(documents), (documents[-1]["_id"],) if len(documents) == limit else ())


class Reader(GroupReader):
    """Computes pending groups in a snapshot, in a thread of its own."""

    def __init__(
        self, derived: Database[Any], rollups: Mapping[str, Rollup], pending: PendingStore, passes: Passes
    ) -> None:
        self._client = derived.client
        self._rollups = rollups
        self._pending = pending
        self._server = Server(derived.with_options(codec_options=CODEC), passes)

    def read(self, after: Behind, limit: int) -> tuple[list[Drained], Behind]:
        """Compute the next pending groups as of one moment, and give where to go on; empty at the end."""
        with self._client.start_session(snapshot=True) as session:
            pending, behind = self._pending.next(after, limit, session)
            by_rollup: dict[str, list[PendingGroup]] = defaultdict(list)
            for each in pending:
                by_rollup[each.group.rollup].append(each)
            drained = [
                result
                for name, some in by_rollup.items()
                if name in self._rollups
                for result in self._computed(self._rollups[name], some, session)
            ]
        return drained, behind

    def _computed(
        self, rollup: Rollup, pending: Sequence[PendingGroup], session: ClientSession
    ) -> Iterator[Drained]:
        found = self._server.compute_apart(rollup, [each.group.key for each in pending], session)
        for each in pending:
            group = identity(each.group.key)
            result, error = found.groups.get(group), found.errors.get(group, "")
            yield (
                Drained(each, result.document, result.records) if result else Drained(each, None, error=error)
            )


def refuse_bad(
    derived: Database[Any], rollups: Mapping[str, Rollup], places: Mapping[str, str], passes: Passes
) -> None:
    """Raise `ConfigurationError` for rollups that this server does not take."""
    server = Server(derived, passes)
    faults = []
    for name, rollup in rollups.items():
        try:
            server.try_out(rollup)
        except RollupRefused as error:
            problem = f"rollup {name!r} is refused by MongoDB: {error.reason!s}"
            faults.append(Fault(places[name], problem, "Correct its `compute` or `match`."))
    if faults:
        raise ConfigurationError(faults)


def _is_current(pending: PendingGroup, now: Mapping[tuple[str, Identity], PendingGroup]) -> bool:
    there = now.get(_place(pending.group))
    return there is not None and there.since == pending.since


def _place(group: Group) -> tuple[str, Identity]:
    return (group.rollup, identity(group.key))


def _body(document: Document) -> bytes:
    document.pop(ENGINE_FIELD, None)
    try:
        return encode(document, codec_options=CODEC)
    except (BSONError, UnicodeError):  # a hand's work
        return b""


def _encoded(name: str, document: Mapping[str, Any]) -> bytes:
    try:
        raw = encode(document, codec_options=CODEC)
    except (BSONError, UnicodeError) as error:
        refused = f"a group of rollup {name!r} cannot be stored: "
        raise RollupRefused(name, quoting(refused, error)) from error
    if len(raw) > MAX_RECORD_BYTES:
        raise RollupRefused(
            name, f"a group of rollup {name!r} has {len(raw):,} bytes; MongoDB's limit is 16 MB"
        )
    return raw


def _by_size(records: Iterable[tuple[Desired, bytes]]) -> Iterator[list[tuple[Desired, bytes]]]:
    some: list[tuple[Desired, bytes]] = []
    size = 0
    for record in records:
        if some and size + len(record[1]) > COMMAND_BYTES:
            yield some
            some, size = [], 0
        some.append(record)
        size += len(record[1])
    if some:
        yield some
