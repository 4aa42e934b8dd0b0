"""The registry: which transforms and derived collections there are, immutable and free of faults."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TypeVar

from distributary.derive.faults import faults
from distributary.derive.found import (
    Declared,
    DeclaredRollup,
    Found,
    Marked,
    MarkedTrigger,
    all_declared,
    all_rollups,
)
from distributary.derive.pseudonyms import under, without_key
from distributary.derive.records import DerivedCollection
from distributary.derive.rollup import Rollup
from distributary.derive.transform import Shapes, Transform
from distributary.derive.trigger import Trigger
from distributary.errors import ConfigurationError, Fault

F = TypeVar("F", Transform, Trigger)


@dataclass(frozen=True)
class Registry:
    """Transforms by name, derived collections by name, and the transforms of each source collection.

    `sources` is sorted; `places` tells where a derived collection or rollup is declared. `declared` are the names of
    all of them, also of those that no chosen transform names. What triggers fill is among the `collections`, and what
    they read is not among the `sources`. Made by `build`.
    """

    transforms: Mapping[str, Transform]
    collections: Mapping[str, DerivedCollection]
    by_source: Mapping[str, tuple[Transform, ...]]
    sources: tuple[str, ...]
    places: Mapping[str, str]
    declared: frozenset[str]
    rollups: Mapping[str, Rollup]
    triggers: Mapping[str, Trigger] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def audited(self) -> frozenset[str]:
        """The derived collections that triggers fill: they cannot be recomputed."""
        return frozenset[str]().union(*(each.collections for each in self.triggers.values()))

    @property
    def published(self) -> Mapping[str, DerivedCollection]:
        """The derived collections whose changes are published."""
        return {name: each for name, each in self.collections.items() if each.publish}

    @property
    def read(self) -> tuple[str, ...]:
        """The source collections of transforms and triggers, sorted."""
        return tuple(sorted({*self.sources, *(each.source for each in self.triggers.values())}))

    def only(self, names: Iterable[str], place: str = "worker.only") -> "Registry":
        """Give the registry of these transforms and triggers and the collections that they name; of no names, itself.

        Raises `ConfigurationError` with a fault at `place` for every name that is unknown.
        """
        wanted = frozenset(names)
        known = {*self.transforms, *self.triggers}
        faults = [_unknown(name, known, place) for name in sorted(wanted - known)]
        if faults:
            raise ConfigurationError(faults)
        if not wanted:
            return self
        chosen = [transform for name, transform in self.transforms.items() if name in wanted]
        triggers = [each for name, each in self.triggers.items() if name in wanted]
        functions: list[Transform | Trigger] = [*chosen, *triggers]
        named = frozenset[str]().union(*(each.collections for each in functions))
        declared = [item for item in self._declared() if item.collection.name in named]
        rollups = [item for item in self._rollups() if item.rollup.over.name in named]
        return replace(_registry(chosen, declared, rollups, triggers), declared=self.declared)

    def only_transforms(self, names: Iterable[str], place: str = "--transform") -> "Registry":
        """Do what `only` does for what is to be derived: a trigger has nothing that could be derived again."""
        reacting = [name for name in sorted(set(names)) if name in self.triggers]
        if reacting:
            raise ConfigurationError([_not_derived(name, place) for name in reacting])
        return self.only(names, place)

    def under_key(self, digest: str | None) -> "Registry":
        """Give the registry in whose fingerprints the key of pseudonyms counts, where code makes them.

        `digest` is what another key has another of. Raises `ConfigurationError` with a fault for each transform and
        trigger that makes pseudonyms when there is no key.
        """
        functions: list[Transform | Trigger] = [*self.transforms.values(), *self.triggers.values()]
        keyed = [each for each in functions if each.pseudonyms]
        if digest is None and keyed:
            raise ConfigurationError([without_key(each.name, each.place) for each in keyed])
        if digest is None or not keyed:
            return self
        transforms = [_under_key(each, digest) for each in self.transforms.values()]
        triggers = [_under_key(each, digest) for each in self.triggers.values()]
        changed = _registry(transforms, self._declared(), self._rollups(), triggers)
        return replace(changed, declared=self.declared)

    def owners_of(self, collection: str) -> frozenset[str]:
        """Give the names of the transforms whose code names a derived collection."""
        return frozenset(
            name for name, transform in self.transforms.items() if collection in transform.collections
        )

    def check_loop(self, *, source_db_is_derived_db: bool) -> None:
        """Raise `ConfigurationError` when what transforms write would be read again as a source."""
        both = [name for name in (*self.collections, *self.rollups) if name in self.read]
        if source_db_is_derived_db and both:
            raise ConfigurationError([self._loop(name) for name in both])

    def _loop(self, name: str) -> Fault:
        functions: list[Transform | Trigger] = [*self.transforms.values(), *self.triggers.values()]
        readers = ", ".join(repr(each.name) for each in functions if each.source == name)
        kind = "rollup" if name in self.rollups else "derived collection"
        return Fault(
            self.places[name],
            f"{kind} {name!r} has the database and the name of what {readers} reads: a loop.",
            "Give it another name, or set derived.database to another database.",
        )

    def _declared(self) -> list[Declared]:
        return [Declared(collection, self.places[name]) for name, collection in self.collections.items()]

    def _rollups(self) -> list[DeclaredRollup]:
        return [DeclaredRollup(rollup, self.places[name]) for name, rollup in self.rollups.items()]


def build(found: Sequence[Found]) -> Registry:
    """Make the registry; raises `ConfigurationError` with all that `faults` finds."""
    if wrong := faults(found):
        raise ConfigurationError(wrong)
    transforms = [transform_of(marked) for module in found for marked in module.transforms]
    triggers = [trigger_of(marked) for module in found for marked in module.triggers]
    return _registry(transforms, all_declared(found), all_rollups(found), triggers)


def transform_of(marked: Marked) -> Transform:
    """Give the transform that a marked function is."""
    names = frozenset(collection.name for collection in marked.code.collections)
    mark = marked.mark
    code, place = marked.code, marked.place
    return Transform(
        mark.name, mark.source, marked.function, code.fingerprint, names, place, pseudonyms=code.pseudonyms
    )


def trigger_of(marked: MarkedTrigger) -> Trigger:
    """Give the trigger that a marked function is."""
    mark, code = marked.mark, marked.code
    return Trigger(
        mark.name,
        mark.source,
        marked.function,
        code.fingerprint,
        frozenset(collection.name for collection in code.collections),
        marked.place,
        mark.operations,
        mark.match,
        mark.project,
        marked.reads,
        code.pseudonyms,
        marked.topics,
    )


def _under_key(function: F, digest: str) -> F:
    if not function.pseudonyms:
        return function
    return replace(function, fingerprint=under(function.fingerprint, digest))


def rollups_over(rollups: Iterable[Rollup], collections: Iterable[str]) -> dict[str, tuple[Rollup, ...]]:
    """Give the rollups over some derived collections, by the collection's name."""
    rollups = list(rollups)
    over = {name: tuple(each for each in rollups if each.over.name == name) for name in collections}
    return {name: some for name, some in over.items() if some}


