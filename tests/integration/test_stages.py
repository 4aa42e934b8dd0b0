"""Stages of jobs: whatever the engine writes has words."""

from pathlib import Path

import pytest
from pymongo.client_session import ClientSession

from distributary.engine.rollups import rollup_job
from distributary.operate.backfill import backfills
from distributary.operate.rebuild import drop, rebuild
from distributary.operate.stages import stage_of
from distributary.state import EVENTS, UNTOLD, Checkpoint, Job, JobKind
from distributary.store.checkpoints import Checkpoints
from distributary.store.jobs import Jobs
from tests.conftest import Databases
from tests.faulty import faulty
from tests.harness import Harness
from tests.pubsub import PROJECT

CODE = """
    from distributary import DerivedCollection, Rollup, transform

    plain = DerivedCollection("plain", publish="topic")
    customer = DerivedCollection("customer", publish="topic")
    totals = Rollup("totals", over=plain, by="total", compute={{"orders": {{"$sum": 1}}}})

    @transform("orders")
    def view(order):
        yield plain.record(order["_id"], {{"total": 1, "form": {form!r}}})
        yield customer.item("C", "orders", order["_id"], {{"form": {form!r}}})
"""

FORMER, LATER = CODE.format(form="former"), CODE.format(form="later")

#: Its other collection is left behind by the former code.
MORE = f"""{FORMER}
        yield other.record(order["_id"], {{}})

    other = DerivedCollection("other")
"""


def job(kind: JobKind, stage: str) -> Job:
    """Give a job at a stage."""
    return Job(None, kind, "orders", ("view",), "asked for", stage=stage)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[tuple[JobKind, str]]:
    """Give the kind and the stage of every job that is saved from now on."""
    found: set[tuple[JobKind, str]] = set()
    save = Jobs.save

    def noted(self: Jobs, job: Job, session: ClientSession) -> bool:
        if not job.done:
            found.add((job.kind, job.stage))
        return save(self, job, session)

    monkeypatch.setattr(Jobs, "save", noted)
    return found


def checkpoint(databases: Databases) -> Checkpoint:
    """Give the worker's checkpoint."""
    found = Checkpoints(databases.state).load("default")
    assert found
    return found


def done(harness: Harness, *jobs: Job) -> None:
    """Ask for jobs and let a worker do them."""
    Jobs(harness.databases.state, "default").ask(jobs)
    harness.catch_up()


@pytest.mark.parametrize(
    ("kind", "stage", "words"),
    [
        (JobKind.BACKFILL, "scan", "deriving its documents"),
        (JobKind.BACKFILL, "scan/plain", "removing what lost its source from plain"),
        (JobKind.REBUILD, "scan/orders", "deriving the documents of orders"),
        (JobKind.UNDO, "sweep/view/plain", "removing what lost its source from the new plain"),
        (JobKind.REBUILD, "compare/plain", "comparing the new plain with the old one"),
        (JobKind.PUBLISH, EVENTS, "sending events again that were refused"),
        (JobKind.PUBLISH, f"{UNTOLD}plain.x", "telling of what a rebuild changed"),
        (JobKind.ROLLUP, "later", "at stage 'later'"),
        (JobKind.REPLAY, "", ""),
    ],
)
def test_a_stage_is_told_as_what_its_kind_of_job_does_there(kind: JobKind, stage: str, words: str) -> None:
    """The same stage may mean something else for another kind; what another release calls it is told as it is."""
    assert stage_of(job(kind, stage)) == words


def test_every_stage_that_a_job_comes_to_has_words(
    databases: Databases, tmp_path: Path, seen: set[tuple[JobKind, str]]
) -> None:
    """Of backfills with a sweep, rollups, rebuilds that keep, publish or undo, and drops: none is told as it is."""
    with faulty(f"projects/{PROJECT}/topics/topic"):
        harness = Harness(databases, tmp_path / "modules", {"orders": FORMER}, {"pubsub.project": PROJECT})
        databases.raw.orders.insert_many([{"_id": key} for key in range(3)])
        harness.catch_up()
        former = harness.registry
        done(harness, *backfills(former.transforms, checkpoint(databases)), rollup_job("totals", "asked for"))
        harness.write({"orders": LATER})
        done(harness, rebuild(harness.registry, ["view"], keep=True, publish=True))
        harness.write({"orders": FORMER})
        done(harness, rebuild(former, ["view"], undo=True))
        harness.write({"orders": MORE})
        harness.catch_up()
        harness.write({"orders": FORMER})
        harness.catch_up()
        left = drop(checkpoint(databases), former.collections)
        assert left
        done(harness, left)
    assert {kind for kind, _ in seen} >= {
        JobKind.BACKFILL,
        JobKind.ROLLUP,
        JobKind.REBUILD,
        JobKind.UNDO,
        JobKind.DROP,
    }
    assert {stage.partition("/")[0] for kind, stage in seen if kind is JobKind.REBUILD} >= {
        "copy",
        "owners",
        "swap",
    }
    assert [each for each in seen if "at stage" in stage_of(job(*each))] == []
