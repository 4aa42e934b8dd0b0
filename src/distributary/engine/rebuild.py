"""Rebuilds: derived collections are built anew in shadows beside the live ones, and take their places.

The stream is written to both, so that a shadow that was filled stays current. The scan fills shadows alone, so that
readers see nothing of it. All that is remembered of it lies in the checkpoint and the job: a rebuild is gone on with
by whoever holds the lease.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace

from distributary.derive.transform import Transform
from distributary.engine.commit import job_for
from distributary.engine.slices import Slices
from distributary.log import get_logger
from distributary.ports import Contrast, JobStore, Shelf
from distributary.state import Checkpoint, Job, JobKind, LetterKey, Shadow

log = get_logger()

#: Why a rebuild was asked for when code changed and the configuration says so.
CHANGED = "changed code"

#: What stands between a collection's name and a draw in the name of its shadow.
SHADOW = "__rebuild_"

#: What the name of a kept collection ends with.
PREVIOUS = "__previous"

#: The last stage of a rebuild.
SWAP = "swap/"

#: Kinds of jobs that build shadows.
BUILDING = frozenset({JobKind.REBUILD, JobKind.UNDO})


class Rebuilds:
    """Carries out rebuilds, one slice at a time. `draw` gives a text that no other shadow has in its name."""

    def __init__(self, slices: Slices, shelf: Shelf, draw: Callable[[], str]) -> None:
        self._slices = slices
        self._committer = slices.committer
        self._shelf = shelf
        self._draw = draw

    def taken(self, job: Job) -> Job:
        """Give a rebuild as it is to be gone on with: anew when its code changed or its shadows are not there."""
        code = self._slices.code(job)
        if job.kind is JobKind.DROP or (code == job.code and (job.stage == "" or self._has_shadows(job))):
            return job
        documents = self._slices.derivation.documents
        total = 2 * sum(documents.count(source) for source in self._sources(job))
        return replace(job, code=code, stage="", after=(), documents=0, total=total, report={})

    def run(self, job: Job) -> Job:
        """Do the next slice of a rebuild; the same job when it has to wait for the stream."""
        if job.kind is JobKind.DROP:
            return self._drop_left_behind(job)
        if not job.stage:
            return self._begin(job)
        if job.stage != SWAP and (failure := self._failure(job)):
            return self._failed(job, failure)
        stage, _, name = job.stage.partition("/")
        steps: Mapping[str, Callable[[Job, str], Job | None]] = {
            "copy": self._keep,
            "seed": self._seed,
            "sweep": self._sweep,
            "scan": self._scan,
            "again": self._verify,
            "carry": self._carry,
            "compare": self._compare,
            "settle": self._settle,
            "swap": self._swap,
        }
        after = steps[stage](job, name)
        return self._advance(job) if after is None else after

    def finish(self, jobs: Iterable[Job]) -> None:
        """Finish a swap that was begun, before anything else is written; to be called when the tenure begins."""
        if not self._committer.checkpoint.swapping:
            return
        job = next((each for each in jobs if each.kind in BUILDING and each.stage == SWAP), None)
        if job is None:  # it was cancelled
            self._forget()
        else:
            self._swap(job)

    def tidy(self, jobs: JobStore) -> None:
        """Drop the shadows of a rebuild that was cancelled or failed."""
        if self._committer.checkpoint.shadows and not any(job.kind in BUILDING for job in jobs.open()):
            self._forget()
            self._drop_shadows()

    # --- what is built --------------------------------------------------------------------------------------

    def _collections(self, job: Job) -> list[str]:
        """Give the derived collections that the job's transforms name now."""
        named = [each.collections for each in self._plugged() if each.name in job.transforms]
        return sorted(frozenset[str]().union(*named))

    def _sources(self, job: Job) -> list[str]:
        return sorted({each.source for each in self._plugged() if each.name in job.transforms})

    def _plugged(self) -> list[Transform]:
        return [each for some in self._slices.derivation.transforms.values() for each in some]

    def _has_shadows(self, job: Job) -> bool:
        return self._committer.checkpoint.shadows.keys() == set(self._collections(job))

    def _stages(self, job: Job) -> list[str]:
        collections, sources = self._collections(job), self._sources(job)
        undo = job.kind is JobKind.UNDO
        seeded = [f"seed/{name}" for name in collections if undo]
        swept = [f"sweep/{by}/{name}" for by in job.transforms for name in collections if undo]
        return [
            *(f"copy/{name}" for name in collections if job.keep),
            *seeded,
            *swept,
            *(f"scan/{source}" for source in sources),
            *(f"again/{source}" for source in sources),
            *(f"carry/{name}" for name in job.transforms),
            *(f"compare/{name}" for name in collections),
            "settle/",
        ]

    def _advance(self, job: Job) -> Job:
        stages = self._stages(job)
        return self._progress(replace(job, stage=stages[stages.index(job.stage) + 1], after=()))

    def _progress(self, job: Job, checkpoint: Checkpoint | None = None) -> Job:
        self._committer.progress(job, checkpoint or self._committer.checkpoint)
        return job

    # --- the stages -----------------------------------------------------------------------------------------

    def _begin(self, job: Job) -> Job:
        """Make the shadows, and from then on write them along with the live collections."""
        self._forget()
        self._drop_shadows()
        if failure := self._failure(job):
            return self._failed(job, failure)
        collections = self._collections(job)
        if job.keep:
            for name in collections:
                self._shelf.drop(f"{name}{PREVIOUS}")
        names = {name: f"{name}{SHADOW}{self._draw()}" for name in collections}
        shadows = {name: Shadow(shadow, self._shelf.make(shadow, name)) for name, shadow in names.items()}
        checkpoint = replace(self._committer.checkpoint, shadows=shadows)
        return self._progress(replace(job, stage=self._stages(job)[0], after=(), documents=0), checkpoint)

    def _failure(self, job: Job) -> str:
        """Say why a rebuild cannot be, if so."""
        checkpoint, documents = self._committer.checkpoint, self._slices.derivation.documents
        for source in self._sources(job):
            gone = not documents.exists(source) and not self._slices.purge and self._has_records(job, source)
            if source in checkpoint.detached or gone:
                return f"Source collection {source!r} is gone, and its records are kept: nothing could be built anew."
        plugged = self._plugged()
        for name in self._collections(job):
            others = sorted(
                each.name for each in plugged if name in each.collections and each.name not in job.transforms
            )
            if others:
                return f"Derived collection {name!r} is also filled by {', '.join(others)}."
        unknown = sorted(set(job.transforms) - self._slices.code(job).keys())
        if unknown:
            return f"The worker runs without {', '.join(unknown)}."
        missing = [name for name in self._collections(job) if self._shelf.id_of(f"{name}{PREVIOUS}") is None]
        if job.kind is JobKind.UNDO and missing:
            return f"Nothing was kept of {', '.join(missing)}: rebuild with --keep-previous keeps it."
        return ""

    def _has_records(self, job: Job, source: str) -> bool:
        """Whether anything is stored of what these transforms derived from a source collection."""
        mine = [each for each in self._plugged() if each.name in job.transforms and each.source == source]
        swept = self._slices.stores.sink.swept
        return any(swept(name, each.name, (), 1) for each in mine for name in each.collections)

    def _failed(self, job: Job, failure: str) -> Job:
        """End a rebuild that cannot be; what nobody asked for by hand is derived again in place instead."""
        log.error("rebuild failed", transforms=list(job.transforms), reason=failure)
        instead = [job_for(self._committer.checkpoint, source, CHANGED) for source in self._sources(job)]
        asked = instead if job.reason == CHANGED else []
        done = replace(job, failure=failure, done=True)
        self._committer.progress(done, self._committer.checkpoint, asked)
        return done

    def _keep(self, job: Job, name: str) -> Job | None:
        return self._copied(job, name, f"{name}{PREVIOUS}")

    def _seed(self, job: Job, name: str) -> Job | None:
        return self._copied(job, f"{name}{PREVIOUS}", self._committer.checkpoint.shadows[name].name)

    def _copied(self, job: Job, name: str, onto: str) -> Job | None:
        copied = self._shelf.copy(name, onto, job.after, self._slices.documents)
        return self._progress(replace(job, after=copied.after)) if copied.after else None

    def _sweep(self, job: Job, name: str) -> Job | None:
        """Remove what the shadow was seeded with of documents that are gone."""
        transform, _, collection = name.partition("/")
        source = self._committer.checkpoint.transforms[transform].source
        shadow = self._committer.checkpoint.shadows[collection].name
        return self._slices.sweep(replace(job, source=source), transform, shadow, alone=True)

    def _scan(self, job: Job, source: str) -> Job | None:
        return self._slices.walk(replace(job, source=source), alone=True)

    def _verify(self, job: Job, source: str) -> Job | None:
        """Derive everything once more, as of the position, where nothing may differ; what does is counted and written.

        It waits until no record may show more than the position. Where the server no longer has the state of then,
        the newest is taken, and does not count.
        """
        checkpoint = self._committer.checkpoint
        position = checkpoint.position.time
        if checkpoint.ahead > position:
            return job
        before = job.written + job.removed
        after = self._slices.walk_at(replace(job, source=source), position, alone=True)
        if after is None:
            return None
        if self._committer.checkpoint.ahead <= position:
            differing = job.report.get("differing", 0) + after.written + after.removed - before
            verified = job.report.get("verified", 0) + after.documents - job.documents
            after = replace(after, report={**job.report, "verified": verified, "differing": differing})
        return replace(after, written=job.written, removed=job.removed)

    def _carry(self, job: Job, transform: str) -> Job | None:
        """Let documents that are parked keep the records that they had: they are tried again after the swap."""
        keys = self._committer.parked_keys(transform)
        for some in self._slices.chunks(keys):
            self._committer.carry(job, transform, some)
        return None

    def _compare(self, job: Job, name: str) -> Job | None:
        """Count what differs between the live collection and the one that takes its place."""
        found = Contrast(**job.report.get("collections", {}).get(name, {}))
        shadow = self._committer.checkpoint.shadows[name].name
        compared = self._shelf.compare(name, shadow, job.after, self._slices.documents, found)
        collections = {**job.report.get("collections", {}), name: asdict(found)}
        after = replace(job, after=compared.after, report={**job.report, "collections": collections})
        return self._progress(after) if compared.after else self._advance(after)

    def _settle(self, job: Job, _: str) -> Job:
        """Swap once shadows and live collections show the same time, and before anything else is written."""
        checkpoint = self._committer.checkpoint
        if checkpoint.ahead > checkpoint.position.time:
            return job
        for transform in job.transforms:
            self._carry(job, transform)
        return self._swap(self._progress(replace(job, stage=SWAP), replace(checkpoint, swapping=True)))

    def _swap(self, job: Job, _: str = "") -> Job:
        """Let the shadows take their places, each in one step, and note that the present code built them.

        A shadow is known by its id: one that is not there any more was put in its place before, or was lost, and then
        all is built anew.
        """
        checkpoint = self._committer.checkpoint
        for name, shadow in checkpoint.shadows.items():
            if self._shelf.id_of(name) == shadow.id:
                continue
            if self._shelf.id_of(shadow.name) != shadow.id:
                log.warning("shadow lost", collection=name, next="everything is built anew")
                self._forget()
                return self._progress(replace(job, stage="", after=(), report={}))
            self._shelf.put(shadow.name, name)
        code = self._slices.code(job)
        for name, fingerprint in code.items():
            entry = checkpoint.transforms[name]
            checkpoint = checkpoint.with_built(name, replace(entry, fingerprint=fingerprint, built=True))
        done = replace(job, done=True, stage="done", after=())
        due = [LetterKey(name, key) for name in job.transforms for key in self._committer.parked_keys(name)]
        self._committer.progress(
            done, replace(checkpoint, shadows={}, swapping=False), self._former(job, checkpoint), due
        )
        if job.kind is JobKind.UNDO:
            for name in self._collections(job):
                self._shelf.drop(f"{name}{PREVIOUS}")
        log.info("rebuilt", transforms=list(job.transforms), collections=self._collections(job))
        return done

    def _former(self, job: Job, checkpoint: Checkpoint) -> list[Job]:
        """Give the jobs that remove what a transform left in a collection that only others name now."""
        named = {name for each in self._plugged() for name in each.collections}
        mine = set(self._collections(job))
        left = [name for name in job.transforms if (checkpoint.transforms[name].collections - mine) & named]
        sources = sorted({checkpoint.transforms[name].source for name in left})
        return [job_for(checkpoint, source, "left by a rebuild") for source in sources]

    # --- leaving nothing behind -----------------------------------------------------------------------------

    def _forget(self) -> None:
        """Write shadows no longer."""
        checkpoint = self._committer.checkpoint
        if checkpoint.shadows:
            self._committer.save(replace(checkpoint, shadows={}, swapping=False))

    def _drop_shadows(self) -> None:
        """Drop what earlier rebuilds of this worker left."""
        mine = {
            name for built in self._committer.checkpoint.transforms.values() for name in built.collections
        }
        for name in self._shelf.names():
            collection, found, _ = name.rpartition(SHADOW)
            if found and collection in mine:
                self._shelf.drop(name)

    def _drop_left_behind(self, job: Job) -> Job:
        """Drop the collections that no transform names any more, and forget who wrote them."""
        checkpoint, checkpoints = self._committer.checkpoint, self._slices.stores.checkpoints
        named = {name for each in self._plugged() for name in each.collections}
        left = checkpoint.left_behind(named | checkpoints.claimed(checkpoint.worker).keys())
        gone = [name for name in left if name in job.keys]
        for name in gone:
            self._shelf.drop(name)
        for name, built in checkpoint.transforms.items():
            checkpoint = checkpoint.with_built(
                name, replace(built, collections=built.collections - set(gone))
            )
        log.info("dropped", collections=gone)
        done = replace(job, done=True, keys=(), report={"dropped": gone})
        return self._progress(done, checkpoint)
