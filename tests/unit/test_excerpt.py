"""Fields that are read out of a document in BSON."""

from typing import Any

import pytest
from bson import ObjectId, encode

from distributary.change import CODEC
from distributary.excerpt import excerpt


@pytest.mark.parametrize("key", [1, "k", None, ObjectId(), {"a": {"b": [1, {"c": 2}]}}, 2.5, b"x"])
def test_an_excerpt_has_the_values_of_the_whole(key: Any) -> None:
    """A field of any type is what decoding the whole document gives."""
    document = {"_id": key, "blob": "x" * 1000, "_src": {"by": "f", "key": key}}
    raw = encode(document, codec_options=CODEC)
    assert excerpt(raw, ("_id", "_src")) == {"_id": key, "_src": document["_src"]}


def test_a_field_that_is_missing_is_left_out() -> None:
    """What the document does not have is not in the excerpt."""
    assert excerpt(encode({"_id": 1}), ("_id", "_src")) == {"_id": 1}
