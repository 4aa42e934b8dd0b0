"""What is stored, told from its bytes: decoding every record is what a commit would spend its time on."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from bson import Timestamp

from distributary.change import Version, identity, new_tuple
from distributary.derive.plan import Desired, Owner, Stored
from distributary.derive.records import Place, origin
from distributary.excerpt import key_element, key_of_element

#: Where the engine's field ends: `at` and `epoch` with their values, the end of the field and of the document.
_AT, _EPOCH, _ENDS = b"\x11at\0", b"\x10epoch\0", b"\0\0"
_TAIL = len(_AT) + 8 + len(_EPOCH) + 4 + len(_ENDS)


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
            self._keys[place[0]][key_element(document)] = (place, key)

    def stored(self, collection: str, raw: bytes) -> Stored | None:
        """Read a stored record; None when it has to be decoded."""
        key, version = key_element(raw), self._version(raw[-_TAIL:])
        owner = self._owner(raw)
        if not key or version is None or owner is None:
            return None
        place, value = self._keys[collection].get(key) or _decoded(collection, key)
        return new_tuple(Stored, (place, value, owner, version, raw))

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


def _decoded(collection: str, element: bytes) -> tuple[Place, Any]:
    key = key_of_element(element)
    return (collection, identity(key)), key
