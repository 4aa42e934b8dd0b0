"""Resume tokens, read offline: what each version says, and that nothing is guessed. Real ones: test_position.py."""

import json
from subprocess import run
from sys import executable
from uuid import UUID

import pytest
from bson import Decimal128, ObjectId, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from distributary.errors import ConfigurationError
from distributary.source.keystring import Unreadable, values
from distributary.source.token import Token, TokenKind, token_of

COLLECTION = UUID("e2a33490-5944-4fe6-8e69-6d00049d2d61")
TIME = Timestamp(1795325593, 20)

#: What tokens of these changes begin with: cluster time and version, then kind, index and invalidate, the collection.
AT = "826B027E9900000014"
CHANGE = "2B022C0100296E"
IN_ORDERS = f"{CHANGE}5A1004{COLLECTION.hex.upper()}"

#: Tokens of MongoDB 6.0, version 1; `INSERTED` has 0.3 as a decimal, -3 and 2.5 in its key.
INSERTED = f"{AT}{IN_ORDERS}46465F69640046507200502AFF4CCCCCCCCCCCCE27F92B058000000000000000000004"
DROPPED = f"{AT}{IN_ORDERS}04"
INVALIDATED = f"{AT}{IN_ORDERS.replace('296E', '296F')}04"
IDLE = f"{AT}2B0229296E04"

#: Of MongoDB 4.0, version 0, and of 7.0, version 2.
OLD = f"{AT}29295A1004{COLLECTION.hex}46645F696400645F00000000000000000000010004"
NEW = f"{AT}2B042C0100296E5A1004{COLLECTION.hex}"
NEW_INSERTED = (
    f"{NEW}463C6F7065726174696F6E54797065003C696E736572740046646F63756D656E744B657900462B5F6964002B0E000004"
)
NEW_CREATED = (
    f"{NEW}463C6F7065726174696F6E54797065003C63726561746500466F7065726174696F6E4465736372697074696F6E0046"
    "466964496E64657800462B76002B0400000004"
)
NEW_IDLE = f"{AT}2B0429296E1404"


def test_the_token_of_an_insert() -> None:
    """Time, collection and key are those of the change."""
    key = {"_id": {"r": [Decimal128("0.3"), -3, 2.5]}}
    assert token_of(INSERTED) == Token(
        TIME, 1, TokenKind.CHANGE, 0, invalidate=False, collection=COLLECTION, key=key
    )


def test_tokens_without_a_document() -> None:
    """A drop has a collection and no key, an idle batch only a time, and an invalidate says that it is one."""
    dropped = Token(TIME, 1, TokenKind.CHANGE, 0, invalidate=False, collection=COLLECTION)
    assert token_of(DROPPED) == dropped
    assert token_of(IDLE) == Token(TIME, 1, TokenKind.HIGH_WATER_MARK, 0, invalidate=False)
    assert token_of(INVALIDATED).invalidate
    assert not any(token_of(each).unreadable for each in (DROPPED, IDLE, INVALIDATED))


def test_tokens_of_older_and_newer_servers() -> None:
    """Version 0 has no kind, version 2 names the operation with the key, or describes it."""
    old, new, created = token_of(OLD), token_of(NEW_INSERTED), token_of(NEW_CREATED)
    assert (old.version, old.kind, old.key) == (
        0,
        TokenKind.CHANGE,
        {"_id": ObjectId("5f0000000000000000000001")},
    )
    assert (new.version, new.operation, new.key, new.collection) == (2, "insert", {"_id": 7}, COLLECTION)
    assert (created.operation, created.key, created.description) == ("create", None, {"idIndex": {"v": 2}})
    assert token_of(NEW_IDLE) == Token(TIME, 2, TokenKind.HIGH_WATER_MARK, 0, invalidate=False)
    assert not any(each.unreadable for each in (old, new, created))


