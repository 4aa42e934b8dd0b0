"""The promise, on a real MongoDB: whatever interleaves, derived collections end up equal to a recomputation.

A story is told by rules: documents are written, workers read, derive and commit step by step, crash, and take
over from one another; collections are dropped and renamed, jobs are asked for, code is deployed. Whenever a
worker has caught up, what is stored is held against what the documents yield. A worker's steps are those of
the real one, taken by hand, so that a story can be told again and shrinks to its shortest form.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pymongo.client_session import ClientSession

from distributary import assemble
from distributary.assemble import Assembled
from distributary.change import identity
from distributary.derive.groups import groups
from distributary.derive.plan import Owner
from distributary.derive.records import Place
from distributary.derive.registry import Registry
from distributary.derive.transform import Failure, Transform, derive
from distributary.engine import jobs
from distributary.errors import LeaseLost
from distributary.sink import rollups
from distributary.state import Job, JobKind, LetterKind
from distributary.store.checkpoints import Checkpoints
from distributary.store.jobs import Jobs
from distributary.store.letters import Letters
from tests.conftest import SOAK, Databases
from tests.harness import Harness
from tests.property.past import Past, Shown, shown
from tests.property.stepped import Stepped, expire
from tests.property.trail import SOURCES, Trail
from tests.tap import POINTS, Crash, Tap

#: Stories that are told, of up to 25 rules each; a story takes about a second.
STORIES = 14 * SOAK

ASIDE = "aside"

#: A cluster time in a resume token that no history reaches back to.
LONG_AGO = "0000000100000001"

#: Transforms by name, with the collection that they read.
TRANSFORMS = {"orders": "orders", "users": "users", "more": "orders"}

#: A document that is `bad` fails under one of the two twists of the code, so that a deployment repairs it.
HEAD = """
    from distributary import DerivedCollection, Rollup, transform, trigger

    audit = DerivedCollection("audit")

    @trigger("orders")
    def trail_of_orders(change):
        yield audit.record(change.position, {"of": change.key, "operation": change.operation})

    @trigger("users", operations=["insert", "update", "replace", "delete"])
    def trail_of_users(change):
        yield audit.record(change.position, {"of": change.key, "operation": change.operation})

    codes = DerivedCollection("codes")
    wholes = DerivedCollection("wholes")
    sums = {"count": {"$sum": 1}, "sum": {"$sum": "$value"}}
    rollups = [
        Rollup("by_name", over=codes, by="by", compute=sums),
        Rollup("by_both", over=codes, by=["by", "value"], compute=sums, match={"value": {"$gt": 0}}),
    ]
"""
BODY = """
    {name}_records = DerivedCollection("{name}_records")
    {name}_lines = DerivedCollection("{name}_lines")
    {name}_twist = {twist}

    @transform("{source}", name="{name}")
    def {name}(document):
        if document["bad"] == {name}_twist:
            raise ValueError("bad")
        if document["value"]:
            yield {name}_records.record(document["_id"], {{"value": document["value"]}})
        for line in range(document["lines"]):
            yield {name}_lines.record({{"of": document["_id"], "line": line + {name}_twist}}, {{"value": line}})
        for code in document["codes"]:
            yield codes.record((code + {name}_twist) % 3, {{"by": "{name}", "value": document["value"]}})
            yield wholes.item(code, "{name}_items", document["_id"], {{"value": document["value"]}})
        if document["lines"] == 2:
            yield wholes.section({name}_twist, "{name}_section", {{"value": document["value"]}})
