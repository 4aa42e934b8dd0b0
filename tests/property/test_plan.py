"""The plan, against a naive recomputation: no server, any interleaving of documents, owners and batches."""

from collections.abc import Iterable
from typing import Any

from bson import Decimal128, Timestamp, decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st

from distributary.change import CODEC, Identity, Version, identity
from distributary.derive.plan import Desired, Owner, Plan, Stored, reconcile, stored
from distributary.derive.records import DerivedCollection, Place, encode_record, origin, tail_of

COLLECTIONS = {name: DerivedCollection(name) for name in ("a", "b")}
TRANSFORMS = ("f", "g")

#: Few keys, so that documents meet; equal ones in several types, as MongoDB compares them.
KEYS = st.sampled_from([1, 1.0, Decimal128("1"), 2, "x", True, None])
RECORD_KEYS = st.sampled_from([1, 1.0, Decimal128("1"), 2, 3, True, "x", {"p": 1, "q": 2}, {"q": 2, "p": 1}])


class _Key:
    """A record key that hashes as MongoDB compares."""

    def __init__(self, key: Any) -> None:
        self.key = key
        self.identity = identity(key)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.identity == other.identity

    def __repr__(self) -> str:
        return repr(self.key)


YIELDS = st.dictionaries(
    st.tuples(st.sampled_from(sorted(COLLECTIONS)), RECORD_KEYS.map(_Key)),
    st.integers(0, 2),
    max_size=3,
)
BATCHES = st.lists(st.lists(st.tuples(st.sampled_from(TRANSFORMS), KEYS, YIELDS), max_size=4), max_size=6)

Yield = dict[tuple[str, _Key], int]


def desired(transform: str, key: Any, output: Yield, time: int, *, fresh: bool = False) -> Desired:
    """Give what a document yields, as the engine would."""
    version = Version(1, Timestamp(time, 1))
    source = origin(transform, key, version)
    records = [
        encode_record(COLLECTIONS[collection].record(each.key, {"v": value}), source, tail_of(source))
        for (collection, each), value in output.items()
    ]
    return Desired(transform, key, Owner(transform, identity(key)), version, records, fresh)


class Store:
    """Derived collections in memory, with MongoDB's key equality."""

    def __init__(self) -> None:
        self.records: dict[Place, Stored] = {}

    def known(self, owners: Iterable[Owner], places: Iterable[Place]) -> list[Stored]:
        """Give what the sink would learn: the owners' records, and those under the yielded keys."""
        wanted, under = set(owners), set(places)
        return [each for place, each in self.records.items() if each.owner in wanted or place in under]

    def apply(self, plan: Plan) -> None:
        """Apply a plan as MongoDB would: an insert of a key that exists is an error."""
        for collection, keys in plan.deletes.items():
            for key in keys:
                del self.records[collection, identity(key)]
        for is_new, writes in ((False, plan.replaces), (True, plan.inserts)):
            for record, _ in (each for some in writes.values() for each in some):
                assert (record.place not in self.records) == is_new
                document = decode(record.document, CODEC)
                self.records[record.place] = stored(record.collection, document, record.document)

    def content(self) -> dict[Place, tuple[Owner | None, bytes]]:
        """Give what lies where, and whose it is."""
        return {place: (each.owner, each.body) for place, each in self.records.items()}


def places(items: Iterable[Desired]) -> list[Place]:
    """Give the places that documents yield."""
    return [(record.collection, record.identity) for item in items for record in item.records]


def run(store: Store, items: list[Desired]) -> Plan:
    """Reconcile a batch with everything known that matters, and apply it."""
    plan = reconcile(items, store.known([item.owner for item in items], places(items)))
    store.apply(plan)
    return plan


def last_of_each(batch: Iterable[tuple[str, Any, Yield]]) -> list[tuple[str, Any, Yield]]:
    """Collapse a batch: the last output per owner."""
    latest: dict[tuple[str, Identity], tuple[str, Any, Yield]] = {}
    for transform, key, output in batch:
        latest[transform, identity(key)] = (transform, key, output)
    return list(latest.values())


