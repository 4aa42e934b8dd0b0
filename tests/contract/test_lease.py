"""What every lease promises."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from distributary.ports.stores import LeaseStore
from distributary.state import SlowTransform
from distributary.store.lease import LEASES, Holder, Lease
from tests.conftest import Databases
from tests.fakes import FakeLease, FakeLeases

#: Gives the lease of a worker's name as seen by one more process.
Process = Callable[[str], LeaseStore]

#: Lets all leases expire now.
Expire = Callable[[], None]


class LeaseStoreContract:
    """A suite for any `LeaseStore`; give it the fixtures `process` and `expire`."""

    def test_one_process_has_it(self, process: Process) -> None:
        """Who asks first gets it, and keeps it when it asks again; of another name there is another one."""
        first, second = process("w"), process("w")
        assert first.acquire()
        assert not second.acquire()
        assert first.acquire()
        assert process("other").acquire()

    def test_given_back_it_is_free_at_once(self, process: Process) -> None:
        """After a release nobody waits."""
        first, second = process("w"), process("w")
        assert first.acquire()
        first.release()
        assert second.acquire()
        assert not first.acquire()

    def test_expired_it_is_free(self, process: Process, expire: Expire) -> None:
        """Who is silent for too long loses it, and finds out when renewing."""
        first, second = process("w"), process("w")
        assert first.acquire()
        expire()
        assert second.acquire()
        assert not first.renew()
        assert not first.acquire()

    def test_renewing_keeps_it(self, process: Process, expire: Expire) -> None:
        """Late is not too late while nobody else took it."""
        first, second = process("w"), process("w")
        assert first.acquire()
        expire()
        assert first.renew()
        assert not second.acquire()

    def test_only_the_holder_gives_it_back(self, process: Process, expire: Expire) -> None:
        """A release by one that lost it, or never had it, takes it from nobody."""
        first, second, third = process("w"), process("w"), process("w")
        assert first.acquire()
        expire()
        assert second.acquire()
        first.release()
        third.release()
        assert not third.acquire()
        assert second.renew()

    def test_without_having_it_nothing_is_renewed(self, process: Process) -> None:
        """Renewing is no way to get it."""
        first = process("w")
        assert not first.renew()
        assert process("w").acquire()


class TestFakeLease(LeaseStoreContract):
    """The fake keeps the contract."""

    @pytest.fixture
    def leases(self) -> FakeLeases:
        """Give what the processes share."""
        return FakeLeases()

    @pytest.fixture
    def process(self, leases: FakeLeases) -> Process:
        """Give one more process."""
        return lambda worker: FakeLease(leases, worker, 10, me=uuid4().hex)

    @pytest.fixture
    def expire(self, leases: FakeLeases) -> Expire:
        """Move the clock."""

        def later() -> None:
            leases.now += 10

        return later


class TestMongoLease(LeaseStoreContract):
    """The real lease keeps the contract."""

    @pytest.fixture
    def process(self, databases: Databases) -> Process:
        """Give one more process."""
        return lambda worker: Lease(databases.state, worker, 10)

    @pytest.fixture
    def expire(self, databases: Databases) -> Expire:
        """Set the times of expiry back."""
        past = {"$set": {"expires": datetime(2000, 1, 1, tzinfo=UTC)}}

        def later() -> None:
            databases.state[LEASES].update_many({"expires": {"$exists": True}}, past)

        return later

    def test_what_holds_the_work_up_is_told(self, databases: Databases, process: Process) -> None:
        """The holder says it with each renewal, and not for longer than it lasts."""
        lease = Lease(databases.state, "w", 10)
        slow = SlowTransform("orders", "$orders", "'$key'", 12.5)
        assert lease.acquire()
        assert lease.renew([slow])
        assert lease.holder() == Holder(lease.me, alive=True, slow=(slow,))
        assert lease.renew()
        assert lease.holder() == Holder(lease.me, alive=True)
        assert lease.renew([slow])
        lease.release()
        assert process("w").acquire()
        found = lease.holder()
        assert found is not None
        assert found.slow == ()
