"""What every store of checkpoints promises."""

from dataclasses import replace

import pytest
from bson import Timestamp

from distributary.change import Position
from distributary.errors import CheckpointMoved, LeaseLost
from distributary.ports.stores import CheckpointStore
from distributary.state import Built, Gap, TriggerStream
from distributary.store.checkpoints import Checkpoints
from tests.conftest import Client, Databases
from tests.contract.making import Transaction, aborted, checkpoint, transactions
from tests.fakes import Deployment, FakeCheckpoints


class CheckpointStoreContract:
    """A suite for any `CheckpointStore`; give it the fixtures `store` and `transaction`."""

    def test_there_is_none_before_the_first_commit(self, store: CheckpointStore) -> None:
        """A fence alone is no checkpoint."""
        assert store.load("w") is None
        store.raise_fence("w")
        assert store.load("w") is None

    def test_every_fence_is_higher(self, store: CheckpointStore) -> None:
        """The fence rises with every holder, for each worker by itself."""
        first = store.raise_fence("w")
        other = store.raise_fence("other")
        assert store.raise_fence("w") > first
        assert store.save(checkpoint("other"), other).worker == "other"

    def test_what_is_saved_is_loaded(self, store: CheckpointStore) -> None:
        """Nothing of a checkpoint is lost, and its revision is the next."""
        fence = store.raise_fence("w")
        gap = Gap(Timestamp(1, 1), Timestamp(2, 1))
        stream = TriggerStream(Position("82A", Timestamp(3, 1)), "filter", (gap,))
        told = checkpoint(detached={"raw": Timestamp(1, 7)}, epoch=3, triggers=stream)
        saved = store.save(told, fence)
        assert saved == replace(told, revision=1)
        assert store.load("w") == saved
        assert store.save(saved, fence).revision == 2

    def test_an_older_fence_saves_nothing(self, store: CheckpointStore) -> None:
        """Who lost the lease is told, and the checkpoint is as it was."""
        fence = store.raise_fence("w")
        saved = store.save(checkpoint(), fence)
        store.raise_fence("w")
        with pytest.raises(LeaseLost):
            store.save(replace(saved, epoch=9), fence)
        assert store.load("w") == saved

    def test_an_older_revision_saves_nothing(self, store: CheckpointStore) -> None:
        """Who does not know the last commit is told, and the checkpoint is as it was."""
        fence = store.raise_fence("w")
        saved = store.save(checkpoint(), fence)
        with pytest.raises(CheckpointMoved):
            store.save(checkpoint(epoch=9), fence)
        assert store.load("w") == saved

    def test_a_worker_without_a_fence_saves_nothing(self, store: CheckpointStore) -> None:
        """A fence that was never raised is nobody's."""
        with pytest.raises(LeaseLost):
            store.save(checkpoint(), 1)
        assert store.load("w") is None

    def test_an_aborted_transaction_saves_nothing(
        self, store: CheckpointStore, transaction: Transaction
    ) -> None:
        """What is saved in a session is there when that commits, and only then."""
        fence = store.raise_fence("w")
        with aborted(transaction) as session:
            store.save(checkpoint(), fence, session)
        assert store.load("w") is None
        with transaction() as session:
            saved = store.save(checkpoint(), fence, session)
        assert store.load("w") == saved

    def test_others_claim_what_they_write(self, store: CheckpointStore) -> None:
        """Collections of other workers are claimed; one's own, and those of unplugged transforms, are not."""
        away = Built("raw", "code", frozenset({"b"}), built=False, unplugged=True)
        entries = {**checkpoint().transforms, "away": away}
        for name in ("w", "other"):
            fence = store.raise_fence(name)
            store.save(checkpoint(name, transforms=entries), fence)
        assert store.claimed("w") == {"a": "other"}
        assert store.claimed("third").keys() == {"a"}


class TestFakeCheckpoints(CheckpointStoreContract):
    """The fake keeps the contract."""

    @pytest.fixture
    def deployment(self) -> Deployment:
        """Give an empty deployment."""
        return Deployment()

    @pytest.fixture
    def store(self, deployment: Deployment) -> CheckpointStore:
        """Give the fake."""
        return FakeCheckpoints(deployment)

    @pytest.fixture
    def transaction(self, deployment: Deployment) -> Transaction:
        """Give its transactions."""
        return deployment.transaction


class TestMongoCheckpoints(CheckpointStoreContract):
    """The real store keeps the contract."""

    @pytest.fixture
    def store(self, databases: Databases) -> CheckpointStore:
        """Give the real store."""
        return Checkpoints(databases.state)

    @pytest.fixture
    def transaction(self, client: Client) -> Transaction:
        """Give its transactions."""
        return transactions(client)