"""


class Put(NamedTuple):
    """Insert a document, or replace the one that is there."""

    source: str
    key: Any
    value: int
    lines: int
    codes: tuple[int, ...]
    bad: int | None

    def apply(self, databases: Databases, session: ClientSession | None) -> None:
        """Do it."""
        document = {"_id": self.key, **self._asdict(), "codes": list(self.codes)}
        collection = databases.raw[self.source]
        if collection.find_one({"_id": self.key}, session=session):
            collection.replace_one({"_id": self.key}, document, session=session)
        else:
            collection.insert_one(document, session=session)


class Set(NamedTuple):
    """Update one field of the document that is there, if one is."""

    source: str
    key: Any
    field: str
    value: Any

    def apply(self, databases: Databases, session: ClientSession | None) -> None:
        """Do it."""
        databases.raw[self.source].update_one(
            {"_id": self.key}, {"$set": {self.field: self.value}}, session=session
        )


class Delete(NamedTuple):
    """Delete the document that is there, if one is."""

    source: str
    key: Any

    def apply(self, databases: Databases, session: ClientSession | None) -> None:
        """Do it."""
        databases.raw[self.source].delete_one({"_id": self.key}, session=session)


Operation = Put | Set | Delete

#: What a worker does: read a reply ahead, derive a batch ahead, commit it, call triggers ahead of their commit, do a
#: slice of a job before that or all of one; and what it may be asked for meanwhile.
STEPS = ("read", "derive", "step", "react", "slice", "do_jobs", "ask")

source_names = st.sampled_from(SOURCES)
keys = st.sampled_from([1, "a"])
values = st.integers(0, 1)
lines = st.integers(0, 2)
codes = st.lists(st.integers(0, 2), max_size=2, unique=True).map(tuple)
bad = st.sampled_from([None, None, None, 0, 1])
twists = st.integers(0, 1)
puts = st.builds(Put, source_names, keys, values, lines, codes, bad)
sets = st.one_of(
    st.builds(Set, source_names, keys, st.just("lines"), lines),
    st.builds(Set, source_names, keys, st.just("codes"), codes.map(list)),
    st.builds(Set, source_names, keys, st.just("bad"), bad),
    st.builds(Set, source_names, keys, st.just("value"), values),
)
operations = st.one_of(puts, sets, st.builds(Delete, source_names, keys))
some_operations = st.lists(operations, min_size=1, max_size=6)


@dataclass(frozen=True)
class Story:
    """What the stories of one test share."""

    databases: Databases
    folder: Path
    registries: dict[str, Registry]
    lost: str


class Promise(RuleBasedStateMachine):
    """One story: a source, the workers on it, and what their collections have to be equal to."""

    def __init__(self, story: Story) -> None:
        super().__init__()
        self._story = story
        self._databases = story.databases
        self._harness = Harness(story.databases, story.folder, {})
        self._past = Past()
        self._tap = Tap(committed=self._look_back)
        self._worker: Stepped | None = None
        self._zombie: Stepped | None = None
        self._twists: dict[str, int] = {}
        self._outdated: set[Owner] = set()
        self._failed = False
        self._threads = self._rebuilds = False
        self._trail: Trail | None = None

    @initialize(
        threads=st.sampled_from([False, False, True]),
        batch=st.integers(1, 5),
        scan=st.integers(1, 3),
        drop=st.sampled_from(["keep", "purge"]),
        change=st.sampled_from(["rebuild", "rebuild", "warn"]),
        existing=st.lists(puts, max_size=3),
    )
    def begin(
        self, *, batch: int, scan: int, drop: str, change: str, threads: bool, existing: list[Put]
    ) -> None:
        """Start with empty databases and a few documents; `threads`: it ends with a worker as it really runs."""
        self._threads = threads
        _empty(self._databases)
        self._trail = Trail(self._databases)
        self._harness.settings = {
            "worker.batch_changes": str(batch),
            "worker.scan_documents": str(scan),
            "worker.on_source_drop": drop,
            "worker.on_change": change,
            "worker.linger_milliseconds": "0",
            "worker.read_ahead_batches": "1",
            "dead_letters.max_in_window": "0",
        }
        self._plug({"orders": 0, "users": 0})
        self._write(existing, None)

    # --- the source -----------------------------------------------------------------------------------------

    @rule(operation=operations)
    def write(self, operation: Operation) -> None:
        """Change one document."""
        self._write([operation], None)

    @rule(operations=some_operations)
    def transact(self, operations: list[Operation]) -> None:
        """Change some documents in one transaction."""
        with self._databases.client.start_session() as session, session.start_transaction():
            self._write(operations, session)

    @rule(source=source_names, replaced_by=st.none() | st.lists(puts, max_size=3))
    def drop(self, source: str, replaced_by: list[Put] | None) -> None:
        """Drop a source collection, or rename another one onto it, which a third was renamed to before."""
        raw, before = self._databases.raw, self._keys(source)
        for each in replaced_by or []:
            each._replace(source=ASIDE).apply(self._databases, None)
        if replaced_by is None or not self._exists(ASIDE):
            raw[source].drop()
        else:
            raw[ASIDE].rename(source, dropTarget=True)
        self._note(source, before + self._keys(source))

    @rule(source=source_names)
    def rename_away(self, source: str) -> None:
        """Rename a source collection."""
        before = self._keys(source)
        if self._exists(source):
            self._databases.raw[source].rename(ASIDE, dropTarget=True)
            self._note(source, before)

    # --- the worker -----------------------------------------------------------------------------------------

    @rule(parts=st.lists(operations | st.sampled_from(STEPS), min_size=2, max_size=12))
    def live(self, parts: list[Operation | str]) -> None:
        """Let the worker take steps while documents change."""
        for each in parts:
            if each == "ask":
                self._ask()
            elif isinstance(each, str):
                self._do(methodcaller(each))
            else:
                self._write([each], None)

    @rule()
    def catch_up(self) -> None:
        """Catch up, and compare."""
        self._do(Stepped.catch_up)
        self._check()

    @rule(point=st.sampled_from(POINTS), commits=st.integers(0, 3))
    def crash(self, point: str, commits: int) -> None:
        """Catch up, and end at a point of a commit when it comes to it."""
        self._tap.point, self._tap.commits, self._tap.action = point, commits, _crash
        try:
            self._do(Stepped.catch_up)
        except Crash:
            note("crashed")
            self._leave()
        self._tap.point = ""

    @rule(
        lost=st.sampled_from([[], [], ["position"], ["triggers.position"], ["position", "triggers.position"]])
    )
    def kill(self, lost: list[str]) -> None:
        """End between two steps with nothing saved; the history may not reach back to the checkpoint then."""
        self._leave()
        found = self._databases.state.checkpoints.find_one({"position": {"$exists": True}})
        if lost and found is not None:
            tokens = {"$set": {f"{each}.token": self._story.lost for each in lost}}
            self._databases.state.checkpoints.update_one({}, tokens)

    @rule(point=st.sampled_from(POINTS), commits=st.integers(0, 2))
    def overtake(self, point: str, commits: int) -> None:
        """Catch up, and have another worker take over and catch up at a point of a commit."""
        self._tap.point, self._tap.commits, self._tap.action = point, commits, self._another
        before = self._current()
        try:
            self._checked(before.catch_up)
        except LeaseLost:
            note("overtaken")
        if self._worker is not before:
            before.end()
        self._tap.point = ""
        self._check()

    @rule()
    @precondition(lambda self: self._worker is not None)
    def pause(self) -> None:
        """Stop the worker for longer than its lease, while another one takes over."""
        paused = self._worker
        self._another()
        if self._zombie:
            self._zombie.end()
        self._zombie = paused

    @rule(step=st.sampled_from(STEPS[:4]))
    @precondition(lambda self: self._zombie is not None)
    def wake(self, step: str) -> None:
        """Let the worker go on that was paused: it commits nothing."""
        assert self._zombie is not None
        before = self._commits()
        try:
            self._checked(getattr(self._zombie, step))
        except LeaseLost:
            self._zombie.end()
            self._zombie = None
        assert self._commits() == before

    # --- its operator ---------------------------------------------------------------------------------------

    @rule(source=source_names, some=st.lists(keys, min_size=1, unique=True))
    @precondition(lambda self: self._began())
    def derive_again(self, source: str, some: list[Any]) -> None:
        """Ask for some documents to be derived again."""
        job = Job(None, JobKind.DERIVE, source, self._names(source), "story", keys=some, total=len(some))
        if job.transforms:
            Jobs(self._databases.state, "default").ask([job])

    @rule(
        name=st.sampled_from(sorted(TRANSFORMS)),
        parts=st.lists(operations | st.sampled_from(STEPS), max_size=12),
    )
    @precondition(lambda self: self._began())
    def rebuild(self, name: str, parts: list[Operation | str]) -> None:
        """Have the collections of a transform built anew while documents change and the worker takes steps."""
        if name not in self._twists:
            return
        plugged = {each: sorted(known.collections) for each, known in self._registry.transforms.items()}
        (group,) = groups(plugged, [name])
        jobs = Jobs(self._databases.state, "default")
        (job,) = jobs.ask([Job(None, JobKind.REBUILD, TRANSFORMS[name], group, "story")])
        self.live(parts)
        self._do(Stepped.catch_up)
        found = jobs.get(job.id)
        assert found is not None
        assert found.done
        if not found.failure:
            self._outdated = {owner for owner in self._outdated if owner.transform not in group}
        self._check()

    @rule()
    @precondition(lambda self: self._began())
    def retry(self) -> None:
        """Ask for all parked documents to be tried again."""
        letters = Letters(self._databases.state, "default")
        parked = [each.key for each in letters.parked()]
        with self._databases.client.start_session() as session:
            letters.make_due(parked, session)

    @rule(name=st.sampled_from(sorted(TRANSFORMS)), twist=st.none() | twists)
    def deploy(self, name: str, twist: int | None) -> None:
        """Start with a transform that is new, or whose code is another one, or (None) without it."""
        self._leave()
        before = self._twists.get(name, twist)
        others = {each: known for each, known in self._twists.items() if each != name}
        if twist is None and not others:
            return
        self._plug(others if twist is None else others | {name: twist})
        self._outdated = {owner for owner in self._outdated if twist is not None or owner.transform != name}
        if twist is not None and before != twist:
            self._outdate(name)
        self._do(Stepped.open)

    # --- how ------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Catch up a last time, and compare; a story that failed already is over."""
        try:
            if not self._failed and self._twists:
                self._end()
        finally:
            self._leave()
            if self._zombie:
                self._zombie.end()
            if self._trail is not None:
                self._trail.close()

    def _end(self) -> None:
        if not self._threads:
            self.catch_up()
            return
        self._leave()
        expire(self._databases.state, "default")
        self._checked(self._harness.catch_up)
        self._check()

    def _write(self, operations: Iterable[Operation], session: ClientSession | None) -> None:
        for operation in operations:
            operation.apply(self._databases, session)
            self._note(operation.source, [operation.key], session)

    def _note(self, source: str, keys: Iterable[Any], session: ClientSession | None = None) -> None:
        """Note how documents are now."""
        for key in {identity(key): key for key in keys}.values():
            self._past.note(source, key, self._databases.raw[source].find_one({"_id": key}, session=session))
            self._outdated -= {Owner(name, identity(key)) for name in self._names(source)}

    def _keys(self, source: str) -> list[Any]:
        return [each["_id"] for each in self._databases.raw[source].find({}, {"_id": 1})]

    def _forget(self, source: str) -> None:
        names = self._names(source)
        self._outdated = {owner for owner in self._outdated if owner.transform not in names}

    def _exists(self, collection: str) -> bool:
        return collection in self._databases.raw.list_collection_names()

    def _names(self, source: str) -> tuple[str, ...]:
        return tuple(name for name in sorted(self._twists) if TRANSFORMS[name] == source)

    def _ask(self) -> None:
        """Ask for a backfill of every source."""
        for source in SOURCES if self._began() else ():
            job = Job(None, JobKind.BACKFILL, source, self._names(source), "story", sweep=True)
            if job.transforms:
                Jobs(self._databases.state, "default").ask([job])
                self._forget(source)

    def _began(self) -> bool:
        return Checkpoints(self._databases.state).load("default") is not None

    def _commits(self) -> Any:
        found = self._databases.state.checkpoints.find_one({}) or {}
        return found.get("fence"), found.get("revision")

    def _plug(self, twists: Mapping[str, int]) -> None:
        self._twists = dict(twists)
        code = HEAD + "".join(
            BODY.format(name=name, source=TRANSFORMS[name], twist=twist)
            for name, twist in sorted(twists.items())
        )
        self._harness.write({"story": code})
        self._registry = self._story.registries.get(code) or self._harness.registry
        self._story.registries[code] = self._registry
        self._past.plug(self._registry.transforms.values())

    def _outdate(self, name: str) -> None:
        """Under `warn` what is not touched any more may show the old code."""
        if self._harness.settings["worker.on_change"] == "warn":
            documents = self._databases.raw[TRANSFORMS[name]].find({}, {"_id": 1})
            self._outdated |= {Owner(name, identity(each["_id"])) for each in documents}

    def _current(self) -> Stepped:
        if self._worker is None:
            databases = self._databases
            connected = assemble.Databases(databases.raw, databases.derived, databases.state)
            self._worker = Stepped(Assembled(self._harness.config, connected, self._registry), self._tap)
        return self._worker

    def _another(self) -> None:
        self._worker = None
        self._current().catch_up()

    def _do(self, action: Callable[[Stepped], None]) -> None:
        self._checked(lambda: action(self._current()))

    def _checked(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (Crash, LeaseLost):
            raise
        except BaseException:
            self._failed = True
            raise

    def _leave(self) -> None:
        if self._worker is not None:
            self._worker.end()
        self._worker = None

    def _check(self) -> None:
        records = shown(self._databases)
        self._checked(lambda: Comparison(self._databases, self._registry, self._outdated, records).check())
        self._checked(self._check_rollups)
        if self._trail is not None:
            self._checked(self._trail.check)
        self._past.built(self._twists)

    def _check_rollups(self) -> None:
        """Hold every group against a sum over the stored records, one by one."""
        derived = self._databases.derived
        for name, is_both in (("by_name", False), ("by_both", True)):
            wanted: dict[Any, tuple[int, int]] = {}
            for each in derived["codes"].find({"value": {"$gt": 0}} if is_both else {}):
                group = (each["by"], each["value"]) if is_both else each["by"]
                count, total = wanted.get(group, (0, 0))
                wanted[group] = (count + 1, total + each["value"])
            found = {
                (tuple(each["_id"].values()) if is_both else each["_id"]): (each["count"], each["sum"])
                for each in derived[name].find()
            }
            assert found == wanted, f"{name} differs from a recomputation"
        assert not list(self._databases.state["pending"].find())

    def _look_back(self) -> None:
        """After every commit: nothing that is stored is older than what was stored before."""
        rebuilds = self._databases.state.jobs.find_one({"kind": "rebuild", "done": False}) is not None
        self._past.lenient, self._rebuilds = rebuilds or self._rebuilds, rebuilds
        self._past.check(shown(self._databases))
        if self._trail is not None:
            self._trail.look()


class Comparison:
    """What is stored, against what the documents yield now."""

    def __init__(
        self, databases: Databases, registry: Registry, outdated: set[Owner], records: Shown
    ) -> None:
        self._databases = databases
        self._registry = registry
        self._outdated = outdated
        checkpoint = Checkpoints(databases.state).load("default")
        assert checkpoint is not None
        plugged = registry.transforms
        watched = {each.source for each in plugged.values()}
        detached = set(checkpoint.detached) & watched
        self._frozen = {name for name in detached if databases.raw[name].find_one() is None}
        assert detached == self._frozen, "detached, and has documents"
        assert all(checkpoint.transforms[name].built for name in plugged), "a transform is not built"
        self._transforms = {n: each for n, each in plugged.items() if each.source not in self._frozen}
        self._letters = {
            Owner(each["transform"], identity(each["key"])): LetterKind(each["kind"])
            for each in databases.state.dead_letters.find({"worker": "default"})
        }
        self._stored = records

    def check(self) -> None:
        """Fail unless they are equal."""
        expected: dict[Place, tuple[Owner, bytes]] = {}
        claims: dict[Owner, list[Place]] = {}
        seen = set()
        for owner, transform, document in self._documents():
            seen.add(owner)
            if owner in self._outdated:
                continue
            output = derive(transform, document, 1000)
            kind = self._letters.get(owner)
            if isinstance(output, Failure):
                assert kind is LetterKind.FAILED, f"{owner} fails and its letter is {kind}"
            elif kind is LetterKind.CONTESTED:
                claims[owner] = [record.place for record in output]
            else:
                assert kind is None, f"{owner} is parked as {kind} and can be derived"
                for record in output:
                    assert record.place not in expected, f"{record.place} has two owners, none of them parked"
                    expected[record.place] = (owner, record.body)
        self._no_letters_of_nobody(seen)
        self._contests(claims)
        assert self._comparable() == expected

    def _documents(self) -> Iterator[tuple[Owner, Transform, dict[str, Any]]]:
        for transform in self._transforms.values():
            for document in self._databases.raw[transform.source].find():
                yield Owner(transform.name, identity(document["_id"])), transform, document

    def _no_letters_of_nobody(self, seen: set[Owner]) -> None:
        for owner in self._letters:
            assert owner.transform not in self._transforms or owner in seen, f"{owner} is parked and gone"

    def _comparable(self) -> dict[Place, tuple[Owner, bytes]]:
        kept = self._outdated | self._letters.keys()
        return {
            place: each
            for place, each in self._stored.items()
            if each[0].transform in self._transforms and each[0] not in kept
        }

    def _contests(self, claims: Mapping[Owner, Sequence[Place]]) -> None:
        """Fail unless what each contested document lacks is held by one that keeps it with good reason."""
        open_claims = dict(claims)
        while open_claims:
            justified = [
                owner for owner, places in open_claims.items() if self._is_kept(places, owner, open_claims)
            ]
            assert justified, f"contested without a reason: {open_claims}"
            for owner in justified:
                del open_claims[owner]

    def _is_kept(
        self, places: Iterable[Place], me: Owner, unexplained: Mapping[Owner, Sequence[Place]]
    ) -> bool:
        """Whether another one holds one of these places, which is not parked itself, or yields that place as well."""
        held = [(place, self._stored[place][0]) for place in places if place in self._stored]
        return any(
            holder.transform in self._registry.transforms and place in unexplained.get(holder, [place])
            for place, holder in held
            if holder != me
        )


def _crash() -> None:
    raise Crash


def _lost(databases: Databases) -> str:
    """Give the token of a change that is not in the history.

    A token of no change would not do: a server whose history goes back to its first day opens at any time.
    """
    with databases.raw.watch() as stream:
        databases.raw[SOURCES[0]].insert_one({})
        token: str = next(stream)["_id"]["_data"]
    return token.replace(token[2:18], LONG_AGO, 1)


def _empty(databases: Databases) -> None:
    for database in databases:
        for name in database.list_collection_names():
            database[name].delete_many({})
    databases.raw[ASIDE].drop()
    for name in set(SOURCES) - set(databases.raw.list_collection_names()):
        databases.raw.create_collection(name)


@pytest.mark.timeout(7200)
def test_the_promise(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every catch-up of any story, derived equals recomputed and letters name what is parked."""
    monkeypatch.setattr(jobs, "LOOK_SECONDS", 0)
    monkeypatch.setattr(rollups, "ROLLUP_RECORDS", 3)
    monkeypatch.setattr(rollups, "LARGE_GROUP", 2)
    story = Story(databases, tmp_path / "modules", {}, _lost(databases))
    run_state_machine_as_test(
        partial(Promise, story),  # type: ignore[arg-type]  # called, whatever its annotation says
        settings=settings(
            max_examples=STORIES,
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
