"""Rebuilds: derived collections are built anew in shadows beside the live ones, and take their places.

The stream is written to both, so that a shadow that was filled stays current. The scan fills shadows alone, so that
readers see nothing of it. All that is remembered of it lies in the checkpoint and the job: a rebuild is gone on with
by whoever holds the lease. What is done to whole collections is no part of a transaction; so it is committed under
the fence before what will be done, and collections are known by their ids.

Of a rebuild that publishes, the keys of what differs are kept while it is compared. From then on the stream tells of
what it changes, in a collection and so in its shadow; a record that is equal and has the same owner in both stays so.
Once the shadow has its place, a job tells of the records with those keys as they are then.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

from distributary.change import identity
from distributary.derive.naming import PREVIOUS, SHADOW, shadowed
from distributary.derive.rollup import Rollup
from distributary.derive.transform import Transform
from distributary.engine.rollups import rollup_job
from distributary.engine.slices import Slices
from distributary.engine.sources import job_for
from distributary.engine.work import Unwanted
from distributary.log import get_logger
from distributary.parts import is_parts, names_part, parts_of, shared_of
from distributary.ports.sink import Contrast, Others, Shelf
from distributary.state import SWAP, UNTOLD, Built, Checkpoint, Job, JobKind, LetterKey, Rebuilding, Shadow

log = get_logger()

#: Why a rebuild was asked for when code changed and the configuration says so.
CHANGED = "changed code"

#: What helps who subscribes to a collection that was rebuilt without telling.
NOT_TOLD = "let subscribers empty what they keep, then run `distributary backfill --publish`"

#: What to do about a collection that lies where a rebuild would keep the old one.
NOT_OURS = "which would be put over: rename or drop it first, or rebuild without --keep-previous."

#: Kinds of jobs that build shadows.
BUILDING = frozenset({JobKind.REBUILD, JobKind.UNDO})


class Rebuilds:
    """Carries out rebuilds, one slice at a time. `draw` gives eight hex digits that no other shadow has in its name."""

    def __init__(self, slices: Slices, shelf: Shelf, draw: Callable[[], str]) -> None:
        self._slices = slices
        self._committer = slices.committer
        self._jobs = slices.stores.jobs
        self._shelf = shelf
        self._draw = draw
        self._is_tidy = False

    def taken(self, job: Job) -> Job:
        """Give a rebuild as it is to be gone on with: anew when its code changed or its shadows are not there."""
        code = self._slices.code(job)
        if job.kind is JobKind.DROP or (code == job.code and job.stage and self._has_shadows(job)):
            return job
        documents = self._slices.derivation.documents
        total = sum(documents.count(source) for source in self._sources(job))
        return replace(job, code=code, stage="", after=(), until=(), documents=0, total=total, report={})

    def run(self, job: Job) -> Job:
        """Do the next slice of a rebuild; the same job when it has to wait for the stream."""
        if job.kind is JobKind.DROP:
            return self._drop_left_behind(job)
        if failure := self._failure(job):
            return self._failed(job, failure)
        if not job.stage:
            return self._begin(job)
        if not self._has_shadows(job):
            return self._anew(job)
        stage, _, name = job.stage.partition("/")
        steps: Mapping[str, Callable[[Job, str], Job | None]] = {
            "copy": self._keep,
            "seed": self._seed,
            "sweep": self._sweep,
            "scan": self._scan,
            "again": self._verify,
            "owners": self._compare_parts,
            "compare": self._compare,
            "settle": self._settle,
        }
        after = steps[stage](job, name)
        return self._advance(job) if after is None else after

    def finish(self) -> None:
        """Finish a swap that was begun, before anything else is written; to be called when the tenure begins."""
        rebuilding = self._committer.checkpoint.rebuilding
        if rebuilding is None or not rebuilding.swapping:
            return
        job = self._jobs.get(rebuilding.job)
        if job is None:  # a hand removed it
            self._forget()
        else:
            self._swap(job)

    def tidy(self) -> None:
        """Drop the shadows of a rebuild that was cancelled or failed, and once those that a crash left."""
        rebuilding = self._committer.checkpoint.rebuilding
        job = self._jobs.get(rebuilding.job) if rebuilding else None
        is_under_way = job is not None and not job.done
        if not is_under_way and (rebuilding is not None or not self._is_tidy):
            self._forget()
        self._is_tidy = True

    # --- what is built --------------------------------------------------------------------------------------

    def _collections(self, job: Job) -> list[str]:
        """Give the derived collections that the job's transforms name now."""
        named = [each.collections for each in self._plugged() if each.name in job.transforms]
        return sorted(frozenset[str]().union(*named))

    def _places(self, job: Job) -> list[str]:
        """Give those collections and those of their parts, whether they turn out to have any or not."""
        collections = self._collections(job)
        return [*map(parts_of, collections), *collections]

    def _sources(self, job: Job) -> list[str]:
        return sorted({each.source for each in self._plugged() if each.name in job.transforms})

    def _plugged(self) -> list[Transform]:
        return [each for some in self._slices.derivation.transforms.values() for each in some]

    def _has_shadows(self, job: Job) -> bool:
        """Whether the shadows that are written along are this job's, and all that it needs, and there."""
        rebuilding = self._committer.checkpoint.rebuilding
        if rebuilding is None or rebuilding.job != job.id:
            return False
        there = self._shelf.ids()
        return rebuilding.shadows.keys() == set(self._places(job)) and all(
            there.get(each.name) == each.id for each in rebuilding.shadows.values()
        )

    def _stages(self, job: Job) -> list[str]:
        places, sources = self._places(job), self._sources(job)
        undo = job.kind is JobKind.UNDO
        return [
            *(f"copy/{name}" for name in places if name in job.report.get("kept", {})),
            *(f"seed/{name}" for name in places if undo),
            *(f"sweep/{by}/{name}" for by in job.transforms for name in places if undo),
            *(f"scan/{source}" for source in sources),
            *(f"again/{source}" for source in sources),
            *(f"owners/{name}" for name in self._collections(job) if job.publish),
            *(f"compare/{name}" for name in self._collections(job)),
            "settle/",
        ]

    def _advance(self, job: Job) -> Job:
        stages = self._stages(job)
        following = stages[stages.index(job.stage) + 1]
        return self._progress(
            replace(job, stage=following, after=(), until=(), documents=_began(job, following))
        )

    def _progress(self, job: Job, checkpoint: Checkpoint | None = None) -> Job:
        self._committer.progress(job, checkpoint or self._committer.checkpoint)
        return job

    # --- the stages -----------------------------------------------------------------------------------------

    def _begin(self, job: Job) -> Job:
        """Make the shadows, and from then on write them along with the live collections."""
        self._forget()
        there, places = self._shelf.ids(), self._places(job)
        made = {name: self._made(name) for name in places}
        kept = {name: self._made(name) for name in places if job.keep and name in there}
        report = {"kept": {name: [each.name, each.id] for name, each in kept.items()}} if kept else {}
        begun = replace(job, after=(), documents=0, report=report)
        begun = replace(begun, stage=self._stages(begun)[0])
        rebuilding = Rebuilding(job.id, made)
        return self._progress(begun, replace(self._committer.checkpoint, rebuilding=rebuilding))

    def _made(self, name: str) -> Shadow:
        shadow = f"{name}{SHADOW}{self._draw()}"
        return Shadow(shadow, self._shelf.make(shadow, name))

    def _anew(self, job: Job) -> Job:
        """Begin again: somebody dropped a shadow."""
        log.warning("shadow lost", transforms=list(job.transforms), next="everything is built anew")
        again = replace(job, stage="", after=(), until=(), report={})
        checkpoint = self._committer.checkpoint
        self._committer.progress(again, checkpoint, self._tellings(self._taken_place(checkpoint)))
        self._forget()
        return again

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
        if job.stage:
            return ""
        if job.kind is JobKind.UNDO:
            return self._undo_failure(job)
        return self._keep_failure(job) if job.keep else ""

    def _keep_failure(self, job: Job) -> str:
        """Say what a hand made where the old collections are to be kept."""
        there, kept = self._shelf.ids(), self._kept()
        names = [f"{name}{PREVIOUS}" for name in self._places(job) if name in there]
        others = [name for name in names if name in there and there[name] not in kept]
        return f"No rebuild of this worker kept {', '.join(others)}, {NOT_OURS}" if others else ""

    def _kept(self) -> set[UUID]:
        """Give the ids of all collections that rebuilds kept."""
        return {known for job in self._jobs.keeping() for _, known in job.report.get("kept", {}).values()}

    def _undo_failure(self, job: Job) -> str:
        there, entries = self._shelf.ids(), self._committer.checkpoint.transforms
        missing = [name for name in self._collections(job) if f"{name}{PREVIOUS}" not in there]
        if missing:
            return f"Nothing was kept of {', '.join(missing)}: rebuild with --keep-previous keeps it."
        if all(entries[name].fingerprint == code for name, code in self._slices.code(job).items()):
            return "The present collections were built by the code that is plugged in: deploy the former code first."
        return ""

    def _has_records(self, job: Job, source: str) -> bool:
        """Whether anything is stored of what these transforms derived from a source collection."""
        mine = [each for each in self._plugged() if each.name in job.transforms and each.source == source]
        swept = self._slices.stores.sink.swept
        return any(swept(name, each.name, (), 1) for each in mine for name in each.collections)

    def _failed(self, job: Job, failure: str) -> Job:
        """End a rebuild that cannot be; what nobody asked for by hand is derived again in place instead."""
        log.error("rebuild failed", transforms=list(job.transforms), reason=failure)
        checkpoint = self._committer.checkpoint
        instead = [job_for(checkpoint, source, CHANGED) for source in self._sources(job)]
        done = replace(job, failure=failure, done=True)
        self._committer.progress(done, checkpoint, instead if job.reason == CHANGED else [])
        return done

    def _keep(self, job: Job, name: str) -> Job | None:
        return self._copied(job, name, job.report["kept"][name][0])

    def _seed(self, job: Job, name: str) -> Job | None:
        """Copy what was kept into the shadow; shared records follow from their parts, which come first."""
        there, shadows = self._shelf.ids(), self._committer.checkpoint.shadows
        if f"{name}{PREVIOUS}" not in there or f"{parts_of(name)}{PREVIOUS}" in there:
            return None
        shared = shadows[shared_of(name)] if is_parts(name) else None
        return self._copied(job, f"{name}{PREVIOUS}", shadows[name], shared)

    def _copied(self, job: Job, name: str, onto: str, shared: str | None = None) -> Job | None:
        after = self._committer.copy(job, name, onto, self._slices.documents, shared)
        return after if after.after else None

    def _sweep(self, job: Job, name: str) -> Job | None:
        """Remove what the shadow was seeded with of documents that are gone."""
        transform, _, collection = name.partition("/")
        source = self._committer.checkpoint.transforms[transform].source
        shadow = self._committer.checkpoint.shadows[collection]
        after = self._slices.sweep(replace(job, source=source), transform, shadow, alone=True)
        return after if after is None or not after.done else self._failed(job, f"{source!r} went away.")

    def _scan(self, job: Job, source: str) -> Job | None:
        return self._slices.walk(replace(job, source=source), alone=True)

    def _verify(self, job: Job, source: str) -> Job | None:
        """Derive everything once more, as of the position, where nothing may differ; what does is counted and written.

        It waits until no record may show more than the position. Where the server no longer has the state of then,
        the newest is taken, and does not count.
        """
        checkpoint = self._committer.checkpoint
        position = checkpoint.position.time
        if not checkpoint.is_level:
            return job
        before = job.written + job.removed
        after = self._slices.walk_at(replace(job, source=source), position, alone=True)
        if after is None:
            return None
        if self._committer.checkpoint.is_level:
            differing = job.report.get("differing", 0) + after.written + after.removed - before
            verified = job.report.get("verified", 0) + after.documents - job.documents
            after = replace(after, report={**job.report, "verified": verified, "differing": differing})
        return replace(after, written=job.written, removed=job.removed)

    def _compare(self, job: Job, name: str) -> Job | None:
        """Count what differs between the live collection and the one that takes its place."""
        found = Contrast(**job.report.get("collections", {}).get(name, {}))
        shadow = self._committer.checkpoint.shadows[name]
        others = Others([], [])
        told = others if self._is_told(job, name) else None
        behind = self._shelf.compare(name, shadow, job.after, self._slices.documents, found, told)
        self._note(shadow, others.differing + others.moved)
        collections = {**job.report.get("collections", {}), name: asdict(found)}
        after = replace(job, after=behind, report={**job.report, "collections": collections})
        return self._progress(after) if behind else self._advance(after)

    def _compare_parts(self, job: Job, name: str) -> Job | None:
        """Look which shared records have equal parts with other owners: as a whole they may be equal, too."""
        if not self._is_told(job, name):
            return None
        shadows, parts = self._committer.checkpoint.shadows, parts_of(name)
        others = Others([], [])
        behind = self._shelf.compare(
            parts, shadows[parts], job.after, self._slices.documents, Contrast(), others
        )
        keys = {identity(key["k"]): key["k"] for key in others.moved if names_part(key)}
        self._note(shadows[name], list(keys.values()))
        return self._progress(replace(job, after=behind)) if behind else None

    def _is_told(self, job: Job, name: str) -> bool:
        """Whether somebody is told how a collection is another one than before."""
        return job.publish and self._slices.stores.outbox.tells(name)

    def _note(self, shadow: str, keys: Sequence[Any]) -> None:
        """Keep the keys of what is to be told of; a crash behind that may let them be kept twice."""
        if keys:
            untold = self._slices.stores.untold
            self._committer.aside(lambda session: untold.note(shadow, keys, session))

    def _tellings(self, shadows: Mapping[str, str]) -> list[Job]:
        """Give the jobs that tell what differs of collections whose places these shadows take."""
        untold = self._slices.stores.untold
        return [
            Job(None, JobKind.PUBLISH, name, (), "behind a rebuild", stage=f"{UNTOLD}{shadow}")
            for name, shadow in shadows.items()
            if untold.next(shadow, ())
        ]

    def _taken_place(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """Give the shadows that have taken their places, by the names of these."""
        there = self._shelf.ids()
        known = checkpoint.rebuilding.shadows if checkpoint.rebuilding else {}
        return {name: each.name for name, each in known.items() if there.get(name) == each.id}

    def _settle(self, job: Job, _: str) -> Job:
        """Swap once shadows and live collections show the same time, and before anything else is written.

        Documents that are parked keep the records that they had, as far as nobody else has them.
        """
        checkpoint = self._committer.checkpoint
        if not checkpoint.is_level or checkpoint.rebuilding is None:
            return job
        for name in job.transforms:
            self._committer.carry(job, name, contested=False)
            self._committer.carry(job, name, contested=True)
        swapping = replace(job, stage=SWAP, after=())
        rebuilding = replace(self._committer.checkpoint.rebuilding or checkpoint.rebuilding, swapping=True)
        try:
            checkpoint = replace(self._committer.checkpoint, rebuilding=rebuilding)
            self._committer.progress(swapping, checkpoint, wanted=True)
        except Unwanted:
            return replace(job)
        return self._swap(swapping)

    def _swap(self, job: Job) -> Job:
        """Let the shadows take their places, and note that the job's code built them."""
        if not self._put_over(job):
            return self._anew(job)
        checkpoint = self._built_by(job)
        done = replace(job, done=True, stage="done", after=())
        due = [LetterKey(name, key) for name in job.transforms for key in self._committer.parked_keys(name)]
        asked = [*self._following(job, checkpoint), *self._tellings(checkpoint.shadows)]
        brought_back = self._previous(job) if job.kind is JobKind.UNDO else {}
        self._committer.progress(done, replace(checkpoint, rebuilding=None), asked, due)
        for name, known in brought_back.items():
            self._shelf.drop(name, known)
        self._tell(job)
        return done

    def _put_over(self, job: Job) -> bool:
        """Put each shadow over its collection in one step; False when one is not there any more.

        What is there already was put there before a crash.
        """
        checkpoint = self._committer.checkpoint
        assert checkpoint.rebuilding is not None
        kept = {f"{name}{PREVIOUS}": Shadow(*each) for name, each in job.report.get("kept", {}).items()}
        unused = {*map(parts_of, self._collections(job))} - {*map(parts_of, checkpoint.shared)}
        for name, shadow in {**checkpoint.rebuilding.shadows, **kept}.items():
            there = self._shelf.ids()
            if name in unused:
                self._shelf.drop(shadow.name, shadow.id)
                continue
            if there.get(name) == shadow.id:
                continue
            if there.get(shadow.name) != shadow.id:
                return False
            self._shelf.put(shadow.name, shadow.id, name, there.get(name))
        return True

    def _built_by(self, job: Job) -> Checkpoint:
        """Give the checkpoint with the job's code as what built its collections."""
        checkpoint = self._committer.checkpoint
        for name, fingerprint in job.code.items():
            entry = checkpoint.transforms[name]
            checkpoint = checkpoint.with_built(
                name,
                replace(
                    entry,
                    fingerprint=fingerprint,
                    built=not entry.unplugged,
                    shared=self._shared(name, entry),
                    shared_by=fingerprint,
                ),
            )
        return checkpoint

    def _tell(self, job: Job) -> None:
        """Log the end of a rebuild, and what nobody is told of though there is a topic for it."""
        log.info("rebuilt", transforms=list(job.transforms), collections=self._collections(job))
        tells = self._slices.stores.outbox.tells
        for name, found in job.report.get("collections", {}).items():
            untold = sum(found[kind] for kind in ("changed", "added", "removed"))
            if untold and tells(name) and not job.publish:
                log.warning("not told", collection=name, records=untold, next=NOT_TOLD)

    def _previous(self, job: Job) -> Mapping[str, UUID]:
        """Give what was kept of the job's collections; to be looked up before the fence is, as in `_forget`."""
        names, kept = {f"{name}{PREVIOUS}" for name in self._places(job)}, self._kept()
        return {name: known for name, known in self._shelf.ids().items() if name in names and known in kept}

    def _shared(self, transform: str, entry: Built) -> frozenset[str]:
        """Give the collections in which a transform has parts now; its former code may have had others."""
        swept = self._slices.stores.sink.swept
        return frozenset(name for name in entry.shared if swept(parts_of(name), transform, (), 1))

    def _following(self, job: Job, checkpoint: Checkpoint) -> list[Job]:
        """Give the jobs that remove what transforms left in collections that only others name, and build rollups."""
        entries = [checkpoint.transforms[name] for name in job.transforms]
        named = {name for each in self._plugged() for name in each.collections}
        left = named - set(self._collections(job))
        sources = {built.source for built in entries if built.collections & left}
        rollups = {each.name for some in self._over(job) for each in some}
        return [
            *(job_for(checkpoint, source, "behind a rebuild") for source in sorted(sources)),
            *(rollup_job(name, "behind a rebuild") for name in sorted(rollups)),
        ]

    def _over(self, job: Job) -> Iterable[Sequence[Rollup]]:
        """Give the rollups over the collections that take their places."""
        taken = self._collections(job)
        return [each.rollups[name] for each in self._plugged() for name in taken if name in each.rollups]

    # --- leaving nothing behind -----------------------------------------------------------------------------

    def _forget(self) -> None:
        """Write shadows no longer, and drop those that earlier rebuilds of this worker left.

        Which they are is looked up before the fence is, so that a holder that was overtaken meanwhile drops nothing of
        the next one's.
        """
        checkpoint, there = self._committer.checkpoint, self._shelf.ids()
        claimed = self._slices.stores.checkpoints.claimed(checkpoint.worker)
        written = {name for built in checkpoint.transforms.values() for name in built.collections}
        mine = written - claimed.keys()
        left = {name: known for name, known in there.items() if shared_of(shadowed(name)) in mine}
        if checkpoint.rebuilding is not None or left:
            self._committer.save(replace(checkpoint, rebuilding=None))
        for name, known in left.items():
            self._shelf.drop(name, known)
        told = {job.stage.removeprefix(UNTOLD) for job in self._jobs.open() if job.stage.startswith(UNTOLD)}
        untold = self._slices.stores.untold
        if untold.others(told):
            self._committer.aside(lambda session: untold.keep(told, session))

    def _drop_left_behind(self, job: Job) -> Job:
        """Drop the collections that no transform names any more, and forget who wrote them.

        What is dropped is committed before: a holder that was overtaken cannot drop what was made anew meanwhile.
        """
        checkpoint, there = self._committer.checkpoint, self._shelf.ids()
        named = {name for each in self._plugged() for name in each.collections}
        claimed = self._slices.stores.checkpoints.claimed(checkpoint.worker)
        if not job.stage:
            left = [name for name in checkpoint.left_behind(named | claimed.keys()) if name in job.keys]
            places = [*left, *map(parts_of, left)]
            report = {"dropped": left, "ids": {name: there[name] for name in places if name in there}}
            return self._progress(replace(job, stage="drop/", report=report))
        dropped: list[str] = [name for name in job.report["dropped"] if name not in named]
        ids: Mapping[str, UUID] = job.report["ids"]
        for name in [*dropped, *map(parts_of, dropped)]:
            if name in ids:
                self._shelf.drop(name, ids[name])
        for name, built in checkpoint.transforms.items():
            gone = set(dropped)
            left_of = replace(built, collections=built.collections - gone, shared=built.shared - gone)
            checkpoint = checkpoint.with_built(name, left_of)
        log.info("dropped", collections=dropped)
        done = replace(job, done=True, keys=(), documents=len(dropped), report={"dropped": dropped})
        return self._progress(done, checkpoint)


def _began(job: Job, following: str) -> int:
    """Give the documents that count as done when a stage begins: the verification counts anew."""
    begins = following.startswith("again/") and not job.stage.startswith("again/")
    return 0 if begins else job.documents