@pytest.mark.parametrize(
    "text",
    [
        INSERTED.lower(),
        f'{{"_data": "{INSERTED}"}}',
        f"{{ _data: '{INSERTED}', _typeBits: 'x' }}",
        f" {INSERTED}\n",
    ],
    ids=["lower case", "JSON", "a shell's document", "blanks"],
)
def test_a_token_as_it_is_pasted(text: str) -> None:
    """The document around a token is taken as well, as programs and shells print it."""
    assert token_of(text) == token_of(INSERTED)


@pytest.mark.parametrize(
    "text", ["", "now", "{}", "82", INSERTED[:-1], "92" + INSERTED[2:], '{"_data": ""}', "x" * 99]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    """Anything else ends with what a token looks like."""
    with pytest.raises(
        ConfigurationError, match=r"is no resume token. Give the hex string in the `_data` field"
    ):
        token_of(text)


@pytest.mark.parametrize("length", range(20, len(INSERTED), 2))
def test_a_token_that_is_cut_short(length: int) -> None:
    """What is there is told, what is not is said to be missing, and nothing is made up."""
    whole, cut = token_of(INSERTED), token_of(INSERTED[:length])
    assert cut.unreadable == "it is cut short"
    assert cut.time == whole.time
    for name in ("version", "kind", "index", "invalidate", "collection", "key"):
        assert getattr(cut, name) in (None, getattr(whole, name))


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (f"{AT}2B0604", "version 3 is not known"),
        (f"{AT}04", "it has no version"),
        (f"{AT}2B0204", "it has too few values"),
        (f"{AT}2B023C610004", "its kind is of an unexpected type"),
        (f"{AT}{IN_ORDERS}462D5F696400FF", "unknown type 255"),
        (f"{DROPPED}00", "more follows behind its end"),
        (f"{DROPPED[:-2]}4600141404", "it has more values"),
    ],
)
def test_what_cannot_be_read_is_said(token: str, why: str) -> None:
    """A token of another form gives its time, and why the rest is not read."""
    assert token_of(token).time == TIME
    assert why in token_of(token).unreadable


@given(st.binary(max_size=60))
def test_no_bytes_are_a_crash(key: bytes) -> None:
    """Whatever follows a token's head, its time is told, and the rest or why not."""
    assert token_of(f"{AT}{IN_ORDERS}46465F696400{key.hex()}").collection == COLLECTION


def test_deep_nesting_ends() -> None:
    """Nesting that no document has is refused instead of followed."""
    assert token_of(f"{AT}{IN_ORDERS}46{'466100' * 9999}").unreadable == "it is nested too deeply"


def test_values_come_until_one_is_unreadable() -> None:
    """What stands before an unreadable value is given."""
    read = values(bytes.fromhex("2B022B04FF"))
    assert [next(read), next(read)] == [1, 2]
    with pytest.raises(Unreadable, match="type 255"):
        next(read)


def test_decoding_needs_neither_configuration_nor_server() -> None:
    """The verb answers with nothing but the token; there is no module, no file and no variable."""
    command = [executable, "-m", "distributary", "position", "decode", INSERTED]
    said = run(command, capture_output=True, text=True, check=True, env={}).stdout
    assert f"collection:  {COLLECTION}\n" in said
    assert 'key:         {"_id": {"r": [{"$numberDecimal": "0.3"}, -3, 2.5]}}\n' in said
    answer = json.loads(run([*command, "--json"], capture_output=True, check=True, env={}).stdout)
    assert answer["schema"] == 1
    assert answer["token"]["time"] == "2026-11-22T05:33:13+00:00"
    assert answer["token"]["collection"] is None


def test_the_verb_says_what_it_cannot_read() -> None:
    """A damaged token ends well and says so; what is no token ends with 2."""
    command = [executable, "-m", "distributary", "position", "decode"]
    said = run([*command, INSERTED[:90]], capture_output=True, text=True, check=True, env={}).stdout
    assert "key:         not readable from this token: it is cut short" in said
    refused = run([*command, "nonsense"], capture_output=True, text=True, check=False, env={})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is no resume token" in refused.stderr
