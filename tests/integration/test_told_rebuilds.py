"""A rebuild and who applies the events: after one that publishes, both have the same."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

import pytest

from distributary.engine.rebuild import Rebuilds
from distributary.operate.backfill import backfills
from distributary.operate.publishing import told_of
from distributary.operate.rebuild import rebuild
from distributary.sink.shelf import MongoShelf
from distributary.state import Job
from distributary.store.checkpoints import Checkpoints
from distributary.store.jobs import Jobs
from tests.conftest import Databases, eventually
from tests.faulty import FaultyPubSub, faulty
from tests.harness import Harness
from tests.integration.test_publishing import applied, assert_in_order, event_of, stored
from tests.pubsub import PROJECT

#: Each order yields a record by its key, one by its code, and an item of its customer; what stays is equal in both.
CODE = """
    from distributary import DerivedCollection, transform

    plain = DerivedCollection("plain", publish="plain")
    coded = DerivedCollection("coded", publish="coded")
    customer = DerivedCollection("customer", publish="customer")
    silent = DerivedCollection("silent")

    @transform("orders")
    def view(order):
        kept = order["total"] % 10 == 0
        yield silent.record(order["_id"], {{"form": {form!r}}})
        yield plain.record(order["_id"], {{"total": order["total"], "form": "kept" if kept else {form!r}}})
        yield coded.record(order["code"] if kept else f"{form}-{{order['code']}}", {{"total": order["total"]}})
        yield customer.item(order["customer"], "orders", order["_id"], {{"form": "kept" if kept else {form!r}}})
"""

OLD, NEW = CODE.format(form="old"), CODE.format(form="new")

COLLECTIONS = ("plain", "coded", "customer")

ORDERS, KEPT = 100, 10


def order(key: int, total: int | None = None) -> dict[str, Any]:
    """Give a raw order; each tenth is kept as it is by the new code, and so is its customer."""
    total = key if total is None else total
    return {"_id": key, "total": total, "code": f"c{key}", "customer": f"C{key % 10}"}


@pytest.fixture
def service() -> Iterator[FaultyPubSub]:
    """Give a Pub/Sub that keeps what it has taken, in order."""
    with faulty(*(f"projects/{PROJECT}/topics/{name}" for name in COLLECTIONS)) as service:
        yield service


@pytest.fixture
def harness(databases: Databases, tmp_path: Path, service: FaultyPubSub) -> Harness:
    """Give a worker that has told of some orders, and whose code changed since."""
    settings = {"pubsub.project": PROJECT, "worker.scan_documents": "20"}
    made = Harness(databases, tmp_path / "transformers", {"orders": OLD}, settings)
    databases.raw.orders.insert_many([order(key) for key in range(ORDERS)])
    made.catch_up()
    assert_told(service, databases)
    made.write({"orders": NEW})
    return made


def is_told(service: FaultyPubSub, databases: Databases) -> bool:
    """Whether who applies the events has what is derived."""
    return all(applied(service.of(name)) == stored(databases, name) for name in COLLECTIONS)


def assert_told(service: FaultyPubSub, databases: Databases) -> None:
    """Fail if who applies the events has anything else than what is derived, or got it in another order."""
    for name in COLLECTIONS:
        assert applied(service.of(name)) == stored(databases, name)
        assert_in_order(service.of(name))


def asked(harness: Harness) -> None:
    """Ask for a rebuild that publishes, as the verb does."""
    Jobs(harness.databases.state, "default").ask(
        [rebuild(harness.registry, harness.registry.transforms, publish=True)]
    )


def news(service: FaultyPubSub, name: str, since: int) -> set[str]:
    """Give the keys of which something was told behind so many messages."""
    return {event_of(each)["subject"] for each in service.of(name)[since:]}


def test_what_differs_is_told(harness: Harness, service: FaultyPubSub, databases: Databases) -> None:
    """Changed and new records, and keys that are gone; of what is equal nobody hears again."""
    before = {name: len(service.of(name)) for name in COLLECTIONS}
    answer = json.loads(harness.said("rebuild", "view", "--publish", "--json"))
    changed = ORDERS - KEPT
    assert (answer["told"], answer["untold"]) == ({"plain": changed, "coded": 2 * changed, "customer": 9}, {})
    harness.catch_up()
    assert_told(service, databases)
    harness.assert_equal()
    told = {name: service.of(name)[before[name] :] for name in COLLECTIONS}
    assert {name: len(some) for name, some in told.items()} == answer["told"]
    assert news(service, "customer", before["customer"]) == {f"C{key}" for key in range(1, 10)}
    types = [event_of(each)["type"].rpartition(".")[2] for each in told["coded"]]
    assert (types.count("upserted"), types.count("deleted")) == (changed, changed)
    assert [databases.state[name].count_documents({}) for name in ("outbox", "untold")] == [0, 0]


def test_what_is_equal_is_not_told(harness: Harness, service: FaultyPubSub, databases: Databases) -> None:
    """A rebuild by the same code is none of a subscriber's business, though all is written anew."""
    harness.write({"orders": OLD})
    before = len(service.taken)
    asked(harness)
    harness.catch_up()
    assert len(service.taken) == before
    assert_told(service, databases)


