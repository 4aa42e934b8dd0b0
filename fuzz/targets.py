"""What is fuzzed: each target takes bytes and raises when something comes of them that must not."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from bson import Binary, Decimal128, Int64, MaxKey, ObjectId, Regex, Timestamp, encode
from bson.errors import BSONError

from distributary import DerivedCollection
from distributary.change import CODEC, Position, Version, decoded, identity
from distributary.config import KEYS, load, point_of, redact
from distributary.config.reading import FILE_SUFFIX
from distributary.config.uri import fault_of
from distributary.derive.batch import derive_all
from distributary.derive.collapse import Latest
from distributary.derive.records import EncodedRecord
from distributary.derive.transform import Transform
from distributary.errors import ConfigurationError, PositionLost
from distributary.events.columns import table_of_records
from distributary.events.envelope import Envelope, RecordChange
from distributary.excerpt import excerpt, key_of
from distributary.source.keystring import Unreadable, values
from distributary.source.token import token_of

ROOT = Path(__file__).parents[1]

#: What parts the file from the environment, and one variable from the next.
_FILE_END, _LINE_END = b"\x1e", b"\x1f"

_PASSWORD = "pa55w0rdPa55w0rd"  # noqa: S105 - what must not be shown

_VARIABLES = [name for key in KEYS for name in (key.variable, key.variable + FILE_SUFFIX)]

_TIME = Timestamp(1767225600, 7)
_TOKEN = "826B0283EF0000004D2B022C0100296E5A1004A348F69AF310461088B49A8ADB68EC19461E5F6964002B160004"  # noqa: S105


# --- configuration --------------------------------------------------------------------------------------------


def configuration(data: bytes) -> None:
    """Load a file and an environment: a configuration, or faults; and no connection string shows a password."""
    file, *lines = data.split(_FILE_END, 1)[0], *data.partition(_FILE_END)[2].split(_LINE_END)
    path = Path(gettempdir()) / "distributary-fuzz.toml"
    path.write_bytes(file)
    environ = {
        _VARIABLES[line[0] % len(_VARIABLES)]: line[1:].decode("utf-8", "surrogateescape")
        for line in lines
        if line
    }
    _loaded(path, environ)
    for line in lines:
        _shows_nothing(f"mongodb://user:{_PASSWORD}@{line.decode('utf-8', 'surrogateescape')}")


def _loaded(path: Path, environ: Mapping[str, str]) -> None:
    try:
        config = load(path, environ)
    except ConfigurationError as error:
        assert error.faults
        assert all(fault.place and fault.problem for fault in error.faults)
    else:
        redact(config.source.uri)


def _shows_nothing(uri: str) -> None:
    assert _PASSWORD not in redact(uri)
    assert _PASSWORD not in "".join(fault_of(uri) or ())


# --- positions ------------------------------------------------------------------------------------------------


def positions(data: bytes) -> None:
    """Read a position as text, a token as text, and the values of a token."""
    text = data.decode("utf-8", "surrogateescape")
    for token in (text, f"82{data.hex()}"):
        _refused(point_of, token, ValueError)
        _refused(token_of, token, ConfigurationError)
        _refused(Position.of_token, token, PositionLost)
    _refused(lambda raw: list(values(raw)), data, Unreadable)


def _refused(read: Callable[[Any], object], given: object, refusal: type[Exception]) -> None:
    try:
        read(given)
    except refusal:
        return


# --- documents ------------------------------------------------------------------------------------------------

views = DerivedCollection("views")


def _whole(document: dict[str, Any]) -> Iterator[object]:
    fields = {name: value for name, value in document.items() if name != "_id"}
    yield views.record(document["_id"], fields)
    yield views.record({"of": document["_id"]}, {"all": document})


def _parts(document: dict[str, Any]) -> Iterator[object]:
    yield views.section(document["_id"], "all", document)
    for name, value in document.items():
        yield views.item(1, "values", value, {"name": name})


def _transform(function: Callable[[dict[str, Any]], Any]) -> Transform:
    return Transform(function.__name__, "raw", function, "", frozenset({"views"}), "here:1")


_ENVELOPES = [
    Envelope("w", binary=binary, plain=plain) for binary in (True, False) for plain in (True, False)
]


def documents(data: bytes) -> None:
    """Decode a document, derive it, and write what comes of it as messages, in every form."""
    data = (
        len(data).to_bytes(4, "little") + data[4:-1] + b"\0"
    )  # the frame is right, so that more is looked at
    try:
        document = decoded(data)
    except (BSONError, ValueError, OverflowError, RecursionError):
        return  # nothing that MongoDB stores
    if "_id" not in document:
        document = {"_id": 1, **document}
    elif _is_own(document, data):
        assert identity(key_of(data)) == identity(document["_id"])
        assert excerpt(data, list(document)).keys() == document.keys()
    key = document["_id"]
    hash(identity(key))
    for function in (_whole, _parts):
        item = Latest("raw", key, identity(key), _TIME, document, gone=False, fresh=True, token="")
        derived = derive_all([item], {"raw": [_transform(function)] * 2}, 1, 50)
        assert len(derived.desired) + len(derived.failed) == 2  # noqa: PLR2004 - one for each transform
        for record in derived.desired[0].records[:2] if derived.desired else ():
            _published(record)


def _is_own(document: dict[str, Any], data: bytes) -> bool:
    """Whether the driver would write the same bytes: no field twice, and no odd lengths."""
    try:
        return encode(document, codec_options=CODEC) == data
    except (BSONError, ValueError, OverflowError, RecursionError):
        return False


def _published(record: EncodedRecord) -> None:
    table = table_of_records([record.document])
    there = RecordChange("views", record.key, record.document, _TIME, _TOKEN, (5, 2))
    for change in (there, there._replace(document=None)):
        for envelope in (*_ENVELOPES, Envelope("w", tables={"views": table})):
            for form in ("cloudevents", "bigquery"):
                message = envelope.of_record(change, "topic", form)
                assert not message.data or json.loads(message.data) is not None
            envelope.reference(change, "topic")


#: The targets by name.
TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "configuration": configuration,
    "positions": positions,
    "documents": documents,
}


# --- what they begin with -------------------------------------------------------------------------------------


def seeds(name: str) -> list[bytes]:
    """Give inputs that a target begins with."""
    return {"configuration": _configurations, "positions": _positions, "documents": _documents}[name]()


def _configurations() -> list[bytes]:
    example = (ROOT / "deploy" / "distributary.toml").read_bytes()
    line = b"".join(
        _LINE_END + bytes([index]) + text for index, text in enumerate([b"mongodb://u:p@h/", b"a,b"])
    )
    return [
        example,
        example + _FILE_END + line,
        _FILE_END + line,
        b'[source]\nuri = "mongodb://h/"\ndatabase = "d"',
    ]


def _positions() -> list[bytes]:
    texts = ["now", "-1d12h", "2026-01-31T12:00:00Z", "2026-01-31", _TOKEN, f'{{"_data": "{_TOKEN}"}}']
    return [*(text.encode() for text in texts), bytes.fromhex(_TOKEN), bytes.fromhex(_TOKEN)[1:]]


def _documents() -> list[bytes]:
    some: list[Any] = [
        {"_id": 1, "a": "b", "c": [1, 2.5, None, True], "d": {"e": {"f": []}}},
        {"_id": ObjectId("0123456789abcdef01234567"), "n": Decimal128("1.50"), "l": Int64(2**40), "t": _TIME},
        {"_id": {"a": 1, "b": "x"}, "r": Regex("a", "i"), "m": MaxKey(), "bin": Binary(b"x" * 16, 4)},
        {"_id": "k", "nan": float("nan"), "inf": float("-inf"), "v": Version(1, _TIME)},
    ]
    return [encode(each, codec_options=CODEC) for each in some]