@given(BATCHES)
def test_any_batches_end_equal_to_a_recomputation(batches: list[list[tuple[str, Any, Yield]]]) -> None:
    """After every batch, what is stored is what each owner yields last, of those that were never contested."""
    store = Store()
    current: dict[Owner, Desired] = {}
    parked: set[Owner] = set()
    for time, batch in enumerate(batches, start=1):
        items = [desired(*each, time) for each in last_of_each(batch)]
        plan = run(store, items)
        lost = {contest.desired.owner for contest in plan.contests}
        for item in items:
            if item.owner in lost:
                parked.add(item.owner)
            else:
                parked.discard(item.owner)
                current[item.owner] = item
        expected = {
            (record.collection, record.identity): (owner, record.body)
            for owner, item in current.items()
            for record in item.records
        }
        assert store.content() == expected


@given(BATCHES)
def test_no_key_ever_has_two_owners_and_a_loser_keeps_what_it_had(
    batches: list[list[tuple[str, Any, Yield]]],
) -> None:
    """A contested document changes nothing of its own, and names an owner that is not itself."""
    store = Store()
    for time, batch in enumerate(batches, start=1):
        items = [desired(*each, time) for each in last_of_each(batch)]
        before = store.content()
        plan = run(store, items)
        for contest in plan.contests:
            owner = contest.desired.owner
            assert contest.holder != owner
            had = {place: each for place, each in before.items() if each[0] == owner}
            has = {place: each for place, each in store.content().items() if each[0] == owner}
            assert has == had


@given(BATCHES)
def test_a_second_time_changes_nothing(batches: list[list[tuple[str, Any, Yield]]]) -> None:
    """Applying a batch twice writes nothing the second time, unless it was contested and the key is free now."""
    store = Store()
    for time, batch in enumerate(batches, start=1):
        items = [desired(*each, time) for each in last_of_each(batch)]
        lost = {contest.desired.owner for contest in run(store, items).contests}
        again = run(store, [item for item in items if item.owner not in lost])
        assert {**again.deletes, **again.replaces, **again.inserts} == {}


@given(st.lists(st.tuples(KEYS, YIELDS, st.integers(1, 5)), max_size=8))
def test_an_older_state_never_replaces_a_newer_one(states: list[tuple[Any, Yield, int]]) -> None:
    """Whatever the order in which states arrive, no stored record gives way to an older version."""
    store = Store()
    for key, output, time in states:
        before = dict(store.records)
        run(store, [desired("f", key, output, time)])
        for place, record in store.records.items():
            if place in before and before[place].owner == record.owner:
                assert record.version >= before[place].version


@given(YIELDS, YIELDS)
@settings(max_examples=50)
def test_unowned_records_give_way(output: Yield, foreign: Yield) -> None:
    """A record without an engine field under a yielded key is replaced; it has no right to be there."""
    store = Store()
    for collection, each in foreign:
        by_hand = {"_id": each.key, "by": "hand"}
        record = stored(collection, by_hand, encode(by_hand, codec_options=CODEC))
        store.records[record.place] = record
    plan = run(store, [desired("f", 1, output, 1)])
    assert not plan.contests
    mine = {place for place, each in store.records.items() if each.owner is not None}
    assert mine == {(collection, each.identity) for collection, each in output}


def test_a_swap_in_one_batch() -> None:
    """Two documents that swap their keys in one batch both get what they yield."""
    store = Store()
    run(store, [desired("f", 1, {("a", _Key(1)): 1}, 1), desired("f", 2, {("a", _Key(2)): 2}, 1)])
    plan = run(store, [desired("f", 1, {("a", _Key(2)): 1}, 2), desired("f", 2, {("a", _Key(1)): 2}, 2)])
    assert not plan.contests
    assert {place[1]: each.owner and each.owner.identity for place, each in store.records.items()} == {
        1: 2,
        2: 1,
    }


def test_who_lost_to_a_loser_is_free_to_try_again() -> None:
    """A document contested by one that is contested itself in the same batch is told that the key is free."""
    store = Store()
    run(store, [desired("f", 9, {("a", _Key(1)): 0}, 1)])
    plan = run(
        store,
        [
            desired("f", 1, {("b", _Key(2)): 1}, 2),
            desired("f", 2, {("b", _Key(2)): 2, ("a", _Key(3)): 2}, 2),
            desired("f", 3, {("a", _Key(3)): 3, ("a", _Key(1)): 3}, 2),
        ],
    )
    assert [(each.desired.key, each.free) for each in plan.contests] == [(2, False), (3, False)]