def test_a_rebuild_that_tells_nobody_says_so(
    harness: Harness, service: FaultyPubSub, databases: Databases
) -> None:
    """The answer counts what subscribers have otherwise, and names what helps, which does."""
    before = len(service.taken)
    said = harness.said("rebuild", "view")
    assert "coded: subscribers were told of none of the 180 records that differ" in said
    assert "`distributary backfill --transform view --publish`" in said
    harness.catch_up()
    assert len(service.taken) == before
    assert not is_told(service, databases)
    service.taken.clear()
    harness.said("backfill", "--transform", "view", "--publish")
    assert_told(service, databases)


def test_a_rebuild_that_nobody_asked_for_tells(
    harness: Harness, service: FaultyPubSub, databases: Databases
) -> None:
    """With `on_change = "rebuild"` nobody reads an answer, so that subscribers are told."""
    harness.settings = {**harness.settings, "worker.on_change": "rebuild"}
    harness.catch_up()
    harness.assert_equal()
    assert_told(service, databases)


def test_beside_live_writes(harness: Harness, service: FaultyPubSub, databases: Databases) -> None:
    """Whatever is inserted, changed, moved and removed meanwhile, the events lead to what is derived."""
    stop, orders = Event(), databases.raw.orders

    def write() -> None:
        key = 1000
        while not stop.wait(0.02):
            key += 1
            orders.insert_one(order(key))
            orders.update_one({"_id": key % ORDERS}, {"$inc": {"total": 1}})
            orders.update_one({"_id": key - 5}, {"$set": {"code": f"m{key}"}})
            orders.delete_one({"_id": key - 9})
            orders.delete_one({"_id": (7 * key) % ORDERS})

    writer = Thread(target=write)
    with harness.running():
        writer.start()
        try:
            asked(harness)
            eventually(lambda: not Jobs(databases.state, "default").open())
        finally:
            stop.set()
            writer.join()
    harness.catch_up()
    harness.assert_equal()
    assert_told(service, databases)


Settle = Callable[[Rebuilds, Job, str], Job]


def before_the_swap(monkeypatch: pytest.MonkeyPatch, work: Callable[[Job], bool]) -> None:
    """Do something between the comparison and the swap; the rebuild waits until it is true."""
    settle: Settle = Rebuilds._settle

    def waiting(self: Rebuilds, job: Job, name: str) -> Job:
        return settle(self, job, name) if work(job) else job

    monkeypatch.setattr(Rebuilds, "_settle", waiting)


