"""The shipped transform modules for insurance, each against the raw documents that matter to it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128

from distributary import Publish
from distributary.personal import personal_key, pseudonym
from distributary.plugins import load as loaded
from distributary.sample.insurance import SIZES, data_set, sizes_at
from distributary.testing import NotDerived, Records, derive, load, react
from tests.recompute import Functions, recompute

FOLDER = Path(__file__).parents[2] / "transformers/insurance"
NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)
LATER = datetime(2025, 3, 5, 12, tzinfo=UTC)

REGISTRY = loaded([FOLDER], entry_points=False)

MODULES = {name: load(FOLDER / f"{name}.py") for name in SIZES}
SHIPPED: Functions = {name: getattr(module, name) for name, module in MODULES.items()}
drop_offs = MODULES["web_visits"].drop_offs


@pytest.fixture(autouse=True)
def _key() -> Iterator[None]:
    """Have a key for pseudonyms."""
    with personal_key("a key of the tests"):
        yield


def a_member(**fields: Any) -> dict[str, Any]:
    """Give a member who consents to everything, with some fields changed."""
    return {
        "_id": "C1",
        "name": {"given": "Ada", "family": "Wong"},
        "language": "en",
        "joined_at": NOON,
        "email": " Ada@Example.com",
        "phone": "+1-202-555-0147",
        "birth_date": datetime(1980, 1, 1, tzinfo=UTC),
        "dependants": 2,
        "health": {"smoker": False},
        "consent": {"email": True, "phone": True, "health": True},
        "lifecycle": {"stage": "family", "since": NOON},
        "holds": ["IP1"],
        "offers": ["IP1", "IP2"],
    } | fields


def a_policy(**fields: Any) -> dict[str, Any]:
    """Give a policy in force, with some fields changed."""
    return {
        "_id": "POL1",
        "holder_id": "C1",
        "product_id": "IP1",
        "product_name": "Term Life",
        "line": "life",
        "agent_id": "A1",
        "branch_id": "B1",
        "status": "in force",
        "sum_assured": Decimal128("100000.00"),
        "premium": Decimal128("10.10"),
        "premium_frequency": "monthly",
        "issued_at": NOON,
        "next_due_at": LATER,
    } | fields


def a_change(**fields: Any) -> dict[str, Any]:
    """Give a change of a policy, with some fields changed."""
    change = {"_id": 1, "policy_id": "POL1", "holder_id": "C1", "kind": "nominee", "changed_at": LATER}
    return change | fields


def a_visit(**fields: Any) -> dict[str, Any]:
    """Give a visit of somebody who has signed in, with some fields changed."""
    return {
        "_id": "V1",
        "mcvisid": "0123",
        "post_evar5": "C1",
        "visit_start_time_gmt": NOON,
        "visit_page_num": 3,
        "post_pagename": "quote",
    } | fields


def a_chat(**fields: Any) -> dict[str, Any]:
    """Give a conversation, with some fields changed."""
    return {
        "_id": 1,
        "customer_id": "C1",
        "channel": "web",
        "started_at": LATER,
        "topic": "claim",
        "language": "en",
        "sentiment": "bad",
        "rating": 2,
        "handed_to_agent": True,
    } | fields


def a_proposer(**fields: Any) -> dict[str, Any]:
    """Give a proposal that was begun, of somebody who may be reminded, with some fields changed."""
    return {
        "_id": "PR1",
        "customer_id": "C1",
        "name": {"given": "Ada"},
        "email": "ada@example.com",
        "consent": {"email": True},
        "product_id": "IP2",
        "state": "started",
        "proposed_at": NOON,
    } | fields


WHOLE = {
    "members": a_member(),
    "policies": a_policy(),
    "policy_changes": a_change(),
    "web_visits": a_visit(form={"product_id": "IP2", "state": "abandoned"}),
    "chat_sessions": a_chat(),
    "proposers": a_proposer(),
    "agents": {"_id": "A1", "name": {"given": "Bo"}, "branch_id": "B1"},
    "branches": {"_id": "B1", "name": "North", "address": {"city": "Oslo", "country": "NO"}},
    "products": {"_id": "IP1", "name": "Term Life", "line": "life", "premium_from": 5},
}


def test_modules_are_named_after_their_source_collections() -> None:
    """Users find a transform by the name of the collection that it reads, and every collection has one."""
    assert set(REGISTRY.sources) == set(SHIPPED) == set(WHOLE)
    for name in SHIPPED:
        (transform,) = REGISTRY.by_source[name]
        assert transform.name == name
        assert f"{name}.py:" in transform.place


def test_no_two_derived_collections_have_one_name() -> None:
    """Rollups have names of their own, beside what transforms fill."""
    filled = {name for transform in REGISTRY.transforms.values() for name in transform.collections}
    assert set(REGISTRY.collections) == filled
    assert not filled & set(REGISTRY.rollups)
    assert {"customer", "policies_by_agent", "policies_by_branch", "campaign_audience"} < filled
    assert {"agent_book", "branch_book"} < set(REGISTRY.rollups)


def test_rollups_count_records_that_have_their_groups() -> None:
    """The collection that a rollup is over is filled, with the fields that it groups by."""
    derived = recompute(SHIPPED, sample())
    for rollup in REGISTRY.rollups.values():
        records = derived[rollup.over.name].values()
        assert any(all(fields.get(name) is not None for name in rollup.paths) for fields in records)


def sample(**options: int) -> list[tuple[str, dict[str, Any]]]:
    """Give a small insurer."""
    made = data_set(sizes_at(0.02), **options)
    return [(name, document) for name, documents in made for document in documents]


def test_the_sample_is_the_same_every_time() -> None:
    """It depends on its sizes and its seed."""
    assert sample() == sample()
    assert sample(seed=1) != sample()
    assert {name: len(list(documents)) for name, documents in data_set(SIZES)} == SIZES


def test_the_whole_sample_is_derived_and_no_key_is_contested() -> None:
    """No document would be parked; every policy is in the view of its holder."""
    raw = sample()
    derived = recompute(SHIPPED, raw)
    assert {document["_id"] for name, document in raw if name == "members"} <= set(derived["customer"])
    held = sum(len(each.get("policies", ())) for each in derived["customer"].values())
    assert held == len([name for name, _ in raw if name == "policies"])
    assert {each["kind"].split()[0] for each in derived["customer_timeline"].values()} == {
        "policy",
        "visit",
        "chat",
        "proposal",
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_a_document_without_any_field_is_derived(name: str) -> None:
    """What is missing is left out, it does not park the document."""
    derive(SHIPPED[name], {"_id": 1})


@pytest.mark.parametrize("name", SHIPPED)
def test_any_field_may_be_missing_or_null(name: str) -> None:
    """Whatever a system forgot to fill in, the rest is derived."""
    for missing in WHOLE[name].keys() - {"_id"}:
        derive(SHIPPED[name], {field: value for field, value in WHOLE[name].items() if field != missing})
        derive(SHIPPED[name], WHOLE[name] | {missing: None})


# --- customer -----------------------------------------------------------------------------------------------


def test_one_customer_is_made_of_five_collections() -> None:
    """Sections from the member; items from policies, proposals, visits and chats."""
    found = recompute(SHIPPED, WHOLE.items())["customer"]["C1"]
    sections = {"profile", "contact", "health", "demography", "lifecycle"}
    assert set(found) == sections | {"policies", "proposals", "intents", "chats"}
    assert found["lifecycle"] == {"stage": "family", "since": NOON}
    assert found["contact"] == {"email": "ada@example.com", "phone": "+12025550147"}
    assert found["policies"] == [
        {
            "_id": "POL1",
            "product_id": "IP1",
            "product_name": "Term Life",
            "line": "life",
            "status": "in force",
            "issued_at": NOON,
            "next_due_at": LATER,
            "sum_assured": Decimal128("100000.00"),
            "annual_premium": Decimal128("121.20"),
            "agent_id": "A1",
            "branch_id": "B1",
        }
    ]


def test_health_is_shown_only_with_consent() -> None:
    """The section is gone when consent is withdrawn; only `true` is consent."""
    for consent in ({"health": False}, {"health": "yes"}, {}, None):
        found = derive(SHIPPED["members"], a_member(consent=consent))
        assert "health" not in found["customer"]["C1"]


def test_a_policy_that_changes_its_holder_moves() -> None:
    """It is in the list of the new holder, on whose timeline it is too; its agent keeps it."""
    found = derive(SHIPPED["policies"], a_policy(holder_id="C2"))
    assert list(found["customer"]) == ["C2"]
    assert [each["customer_id"] for each in found["customer_timeline"].values()] == ["C2"]
    assert found["policies_by_agent"]["POL1"]["holder_id"] == "C2"


def test_who_is_no_member_yet_is_a_customer_all_the_same() -> None:
    """A proposal alone makes a document of the view."""
    found = derive(SHIPPED["proposers"], a_proposer(customer_id="C9"))["customer"]["C9"]
    assert list(found) == ["proposals"]
    assert found["proposals"][0]["state"] == "started"


@pytest.mark.parametrize(("state", "is_open"), [("started", True), ("abandoned", True), ("submitted", False)])
def test_an_intent_leaves_when_its_form_is_sent(state: str, is_open: bool) -> None:  # noqa: FBT001 - a table
    """What somebody began and did not end is an item; the visit stays on the timeline."""
    found = derive(SHIPPED["web_visits"], a_visit(form={"product_id": "IP2", "state": state}))
    assert ("customer" in found) is is_open
    assert len(found["customer_timeline"]) == 1


def test_a_form_and_a_payment_of_one_visit_are_two_intents() -> None:
    """Neither hides the other."""
    visit = a_visit(form={"state": "started"}, payment={"state": "abandoned", "policy_id": "POL1"})
    found = derive(SHIPPED["web_visits"], visit)["customer"]["C1"]["intents"]
    assert [each["_id"] for each in found] == [
        {"visit": "V1", "what": "form"},
        {"visit": "V1", "what": "payment"},
    ]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("web_visits", a_visit(post_evar5=None, form={"state": "abandoned"})),
        ("chat_sessions", a_chat(customer_id=None)),
    ],
)
def test_what_is_nobodys_is_nowhere(name: str, document: dict[str, Any]) -> None:
    """Visits and chats are derived once it is known whose they are."""
    assert derive(SHIPPED[name], document) == {}


# --- policies, agents, branches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frequency", "annual"),
    [("monthly", "121.20"), ("quarterly", "40.40"), ("yearly", "10.10"), (None, "10.10"), ("single", "0.00")],
)
def test_premiums_are_made_comparable(frequency: str | None, annual: str) -> None:
    """What is paid in a year, exactly."""
    found = derive(SHIPPED["policies"], a_policy(premium_frequency=frequency))
    assert found["policies_by_branch"]["POL1"]["annual_premium"] == Decimal128(annual)


def test_an_unknown_frequency_parks_the_policy() -> None:
    """A guess would be a wrong total."""
    with pytest.raises(NotDerived, match="KeyError"):
        derive(SHIPPED["policies"], a_policy(premium_frequency="weekly"))


def test_a_premium_that_is_no_number_parks_the_policy() -> None:
    """As does an amount in words."""
    with pytest.raises(NotDerived, match="InvalidOperation"):
        derive(SHIPPED["policies"], a_policy(premium="a lot"))


@pytest.mark.parametrize(
    ("name", "closed"), [("agents", "left_at"), ("branches", "closed_at"), ("products", "withdrawn_at")]
)
def test_what_is_no_more_is_not_listed(name: str, closed: str) -> None:
    """Directories and the catalogue show what there is."""
    assert derive(SHIPPED[name], WHOLE[name])
    assert derive(SHIPPED[name], WHOLE[name] | {closed: NOON}) == {}


# --- timeline -----------------------------------------------------------------------------------------------


def test_documents_of_all_systems_are_on_one_timeline() -> None:
    """Keys name the source: documents with the same `_id` do not collide."""
    same = {
        name: WHOLE[name] | {"_id": 1}
        for name in ("policies", "policy_changes", "web_visits", "chat_sessions")
    }
    found = recompute(SHIPPED, same.items())["customer_timeline"]
    assert {source["source"] for source in found} == set(same)
    assert {each["customer_id"] for each in found.values()} == {"C1"}


def test_a_change_that_was_a_mistake_leaves_the_timeline() -> None:
    """A correction is a new state of the same document."""
    assert len(derive(SHIPPED["policy_changes"], a_change())["customer_timeline"]) == 1
    assert derive(SHIPPED["policy_changes"], a_change(void=True)) == {}


def test_a_chat_tells_what_the_chatbots_profile_is_counted_from() -> None:
    """The rollup finds its fields."""
    (record,) = derive(SHIPPED["chat_sessions"], a_chat())["customer_timeline"].values()
    assert record["kind"] == "chat"
    assert record["detail"] == {
        "channel": "web",
        "topic": "claim",
        "language": "en",
        "rating": 2,
        "handed_to_agent": True,
    }


# --- audience -----------------------------------------------------------------------------------------------


def test_a_member_is_addressed_with_what_they_do_not_hold() -> None:
    """One record per product and channel, with the stage, and with no address that can be read."""
    found = derive(SHIPPED["members"], a_member())["campaign_audience"]
    assert list(found) == [{"member": "C1", "product": "IP2", "channel": name} for name in ("email", "phone")]
    assert [each["address"] for each in found.values()] == ["a***@example.com", "***47"]
    assert {each["stage"] for each in found.values()} == {"family"}
    assert "ada@" not in str(found)
    assert "0147" not in str(found)


@pytest.mark.parametrize(
    ("change", "channels"),
    [
        ({"consent": {"email": True, "phone": False}}, ["email"]),
        ({"consent": {"email": "yes"}}, []),
        ({"consent": None}, []),
        ({"phone": None}, ["email"]),
        ({"email": " ", "phone": None}, []),
        ({"offers": ["IP1"]}, []),
        ({"offers": ["IP2", "IP2"], "phone": None}, ["email"]),
    ],
)
def test_nobody_is_addressed_without_consent(change: dict[str, Any], channels: list[str]) -> None:
    """Consent that is withdrawn, missing or anything but `true` leaves no record; nor does a missing address."""
    found = derive(SHIPPED["members"], a_member(**change)).get("campaign_audience", Records([]))
    assert [each["channel"] for each in found.values()] == channels


@pytest.mark.parametrize(
    ("change", "count"), [({}, 1), ({"state": "accepted"}, 0), ({"consent": {"email": False}}, 0)]
)
def test_a_proposer_is_reminded_while_it_is_of_use(change: dict[str, Any], count: int) -> None:
    """Only of a proposal that was not ended, and only with consent."""
    found = derive(SHIPPED["proposers"], a_proposer(**change))
    assert len(found.get("campaign_audience", ())) == count


def test_a_member_who_proposes_is_in_the_audience_for_both() -> None:
    """The keys of members and proposers do not collide."""
    raw = [("members", a_member(phone=None)), ("proposers", a_proposer())]
    found = recompute(SHIPPED, raw)["campaign_audience"]
    assert sorted(each["stage"] for each in found.values()) == ["family", "prospect"]


def test_an_address_has_one_pseudonym_in_all_spellings() -> None:
    """Members and proposers who share an address can be told to be one person, without it."""
    found = [
        derive(SHIPPED["members"], a_member(email=" ADA@example.COM", phone="00 1 (202) 555 0147")),
        derive(SHIPPED["members"], a_member()),
        derive(SHIPPED["proposers"], a_proposer()),
    ]
    told = [{each["pseudonym"] for each in one["campaign_audience"].values()} for one in found]
    assert told[0] == told[1] == {pseudonym("ada@example.com"), pseudonym("+12025550147")}
    assert told[2] == {pseudonym("ada@example.com")}


# --- drop-offs ----------------------------------------------------------------------------------------------


ABANDONED = {"product_id": "IP2", "step": "payment", "state": "abandoned"}


def test_the_trigger_is_called_for_what_is_abandoned() -> None:
    """The server is asked for changes of visits with an abandoned form or payment, when they come and change."""
    mark = REGISTRY.triggers["drop_offs"]
    assert (mark.source, mark.operations) == ("web_visits", ("insert", "update", "replace"))
    assert mark.match == {
        "$or": [{"fullDocument.form.state": "abandoned"}, {"fullDocument.payment.state": "abandoned"}]
    }
    assert "before" not in mark.reads, "pre-images of every visit would be kept"


def told(operation: str, visit: dict[str, Any], updated: dict[str, Any] | None = None) -> list[Publish]:
    """Give the events of one change, as a worker has them."""
    given = react(drop_offs, operation=operation, document=visit, updated=updated, at=LATER)
    return [each for each in given if isinstance(each, Publish)]


def test_an_abandoned_form_is_published_once() -> None:
    """With the keys that lead to the customer, ordered per customer, and without an address."""
    assert told("update", a_visit(form=ABANDONED), {"form.state": "abandoned"}) == [
        Publish(
            "drop-offs",
            {
                "customer_id": "C1",
                "visitor_id": "0123",
                "visit_id": "V1",
                "what": "form",
                "at": LATER,
                **ABANDONED,
            },
            ordering_key="C1",
        )
    ]


@pytest.mark.parametrize(
    ("operation", "updated", "count"),
    [
        ("insert", None, 1),
        ("replace", None, 1),
        ("update", {"form": ABANDONED}, 1),
        ("update", {"form.state": "abandoned"}, 1),
        ("update", {"visit_page_num": 4}, 0),
        ("update", {"form.step": "details"}, 0),
    ],
)
def test_only_the_change_that_abandons_counts(
    operation: str, updated: dict[str, Any] | None, count: int
) -> None:
    """A visit that was abandoned before is no news when another field changes."""
    assert len(told(operation, a_visit(form=ABANDONED), updated)) == count


def test_a_payment_of_an_unknown_visitor_is_published_per_visitor() -> None:
    """Their events are in order, too."""
    (event,) = told("insert", a_visit(post_evar5=None, payment={"policy_id": "POL1", "state": "abandoned"}))
    assert (event.data["what"], event.ordering_key) == ("payment", "0123")


def test_a_form_and_a_payment_that_are_abandoned_together_are_two_events() -> None:
    """Whoever calls back about one knows of it."""
    events = told("insert", a_visit(form=ABANDONED, payment={"state": "abandoned"}))
    assert [event.data["what"] for event in events] == ["form", "payment"]