def _registry(
    transforms: Sequence[Transform],
    declared: Sequence[Declared],
    rollups: Sequence[DeclaredRollup],
    triggers: Sequence[Trigger],
) -> Registry:
    plain, shapes = [item.rollup for item in rollups], Shapes()
    transforms = [
        replace(each, rollups=rollups_over(plain, each.collections), shapes=shapes) for each in transforms
    ]
    sources = tuple(sorted({transform.source for transform in transforms}))
    by_source = {
        source: tuple(transform for transform in transforms if transform.source == source)
        for source in sources
    }
    return Registry(
        transforms=MappingProxyType({transform.name: transform for transform in transforms}),
        collections=MappingProxyType({item.collection.name: item.collection for item in declared}),
        by_source=MappingProxyType(by_source),
        sources=sources,
        places=MappingProxyType(
            {item.collection.name: item.place for item in declared}
            | {item.rollup.name: item.place for item in rollups}
        ),
        declared=frozenset(item.collection.name for item in declared) | {each.name for each in plain},
        rollups=MappingProxyType({each.name: each for each in plain}),
        triggers=MappingProxyType({each.name: each for each in triggers}),
    )


def _not_derived(name: str, place: str) -> Fault:
    return Fault(
        place,
        f"{name!r} is a trigger: it yields effects of changes, and has no records to derive, compare or build anew.",
        "Name transforms. Changes that a trigger failed for are tried again by `distributary dead-letters retry`.",
    )


def _unknown(name: str, known: Iterable[str], place: str) -> Fault:
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return Fault(
        place, f"no transform is called {name!r}.", f"{hint}There are: {', '.join(names) or 'none'}."
    )
