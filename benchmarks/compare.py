"""Compare what a contender left with a recomputation from the raw collection, document by document."""

from collections.abc import Iterator
from typing import cast

from bson import decode_all, encode
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from benchmarks.workload import DERIVED, OWNERS, RAW, SOURCE, Document, fan_out

#: The documents of each derived collection as BSON.
State = dict[str, set[bytes]]

_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


def expected(client: MongoClient[Document]) -> State:
    """Recompute the derived collections from the raw one."""
    state: State = {name: set() for name in OWNERS}
    for order in client[RAW][SOURCE].find():
        for name, document in fan_out(order):
            state[name].add(encode(document))
    return state


def differences(client: MongoClient[Document], wanted: State) -> int:
    """Count the documents that are missing or should not be as they are, without the engine's field."""
    return sum(
        len(documents.symmetric_difference(_stored(client, name))) for name, documents in wanted.items()
    )


def _stored(client: MongoClient[Document], name: str) -> Iterator[bytes]:
    for batch in client[DERIVED][name].find_raw_batches({}, {"_src": 0}):
        for document in decode_all(cast("bytes", batch), _RAW):  # the stub says it is a document
            yield bytes(document.raw)