@pytest.mark.parametrize("end", ["cancel", "pause"])
def test_one_that_ends_before_the_swap_tells_nothing(
    harness: Harness,
    service: FaultyPubSub,
    databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """Cancelled or paused when all is compared, it is as if it had never been; resumed, it tells everything."""
    jobs, before = Jobs(databases.state, "default"), len(service.taken)
    asked(harness)
    with monkeypatch.context() as patched:

        def halt(job: Job) -> bool:
            if end == "cancel":
                jobs.cancel(job.id)
            else:
                jobs.pause(job.id, paused=True)
            return False

        before_the_swap(patched, halt)
        harness.catch_up()
    assert len(service.taken) == before
    assert_told(service, databases)
    if end == "cancel":
        assert databases.state.untold.count_documents({}) == 0
        return
    (job,) = jobs.open()
    jobs.pause(job.id, paused=False)
    harness.catch_up()
    harness.assert_equal()
    assert_told(service, databases)


def test_a_record_with_another_owner(
    databases: Databases, tmp_path: Path, service: FaultyPubSub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal by content, it stays when its former owner leaves before the swap; subscribers know."""
    code = """
        from distributary import DerivedCollection, transform

        plain = DerivedCollection("plain", publish="plain")
        customer = DerivedCollection("customer", publish="customer")

        @transform("documents")
        def documents(document):
            if document["by"] == {by!r}:
                yield plain.record("k", {{"value": 1}})
                yield customer.section("k", "part", {{"value": 1}})
    """
    modules = {"documents": code.format(by="old")}
    harness = Harness(databases, tmp_path / "transformers", modules, {"pubsub.project": PROJECT})
    databases.raw.documents.insert_many([{"_id": 1, "by": "old"}, {"_id": 2, "by": "new"}])
    harness.catch_up()
    harness.write({"documents": code.format(by="new")})
    asked(harness)

    def leave(_: Job) -> bool:
        databases.raw.documents.delete_one({"_id": 1})
        return not any(databases.derived[name].count_documents({}) for name in ("plain", "customer"))

    before_the_swap(monkeypatch, leave)
    harness.catch_up()
    harness.assert_equal()
    for name in ("plain", "customer"):
        assert applied(service.of(name)) == stored(databases, name) != {}


def test_a_swap_that_is_begun_again(
    harness: Harness, service: FaultyPubSub, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody drops a shadow when another one has its place already: what differs in that is told all the same."""
    put, dropped = MongoShelf.put, list[str]()

    def interfere(self: MongoShelf, name: str, known: UUID, onto: str, over: UUID | None) -> None:
        put(self, name, known, onto, over)
        if onto == "coded" and not dropped:
            dropped.extend(
                each for each in databases.derived.list_collection_names() if "plain__rebuild" in each
            )
            databases.derived.drop_collection(dropped[0])

    monkeypatch.setattr(MongoShelf, "put", interfere)
    asked(harness)
    harness.catch_up()
    assert len(dropped) == 1
    harness.assert_equal()
    assert_told(service, databases)
    assert databases.state.untold.count_documents({}) == 0


@pytest.mark.parametrize("end", ["cancel", "pause"])
def test_records_wait_for_the_backfill_in_front(
    harness: Harness, service: FaultyPubSub, databases: Databases, end: str
) -> None:
    """They are told of once it is done; as long as it is paused they are not, nor when it was cancelled."""
    harness.write({"orders": OLD})
    jobs, before = Jobs(databases.state, "default"), len(service.taken)
    chosen = harness.registry.transforms
    first = backfills(chosen, Checkpoints(databases.state).load("default"))
    backfill, *_ = jobs.ask(told_of(harness.registry, chosen, first))
    jobs.pause(backfill.id, paused=True)
    harness.catch_up()
    assert len(service.taken) == before
    if end == "cancel":
        jobs.cancel(backfill.id)
        assert jobs.open() == []
        return
    jobs.pause(backfill.id, paused=False)
    harness.catch_up()
    assert jobs.open() == []
    assert len(service.taken) == before + sum(len(stored(databases, name)) for name in COLLECTIONS)
