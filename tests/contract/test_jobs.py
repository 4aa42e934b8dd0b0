"""What every store of jobs promises."""

from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest
from bson import ObjectId, Timestamp

from distributary.ports.stores import JobStore
from distributary.state import SWAP, Job, JobKind
from distributary.store.jobs import Jobs
from tests.conftest import Client, Databases
from tests.contract.making import Transaction, aborted, job, transactions
from tests.fakes import Deployment, FakeJobs

#: Gives the jobs of one worker; all workers share what lies there.
Make = Callable[[str], JobStore]


GAP = (Timestamp(1, 1), Timestamp(2, 1))


class JobStoreContract:
    """A suite for any `JobStore`; give it the fixtures `make` and `transaction`."""

    @pytest.fixture
    def store(self, make: Make) -> JobStore:
        """Give the jobs of one worker."""
        return make("w")

    def test_there_is_nothing_to_do(self, store: JobStore) -> None:
        """Without a job there is none; asking for none changes nothing."""
        assert store.ask([]) == []
        assert store.next() is None
        assert store.open() == []

    def test_what_is_asked_for_is_kept(self, store: JobStore) -> None:
        """Nothing of a job is lost, and each has an id of its own."""
        whole = Job(
            None, JobKind.DERIVE, "raw", ("f", "g"), "why", sweep=True, keys=(1, "x", {"a": 1}),
            foreign=(("a", 1), ("b", {"p": 2})), stage="scan", after=(7,), documents=3, total=9,
            code={"f": "1", "g": "2"}, gap=GAP, written=4, removed=5, failure="why not",
            only={"total": {"$gt": 3}}, span=GAP, keep=True, until=({"k": 2},), report={"kept": {"a": [1]}},
        )  # fmt: skip
        asked = store.ask([whole, whole])
        assert asked[0].id != asked[1].id
        assert store.open() == asked
        assert [replace(each, id=None) for each in asked] == [whole, whole]
        assert store.get(asked[0].id) == asked[0]
        assert store.get("none") is None

    def test_the_oldest_comes_first(self, store: JobStore) -> None:
        """Jobs are done in the order in which they were asked for."""
        store.ask([job("a"), job("b")])
        store.ask([job("c")])
        assert [each.source for each in store.open()] == ["a", "b", "c"]
        first = store.next()
        assert first is not None
        assert first.source == "a"

    def test_a_job_waits_for_those_in_front_of_it(self, store: JobStore, transaction: Transaction) -> None:
        """Until they are done; others go on meanwhile."""
        first, second = (replace(job(name), id=ObjectId()) for name in ("a", "b"))
        _, _, last = store.ask([first, second, replace(job("c"), behind=(first.id, second.id))])
        (other,) = store.ask([job("d")])
        assert last.behind == (first.id, second.id)
        for done, following in ((first, second), (second, last), (last, other)):
            assert (found := store.next()) is not None
            assert found.id == done.id
            with transaction() as session:
                store.save(replace(done, done=True), session)
            assert (found := store.next()) is not None
            assert found.id == following.id

    def test_progress_is_kept(self, store: JobStore, transaction: Transaction) -> None:
        """A job goes on where it was saved, and one that is done is not open any more."""
        first, second = store.ask([job("a"), job("b")])
        further = replace(first, stage="scan", after=({"k": 1},), documents=5)
        with transaction() as session:
            assert store.save(further, session)
        assert store.next() == further
        with transaction() as session:
            store.save(replace(further, done=True), session)
        assert store.open() == [second]

    def test_jobs_of_a_gap_are_found_when_done_too(self, store: JobStore, transaction: Transaction) -> None:
        """All jobs that make one gap good are told, and no others."""
        first, second, _ = store.ask([job("a", gap=GAP), job("b", gap=GAP), job("c")])
        over = replace(first, done=True)
        with transaction() as session:
            store.save(over, session)
        assert sorted(store.of_gap(GAP), key=lambda each: each.source) == [over, second]

    def test_an_aborted_transaction_changes_nothing(self, store: JobStore, transaction: Transaction) -> None:
        """Asking and saving are part of their transaction."""
        (first,) = store.ask([job("a")])
        with aborted(transaction) as session:
            store.ask([job("b")], session)
            store.save(replace(first, done=True), session)
        assert store.open() == [first]

    def test_workers_do_not_see_one_another(self, make: Make) -> None:
        """A job belongs to one worker."""
        make("w").ask([job("a")])
        assert make("other").next() is None
        assert make("other").open() == []


