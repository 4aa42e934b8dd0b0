"""Jobs: work that was asked for and that the lease holder carries out in slices between its batches."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bson import ObjectId, Timestamp
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.change import CODEC
from distributary.state import SWAP, Job, JobKind

JOBS = "jobs"


class Jobs:
    """The jobs of one worker in a state database."""

    def __init__(self, state: Database[Any], worker: str) -> None:
        self._collection = state.get_collection(JOBS, CODEC)
        self._worker = worker

    def prepare(self) -> None:
        """Create the index."""
        self._collection.create_index([("worker", 1), ("done", 1), ("_id", 1)], name="worker")

    def ask(self, jobs: Sequence[Job], session: ClientSession | None = None) -> list[Job]:
        """Record jobs to be done and give them with their ids; durable on return, or with the session's commit."""
        asked = [replace(job, id=job.id or ObjectId()) for job in jobs]
        if asked:
            documents = [self._document(job) for job in asked]
            self._collection.insert_many(documents, session=session)
            ids = {"_id": {"$in": [job.id for job in asked]}}
            self._collection.update_many(ids, [{"$set": {"asked_at": "$$NOW"}}], session=session)
        return asked

    def next(self) -> Job | None:
        """Give the oldest job that is neither done nor paused, nor behind one that is not done."""
        wanted = {"worker": self._worker, "done": False, "paused": {"$ne": True}}
        found = map(_job, self._collection.find(wanted, sort=[("_id", 1)]))
        return next((job for job in found if not self._waits(job)), None)

    def _waits(self, job: Job) -> bool:
        """Whether a job is behind another one that is not done."""
        if not job.behind:
            return False
        return self._collection.find_one({"_id": {"$in": list(job.behind)}, "done": False}) is not None

    def is_wanted(self, job_id: Any) -> bool:
        """Whether a job is to be gone on with: neither done, nor paused, nor cancelled."""
        wanted = {"_id": job_id, "done": False, "paused": {"$ne": True}}
        return self._collection.find_one(wanted, {"_id": 1}) is not None

    def pause(self, job_id: Any, *, paused: bool) -> bool:
        """Let an open job wait, or go on; False when there is none of this id."""
        open_one = {"_id": job_id, "worker": self._worker, "done": False}
        return bool(self._collection.update_one(open_one, {"$set": {"paused": paused}}).matched_count)

    def cancel(self, job_id: Any) -> bool:
        """End an open job where it is, and those behind it.

        False when there is none of this id, or a rebuild swaps already.
        """
        open_one = {"worker": self._worker, "done": False, "stage": {"$ne": SWAP}}
        ended = {"$set": {"done": True, "cancelled": True}}
        if not self._collection.update_one(open_one | {"_id": job_id}, ended).matched_count:
            return False
        self._collection.update_many(open_one | {"behind": job_id}, ended)
        return True

    def get(self, job_id: Any) -> Job | None:
        """Give one job."""
        found = self._collection.find_one({"_id": job_id})
        return _job(found) if found else None

    def open(self) -> list[Job]:
        """Give all jobs that are not done, oldest first."""
        return [
            _job(each)
            for each in self._collection.find({"worker": self._worker, "done": False}).sort("_id", 1)
        ]

    def of_gap(self, gap: tuple[Timestamp, Timestamp]) -> list[Job]:
        """Give all jobs, done ones too, that make good what a lost position left uncertain."""
        return [_job(each) for each in self._collection.find({"worker": self._worker, "gap": list(gap)})]

    def declined(self) -> list[Job]:
        """Give the rebuilds that were cancelled."""
        query = {"worker": self._worker, "done": True, "kind": JobKind.REBUILD.value, "cancelled": True}
        return [_job(each) for each in self._collection.find(query)]

    def keeping(self) -> list[Job]:
        """Give the rebuilds that keep, or kept, what others take the places of."""
        query = {"worker": self._worker, "kind": JobKind.REBUILD.value, "keep": True}
        return [_job(each) for each in self._collection.find(query)]

    def save(self, job: Job, session: ClientSession) -> bool:
        """Record a job's progress in the transaction that made it; False for one that was cancelled meanwhile."""
        literal = {name: {"$literal": value} for name, value in self._document(job).items() if name != "_id"}
        update = [{"$set": literal | {"saved_at": "$$NOW"}}]
        wanted = {"_id": job.id, "cancelled": {"$ne": True}}
        return bool(self._collection.update_one(wanted, update, session=session).matched_count)

    def _document(self, job: Job) -> dict[str, Any]:
        return {
            "_id": job.id,
            "worker": self._worker,
            "kind": job.kind.value,
            "source": job.source,
            "transforms": list(job.transforms),
            "reason": job.reason,
            "sweep": job.sweep,
            "keys": list(job.keys),
            "foreign": [list(each) for each in job.foreign],
            "stage": job.stage,
            "after": list(job.after),
            "documents": job.documents,
            "total": job.total,
            "done": job.done,
            "code": dict(job.code),
            "gap": list(job.gap) if job.gap else None,
            "written": job.written,
            "removed": job.removed,
            "failure": job.failure,
            "only": job.only,
            "span": list(job.span) if job.span else None,
            "keep": job.keep,
            "until": list(job.until),
            "report": job.report,
            "publish": job.publish,
            "behind": list(job.behind),
        }


def _job(document: dict[str, Any]) -> Job:
    gap, span = document.get("gap"), document.get("span")
    return Job(
        id=document["_id"],
        kind=JobKind(document["kind"]),
        source=document["source"],
        transforms=tuple(document["transforms"]),
        reason=document["reason"],
        sweep=document["sweep"],
        keys=tuple(document["keys"]),
        foreign=tuple((collection, key) for collection, key in document["foreign"]),
        stage=document["stage"],
        after=tuple(document["after"]),
        documents=document["documents"],
        total=document["total"],
        done=document["done"],
        code=document.get("code", {}),
        gap=(gap[0], gap[1]) if gap else None,
        written=document.get("written", 0),
        removed=document.get("removed", 0),
        paused=document.get("paused", False),
        cancelled=document.get("cancelled", False),
        failure=document.get("failure", ""),
        only=document.get("only"),
        span=(span[0], span[1]) if span else None,
        keep=document.get("keep", False),
        until=tuple(document.get("until", ())),
        report=document.get("report", {}),
        publish=document.get("publish", False),
        behind=tuple(document.get("behind", ())),
    )
