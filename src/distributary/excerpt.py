"""Some fields of a document in BSON, without making a dict of all of it, which takes many times the room."""

from collections.abc import Collection
from typing import Any

from bson import decode
from bson.raw_bson import RawBSONDocument

from distributary.change import CODEC

_LAZY = CODEC.with_options(document_class=RawBSONDocument)


def excerpt(document: bytes, names: Collection[str]) -> dict[str, Any]:
    """Give the named top-level fields of a document, as far as it has them; what lies in others is not decoded."""
    lazily = RawBSONDocument(document, _LAZY)
    return {name: _decoded(lazily[name]) for name in names if name in lazily}


def _decoded(value: Any) -> Any:
    return decode(value.raw, CODEC) if isinstance(value, RawBSONDocument) else value
