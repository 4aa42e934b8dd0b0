"""Fields that a client encrypted: they go through a transform as they are, and only who holds the key reads them."""

from collections.abc import Iterator
from os import urandom
from pathlib import Path

import pytest
from bson import Binary
from pymongo.encryption import ClientEncryption

from distributary.change import CODEC
from tests.conftest import Databases
from tests.harness import Harness

pytest.importorskip("pymongocrypt", reason="pymongo[encryption] is not installed")

#: The subtype of values that a client encrypted.
ENCRYPTED = 6

ALGORITHM = "AEAD_AES_256_CBC_HMAC_SHA_512"

#: The number is copied, and members are looked up by it; that of a policy is also the key of a group.
MEMBERS = """
    from distributary import DerivedCollection, Rollup, transform

    by_number = DerivedCollection("members_by_number", indexes=["number"])
    policies = Rollup("policies_of_number", over=by_number, by="number", compute={"policies": {"$sum": 1}})

    @transform("members")
    def members(member):
        yield by_number.record(member["_id"], {"number": member["number"], "note": member["note"]})
"""


@pytest.fixture
def encryption(databases: Databases) -> Iterator[ClientEncryption[dict[str, object]]]:
    """Give what encrypts and decrypts with a key of this test."""
    vault = f"{databases.raw.name}.keys"
    keys = {"local": {"key": urandom(96)}}
    with ClientEncryption[dict[str, object]](keys, vault, databases.client, CODEC) as opened:
        opened.create_data_key("local", key_alt_names=["personal"])
        yield opened


def test_encrypted_fields_stay_encrypted(
    databases: Databases, tmp_path: Path, encryption: ClientEncryption[dict[str, object]]
) -> None:
    """A worker without the key derives records that hold the same bytes, groups by them, and verifies equal."""
    harness = Harness(databases, tmp_path / "modules", {"members": MEMBERS})
    same = [_encrypted(encryption, "900101-1234", "Deterministic") for _ in range(2)]
    note = _encrypted(encryption, "prefers calls", "Random")
    databases.raw.members.insert_many(
        {"_id": n, "number": number, "note": note} for n, number in enumerate(same)
    )
    harness.catch_up()
    databases.raw.members.update_one({"_id": 1}, {"$set": {"seen": 1}})
    harness.catch_up()
    harness.assert_equal()
    stored = databases.derived.members_by_number.find_one({"number": same[0], "_id": 1}) or {}
    assert (stored["number"], stored["note"]) == (same[0], note)
    assert encryption.decrypt(stored["number"]) == "900101-1234"
    assert encryption.decrypt(stored["note"]) == "prefers calls"
    (group,) = databases.derived.policies_of_number.find()
    assert (encryption.decrypt(group["_id"]), group["policies"]) == ("900101-1234", 2)
    assert "900101-1234" not in harness.said("trace", "members_by_number", "1", "--json")


def _encrypted(encryption: ClientEncryption[dict[str, object]], text: str, kind: str) -> Binary:
    value = encryption.encrypt(text, f"{ALGORITHM}-{kind}", key_alt_name="personal")
    assert value.subtype == ENCRYPTED
    return value
