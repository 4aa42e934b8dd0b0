"""What documents come to with the transforms of a folder, records and shared records alike, in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from bson import decode, encode

from distributary import Item, Record, Section
from distributary.change import CODEC, Identity, identity
from distributary.testing import Records
from distributary.testing.order import in_order

Document = dict[str, Any]
Functions = Mapping[str, Callable[[Document], Any]]
Yielded = Record | Section | Item


class Place(NamedTuple):
    """What has one owner: a record, a section, or an item; `within` is the section's name, or list and item key."""

    collection: str
    key: Identity
    within: tuple[Any, ...]


def recompute(functions: Functions, raw: Iterable[tuple[str, Document]]) -> dict[str, Records]:
    """Give every derived collection, `{collection: {key: fields}}`, of documents that each name their collection.

    A shared record has its sections and its lists as fields; lists are sorted by the items' keys. Fails when a place
    has two owners, when a collection holds both records and shared records, and when a function is not pure.
    """
    owned: dict[Place, Yielded] = {}
    for collection, document in raw:
        for each in _pure(functions[collection], document):
            place = _place(each)
            assert place not in owned, f"{each} has two owners"
            owned[place] = each
    return {name: Records(_documents(name, owned.values())) for name in {place.collection for place in owned}}


def _pure(function: Callable[[Document], Any], document: Document) -> list[Yielded]:
    """Call a function twice; both calls give the same, and the document stays as it is."""
    raw = encode(document, codec_options=CODEC)
    documents = [decode(raw, CODEC) for _ in range(2)]
    first, second = (_listed(function(each)) for each in documents)
    assert [_content(each) for each in first] == [_content(each) for each in second]
    assert all(encode(each, codec_options=CODEC) == raw for each in documents)
    return first


def _listed(result: Any) -> list[Yielded]:
    if result is None:
        return []
    return [result] if isinstance(result, Yielded) else list(result)


def _place(each: Yielded) -> Place:
    within: tuple[Any, ...] = ()
    if isinstance(each, Section):
        within = (each.name,)
    elif isinstance(each, Item):
        within = (each.name, identity(each.item_key))
    return Place(each.collection.name, identity(each.key), within)


def _content(each: Yielded) -> bytes:
    """Give what is yielded as bytes, so that nothing is equal which MongoDB would tell apart."""
    fields = {**each._asdict(), "collection": each.collection.name}
    return encode(fields, codec_options=CODEC)


def _documents(collection: str, owned: Iterable[Yielded]) -> Iterator[tuple[Any, Document]]:
    found: dict[Identity, tuple[Any, Document]] = {}
    mine = [each for each in owned if each.collection.name == collection]
    assert len({isinstance(each, Record) for each in mine}) == 1, (
        f"{collection} mixes records and shared ones"
    )
    for each in sorted(mine, key=lambda each: in_order(getattr(each, "item_key", None))):
        _, document = found.setdefault(identity(each.key), (each.key, {}))
        fields = decode(encode(dict(each.fields), codec_options=CODEC), CODEC)
        if isinstance(each, Record):
            document.update(fields)
        elif isinstance(each, Section):
            document[each.name] = fields
        else:
            document.setdefault(each.name, []).append({"_id": each.item_key, **fields})
    yield from found.values()
