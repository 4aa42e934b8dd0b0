"""Deriving the documents of a batch: what each yields through each transform of its collection."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from math import inf
from typing import Any, NamedTuple

from bson import encode
from bson.errors import BSONError

from distributary.change import CODEC, Version, decoded, new_tuple
from distributary.derive.collapse import Latest
from distributary.derive.plan import Desired, Owner
from distributary.derive.records import EncodedRecord, origin
from distributary.derive.transform import Failure, Transform, derive

_NOT_BSON = (BSONError, ValueError, OverflowError, RecursionError)


class Failed(NamedTuple):
    """A document that one transform could not derive."""

    transform: Transform
    document: Latest
    failure: Failure


class Derived(NamedTuple):
    """What a batch yields."""

    desired: list[Desired]
    failed: list[Failed]


class Times:
    """The time that each transform took, and for how many documents; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.documents: dict[str, int] = defaultdict(int)


def derive_all(
    documents: Iterable[Latest],
    transforms: Mapping[str, Sequence[Transform]],
    epoch: int,
    limit: int,
    most: float = inf,
    times: Times | None = None,
) -> Derived:
    """Derive documents that were read; a document that is None is gone and yields nothing.

    No more documents are taken once what they yield has `most` bytes. `times` gets what it took.
    """
    result = Derived([], [])
    size = 0
    for item in documents:
        size += _derive_document(item, transforms.get(item.collection, ()), epoch, limit, result, times)
        if size >= most:
            break
        del item  # before the next one is decoded
    return result


def _derive_document(
    item: Latest,
    transforms: Sequence[Transform],
    epoch: int,
    limit: int,
    result: Derived,
    times: Times | None,
) -> int:
    """Derive one document through its transforms, and give the size of what it yields."""
    if len(transforms) == 1:
        return _derive_one(transforms[0], item, item.document, epoch, limit, result, times)
    copies = zip(transforms, _copies(item.document, len(transforms)), strict=True)
    return sum([_derive_one(each, item, document, epoch, limit, result, times) for each, document in copies])


def _derive_one(
    transform: Transform,
    item: Latest,
    document: dict[str, Any] | None,
    epoch: int,
    limit: int,
    result: Derived,
    times: Times | None,
) -> int:
    """Derive one document through one transform, and give the size of what it yields."""
    version = new_tuple(Version, (epoch, item.time))
    since = times.clock() if times else 0.0
    output = _output(transform, item, document, version, limit)
    if times and document is not None:
        times.seconds[transform.name] += times.clock() - since
        times.documents[transform.name] += 1
    if isinstance(output, Failure):
        result.failed.append(Failed(transform, item._replace(document=None), output))
        return len(output.reason) + len(output.traceback)
    owner = new_tuple(Owner, (transform.name, item.identity))
    size = sum([len(record[2]) for record in output])
    result.desired.append(Desired(transform.name, item.key, owner, version, output, item.fresh, size))
    return size


def _output(
    transform: Transform, item: Latest, document: dict[str, Any] | None, version: Version, limit: int
) -> list[EncodedRecord] | Failure:
    if not is_storable(item.key):
        return Failure(f"the source key {item.key!r} is not valid UTF-8", "")
    if document is None:
        return []
    return derive(transform, document, limit, origin(transform.name, item.key, version))


def _copies(document: dict[str, Any] | None, count: int) -> Iterator[dict[str, Any] | None]:
    """Give every transform a document of its own, so that one that changes it harms no other."""
    if document is None:
        yield from [document] * count
        return
    try:
        raw = encode(document, codec_options=CODEC)
    except _NOT_BSON:  # invalid UTF-8 somewhere in it
        yield from [deepcopy(document) for _ in range(count)]
    else:
        yield from (decoded(raw) for _ in range(count))


def is_storable(key: Any) -> bool:
    """Whether a source key can be encoded again; one with invalid UTF-8 cannot."""
    if isinstance(key, str) and key.isascii():
        return True
    try:
        encode({"key": key}, codec_options=CODEC) if isinstance(key, str | dict) else None
    except _NOT_BSON:
        return False
    return True
