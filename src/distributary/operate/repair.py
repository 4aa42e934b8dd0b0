"""Which jobs make differences good."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from distributary.change import Identity, identity
from distributary.chunks import chunks
from distributary.derive.batch import is_storable
from distributary.operate.comparison import Difference
from distributary.state import Job, JobKind

#: Keys in one job. One with foreign records is done in one transaction, so that it must not be large.
JOB_KEYS = 500

_REASON = "verify found differences"

Place = tuple[str, Any]  # derived collection, key


class _Again(NamedTuple):
    """A source key that is derived again, and the foreign records that are in its way."""

    key: Any
    foreign: list[Place]


def repairs(differences: Iterable[Difference], sources: Mapping[str, str]) -> list[Job]:
    """Give the jobs that derive again whoever has to do with a difference, in the order of doing them.

    `sources` tells which collection each transform reads that is compared; others derive nothing, so that
    what they wrongly hold stays theirs. Records that nobody owns are removed.
    """
    by_transform: dict[str, dict[Identity, _Again]] = {}
    nobodys: list[Place] = []
    for each in differences:
        foreign = [(each.collection, each.key)] if each.foreign and is_storable(each.key) else []
        involved = [
            _again(by_transform, name, key)
            for name, key in each.owners()
            if name in sources and is_storable(key)
        ]
        (involved[-1].foreign if involved else nobodys).extend(foreign)
    first = next(iter(sources.values()), "")
    return [
        *(_job(first, (), [], places) for places in chunks(nobodys, JOB_KEYS)),
        *(
            _job(sources[name], (name,), [each.key for each in some], _foreign(some))
            for name, keys in by_transform.items()
            for some in chunks(list(keys.values()), JOB_KEYS)
        ),
    ]


def _again(by_transform: dict[str, dict[Identity, _Again]], transform: str, key: Any) -> _Again:
    return by_transform.setdefault(transform, {}).setdefault(identity(key), _Again(key, []))


def _foreign(some: Iterable[_Again]) -> list[Place]:
    return [place for each in some for place in each.foreign]


def _job(source: str, transforms: tuple[str, ...], keys: list[Any], foreign: list[Place]) -> Job:
    return Job(None, JobKind.DERIVE, source, transforms, _REASON, keys=keys, foreign=foreign, total=len(keys))
