"""What is stored, told from its bytes: decoding every record is what a commit would spend its time on."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from bson import Timestamp, decode

from distributary.change import CODEC, Version, identity
from distributary.derive.plan import Desired, Owner, Stored
from distributary.derive.records import Place, origin

#: Where the engine's field ends: `at` and `epoch` with their values, the end of the field and of the document.
_AT, _EPOCH, _ENDS = b"\x11at\0", b"\x10epoch\0", b"\0\0"
_TAIL = len(_AT) + 8 + len(_EPOCH) + 4 + len(_ENDS)

#: Where the key's value starts: behind the document's length, the type byte and the name.
_KEY = 4 + 1 + len(b"_id\0")

#: How many bytes the value of a key takes, by its type: double, ObjectId, date, 32 and 64 bit integer.
_FIXED = {1: 8, 7: 12, 9: 8, 16: 4, 18: 8}

#: Types whose value starts with a length, and what the value has beside it: string, document, binary.
_SIZED = {2: 4, 3: 0, 5: 5}

#: Makes a named tuple of a tuple, in a third of the time that its class takes.
_new = tuple.__new__


class Familiar:
    """Knows the engine's field and the keys of some documents' records, as bytes.

    A stored record of theirs that the engine wrote is told without decoding it. Others are not: those of another
    shape (a hand's work, a key of a rare type), and those whose owner's key is the same number in another type.
    Source of the layout: bsonspec.org.
    """

    def __init__(self, desired: Iterable[Desired]) -> None:
        self._owners: dict[bytes, Owner] = {}
        self._keys: dict[str, dict[bytes, tuple[Place, Any]]] = defaultdict(dict)
        self._versions: dict[bytes, Version] = {}
        for item in desired:
            self._learn(item)
        self._sizes = {len(head) for head in self._owners}

    def _learn(self, item: Desired) -> None:
        field = b"\x03_src\0" + origin(item.transform, item.key, item.version).raw
        if _is_version(field[1 - _TAIL :] + b"\0"):
            self._owners[field[: 1 - _TAIL]] = item.owner
        for place, key, document, _ in item.records:
            self._keys[place[0]][_key_of(document)] = (place, key)

    def stored(self, collection: str, raw: bytes) -> Stored | None:
        """Read a stored record; None when it has to be decoded."""
        key, version = _key_of(raw), self._version(raw[-_TAIL:])
        owner = self._owner(raw)
        if not key or version is None or owner is None:
            return None
        place, value = self._keys[collection].get(key) or _decoded(collection, key)
        return _new(Stored, (place, value, owner, version, raw))

    def _version(self, tail: bytes) -> Version | None:
        """Read a version; all records of one document have the same, so that most were read before."""
        version = self._versions.get(tail)
        if version is None and _is_version(tail):
            increment, time, epoch = (int.from_bytes(tail[at : at + 4], "little") for at in (4, 8, 19))
            version = self._versions[tail] = Version(epoch, Timestamp(time, increment))
        return version

    def _owner(self, raw: bytes) -> Owner | None:
        for size in self._sizes:
            owner = self._owners.get(raw[-_TAIL - size : -_TAIL])
            if owner is not None:
                return owner
        return None


def _is_version(tail: bytes) -> bool:
    return tail.startswith(_AT) and tail[12:19] == _EPOCH and tail[23:] == _ENDS


def _key_of(document: bytes) -> bytes:
    """Give the value of a document's key with its type byte; nothing when it is of a rare type."""
    kind = document[4]
    size = _FIXED.get(kind)
    if size is None:
        if kind not in _SIZED:
            return b""
        size = _SIZED[kind] + int.from_bytes(document[_KEY : _KEY + 4], "little")
    return document[4 : _KEY + size]


def _decoded(collection: str, key: bytes) -> tuple[Place, Any]:
    size = 4 + len(key) + 1
    value = decode(size.to_bytes(4, "little") + key + b"\0", CODEC)["_id"]
    return (collection, identity(value)), value
