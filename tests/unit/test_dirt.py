"""What makes the sample data like those of real systems, and that it comes to the same documents in the end."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from distributary.errors import EnvironmentFault
from distributary.personal import plain_email, plain_phone
from distributary.sample import insurance, people, retail
from distributary.sample.dirt import Customers, Write, arrival, city, email, incomplete, phone, spelled
from distributary.testing import load
from tests.unit.test_transformers import FOLDER

Document = dict[str, Any]

DOMAINS = [retail, insurance]

#: Enough of everything for the rare to happen, and made in a second.
SCALE = 0.05


def data_of(domain: Any) -> dict[str, list[Document]]:
    """Give a domain's documents."""
    return {name: list(documents) for name, documents in domain.data_set(domain.sizes_at(SCALE))}


def arriving(domain: Any, seed: int = 1) -> list[Write]:
    """Give the writes by which a domain's documents arrive."""
    return list(arrival(data_of(domain).items(), domain.CUSTOMERS, seed))


def done(writes: Iterable[Write]) -> dict[str, dict[Any, Document]]:
    """Do writes in their order; each one has to find what it changes, and an insert must not."""
    found: dict[str, dict[Any, Document]] = {}
    for collection, operation, key, document in writes:
        documents = found.setdefault(collection, {})
        assert (key in documents) is (operation != "insert")
        if operation == "delete":
            del documents[key]
        else:
            documents[key] = documents[key] | document if operation == "update" else document
            assert documents[key]["_id"] == key
    return found


# --- how documents are written ------------------------------------------------------------------------------


def drawn(times: int = 200) -> Iterator[Random]:
    """Give chances."""
    return (people.chance(1, number) for number in range(times))


def test_spellings_of_an_address_and_a_number_are_many_and_mean_one_thing() -> None:
    """What is compared is the same, however it was written, also when what is written is written again."""
    emails = {email(rng, "ada.wong1@example.com") for rng in drawn()}
    assert len(emails) == 4
    assert {plain_email(each) for each in emails} == {"ada.wong1@example.com"}
    phones = {phone(rng, "+1-202-555-0147") for rng in drawn()}
    again = {phone(rng, each) for rng in drawn(20) for each in phones}
    assert len(phones) == 4
    assert {plain_phone(each) for each in phones | again} == {"+12025550147"}


def test_spellings_of_a_city_come_to_one_in_the_shipped_modules() -> None:
    """Other than in letters and white space they do not differ."""
    (one_spelling,) = [load(FOLDER / "_values.py").one_spelling]
    cities = {city(rng, "Bad Bramstedt") for rng in drawn()}
    assert len(cities) == 4
    assert {one_spelling(each) for each in cities} == {"Bad Bramstedt"}
    assert one_spelling("Alphen a/d Rijn") == "Alphen a/d Rijn"
    assert one_spelling(None) is None


def test_what_is_within_a_document_is_written_in_several_ways_too() -> None:
    """Nothing else changes, and the document that was given stays as it is."""
    document = {"_id": 1, "name": "x", "email": None, "address": {"city": "Husum", "street": "Y 1"}}
    made = [spelled(rng, document) for rng in drawn()]
    assert {each["address"]["city"] for each in made} == {"Husum", "HUSUM", "husum", "Husum  "}
    assert all(each | {"address": document["address"]} == document for each in made)
    assert document["address"] == {"city": "Husum", "street": "Y 1"}


def test_only_optional_fields_are_missing_and_documents_are_never_null() -> None:
    """A path into a document can be set whether it is there or not."""
    document = {"_id": 1, "a": 1, "b": {"c": 1}, "d": 1}
    made = [incomplete(rng, document, ("a", "b", "z")) for rng in drawn(2000)]
    assert Counter(each.get("a", "missing") for each in made).keys() == {1, None, "missing"}
    assert Counter("b" in each for each in made).keys() == {True, False}
    assert all(each.get("b", document["b"]) == document["b"] and each["d"] == 1 for each in made)


def test_without_faker_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra that the demo wants brings it."""
    monkeypatch.setitem(sys.modules, "faker", None)
    with pytest.raises(EnvironmentFault, match=r"distributary\[embedded\]"):
        people.pools.__wrapped__()


def test_names_have_addresses_in_plain_letters() -> None:
    """Whatever marks a name has, and no name is left without letters."""
    assert people.email({"given": "Łukasz", "family": "d'Été-Weiß"}, 7) == "lukasz.deteweiss7@example.com"
    addresses = [people.email(people.name(rng), 1) for rng in drawn(1000)]
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+1@example\.com", each) for each in addresses)


# --- how they arrive ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_end_of_an_arrival_is_the_data_set(domain: Any) -> None:
    """Whatever came late, was corrected or merged, the same documents are there in the end, and no others."""
    end = done(arriving(domain))
    assert end == {
        name: {each["_id"]: each for each in documents} for name, documents in data_of(domain).items()
    }


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_come_out_of_order_corrected_and_merged(domain: Any) -> None:
    """There is some of everything, the same every time; another seed gives another arrival."""
    writes = arriving(domain)
    assert writes == arriving(domain)
    assert writes != arriving(domain, seed=2)
    assert {write.operation for write in writes} == {"insert", "replace", "update", "delete"}
    keys = [write.key for write in writes if (write.collection, write.operation) == ("orders", "insert")]
    keys = keys or [each.key for each in writes if each[:2] == ("policies", "insert")]
    late = [later < earlier for earlier, later in pairwise(keys)].count(True)
    assert 0 < late < len(keys) / 5


@pytest.mark.parametrize("domain", DOMAINS)
def test_customers_who_are_known_twice_are_merged(domain: Any) -> None:
    """Each second document is deleted once what named it names the first one."""
    writes, customers = arriving(domain), domain.CUSTOMERS.collection
    gone = {write.key for write in writes if write.operation == "delete"}
    assert gone
    assert {write.collection for write in writes if write.operation == "delete"} == {customers}
    moved = [write for write in writes if write.operation == "update"]
    assert moved
    for collection, _, key, change in moved:
        ((field, stays),) = change.items()
        before = next(each.document for each in writes if (each.collection, each.key) == (collection, key))
        assert before[field] == f"{stays}-2"
        assert before[field] in gone


def test_nothing_is_lost_when_everything_is_late() -> None:
    """What waits at the end of its collection comes before the next one."""
    few: list[tuple[str, list[Document]]] = [("a", [{"_id": 1, "x": 1}]), ("b", [{"_id": 2, "x": 1}])]
    for seed in range(100):
        names = [write.collection for write in arrival(few, Customers("c", {}), seed)]
        assert names == sorted(names)
        assert set(names) == {"a", "b"}