class TestFakeJobs(JobStoreContract):
    """The fake keeps the contract."""

    @pytest.fixture
    def deployment(self) -> Deployment:
        """Give an empty deployment."""
        return Deployment()

    @pytest.fixture
    def make(self, deployment: Deployment) -> Make:
        """Give the fakes."""
        return lambda worker: FakeJobs(deployment, worker)

    @pytest.fixture
    def transaction(self, deployment: Deployment) -> Transaction:
        """Give their transactions."""
        return deployment.transaction


class TestMongoJobs(JobStoreContract):
    """The real store keeps the contract."""

    @pytest.fixture
    def make(self, databases: Databases) -> Make:
        """Give the real stores."""
        Jobs(databases.state, "w").prepare()
        return lambda worker: Jobs(databases.state, worker)

    @pytest.fixture
    def transaction(self, client: Client) -> Transaction:
        """Give their transactions."""
        return transactions(client)

    def test_a_paused_job_waits(self, databases: Databases, make: Make) -> None:
        """The next one goes first, and it is there again when it goes on."""
        make("w")
        jobs = Jobs(databases.state, "w")
        first, second = jobs.ask([job("a"), job("b")])
        assert jobs.pause(first.id, paused=True)
        assert jobs.next() == second
        assert not jobs.is_wanted(first.id)
        assert [each.paused for each in jobs.open()] == [True, False]
        assert jobs.pause(first.id, paused=False)
        assert jobs.next() == first

    def test_a_cancelled_job_is_over(
        self, databases: Databases, make: Make, transaction: Transaction
    ) -> None:
        """A slice that was under way does not bring it back."""
        make("w")
        jobs = Jobs(databases.state, "w")
        (asked,) = jobs.ask([job("a")])
        assert jobs.cancel(asked.id)
        assert jobs.next() is None
        with transaction() as session:
            assert not jobs.save(replace(asked, documents=7), session)
        assert jobs.open() == []
        found = jobs.get(asked.id)
        assert found is not None
        assert (found.cancelled, found.documents) == (True, 0)

    def test_a_rebuild_that_swaps_is_not_cancelled(self, databases: Databases, make: Make) -> None:
        """Before, it can be, and is known as declined."""
        make("w")
        jobs = Jobs(databases.state, "w")
        rebuild = Job(None, JobKind.REBUILD, "raw", ("f",), "why")
        first, second = jobs.ask([rebuild, replace(rebuild, stage=SWAP)])
        assert jobs.cancel(first.id)
        assert not jobs.cancel(second.id)
        assert [each.id for each in jobs.open()] == [second.id]
        assert [each.id for each in jobs.declined()] == [first.id]

    def test_rebuilds_that_keep_are_known(
        self, databases: Databases, make: Make, transaction: Transaction
    ) -> None:
        """With the ids of what they kept, also once they are done; those of another worker are not among them."""
        make("w")
        jobs = Jobs(databases.state, "w")
        keeping = Job(None, JobKind.REBUILD, "raw", ("f",), "why", keep=True)
        Jobs(databases.state, "other").ask([keeping])
        (asked, _) = jobs.ask([keeping, replace(keeping, keep=False)])
        kept = replace(asked, done=True, report={"kept": {"a": ["a__rebuild_0a1b2c3d", uuid4()]}})
        with transaction() as session:
            assert jobs.save(kept, session)
        assert jobs.keeping() == [kept]

    def test_only_open_jobs_of_the_worker_are_halted(self, databases: Databases, make: Make) -> None:
        """Those of another worker, and those that are done, are left alone."""
        make("w")
        (asked,) = Jobs(databases.state, "other").ask([job("a")])
        jobs = Jobs(databases.state, "w")
        assert not jobs.pause(asked.id, paused=True)
        assert not jobs.cancel(asked.id)
        assert Jobs(databases.state, "other").cancel(asked.id)
        assert not Jobs(databases.state, "other").cancel(asked.id)
