"""An insurer's raw documents, the same every time.

They come from four systems: members and proposers from the CRM, policies and their changes from the policy
administration, visits from Adobe Analytics, conversations from the chatbot. Each document carries the keys of what it
is about, and they hang together. As from real systems, documents come late, out of order and with mistakes that are
corrected, some members are known twice until they are merged, fields are missing, addresses, phone numbers and cities
come in several spellings, visits and chats have no customer until somebody signs in, and changes were entered by
mistake.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from random import Random

from distributary.sample import people
from distributary.sample.dirt import Customers, incomplete, spelled
from distributary.sample.people import FIRST_DAY, SEED, Document, chance, few, money

#: Documents at scale 1, in the order in which they are made.
SIZES = {
    "branches": 25,
    "agents": 150,
    "products": 12,
    "members": 3_000,
    "proposers": 900,
    "policies": 5_500,
    "policy_changes": 3_500,
    "web_visits": 7_500,
    "chat_sessions": 2_600,
}

_YEAR = 365  # days

#: Whose documents are.
CUSTOMERS = Customers(
    "members",
    {
        "proposers": "customer_id",
        "policies": "holder_id",
        "policy_changes": "holder_id",
        "web_visits": "post_evar5",
        "chat_sessions": "customer_id",
    },
)

#: What is not always filled in.
OPTIONAL = {
    "agents": ("phone", "languages"),
    "members": (
        "address",
        "gender",
        "marital_status",
        "occupation",
        "income_band",
        "consent",
        "lifecycle",
        "offers",
    ),
    "proposers": ("email", "consent", "product_name"),
    "policies": ("next_due_at", "premium_frequency", "branch_id"),
    "web_visits": ("post_pagename", "geo_city", "visit_page_num"),
    "chat_sessions": ("ended_at", "topic", "language", "sentiment"),
}

#: Products: their line, and the life-cycle stages that they are made for.
_PRODUCTS = {
    "Term Life": ("life", ("young family", "family")),
    "Whole Life": ("life", ("family", "pre-retirement")),
    "Hospital Cash": ("health", ("single", "young family", "family")),
    "Critical Illness": ("health", ("family", "pre-retirement")),
    "Motor": ("motor", ("single", "young family", "family", "pre-retirement", "retired")),
    "Annuity": ("pension", ("pre-retirement", "retired")),
}
STAGES = ("single", "young family", "family", "pre-retirement", "retired")
_STATUSES = ("in force", "in force", "in force", "lapsed", "matured", "cancelled")
_CHANGES = ("address", "nominee", "premium", "lapsed", "revived")
_TOPICS = ("claim", "premium due", "new policy", "nominee", "complaint")


def sizes_at(scale: float) -> dict[str, int]:
    """Give the number of documents by collection; at least six of each, as many as there are products."""
    return {name: max(len(_PRODUCTS), round(size * scale)) for name, size in SIZES.items()}


def data_set(sizes: Mapping[str, int], seed: int = SEED) -> Iterator[tuple[str, Iterator[Document]]]:
    """Give the collections with their documents as they are in the end, made while they are read."""
    makers = {
        "branches": branch,
        "agents": agent,
        "products": product,
        "members": member,
        "proposers": proposer,
        "policies": policy,
        "policy_changes": policy_change,
        "web_visits": web_visit,
        "chat_sessions": chat_session,
    }
    for name, make in makers.items():
        yield name, (_entered(chance(seed, name, n), name, make, n, sizes) for n in range(1, sizes[name] + 1))


def _entered(
    rng: Random,
    name: str,
    make: Callable[[Random, int, Mapping[str, int]], Document],
    number: int,
    sizes: Mapping[str, int],
) -> Document:
    """Make a document as people and systems fill it in: in several spellings, and not all of it."""
    return incomplete(rng, spelled(rng, make(rng, number, sizes)), OPTIONAL.get(name, ()))


def branch(rng: Random, number: int, _sizes: Mapping[str, int]) -> Document:
    """Make a branch."""
    where = people.place(rng)
    return {"_id": f"B{number:03}", "name": f"{where['city']} {number}", "address": where}


def agent(rng: Random, number: int, sizes: Mapping[str, int]) -> Document:
    """Make an agent; one in eight has left."""
    name = people.name(rng)
    made = {
        "_id": f"A{number:04}",
        "name": name,
        "branch_id": f"B{_one_of(rng, sizes['branches']):03}",
        "email": people.email(name, number),
        "phone": people.phone(rng),
        "languages": ["en"],
        "licensed_for": ["life", "health"],
    }
    return made if rng.randrange(8) else made | {"left_at": _day(rng)}


def product(rng: Random, number: int, _sizes: Mapping[str, int]) -> Document:
    """Make a product; when there are more than lines of business, they come in editions."""
    name, line, stages = _product(number)
    return {
        "_id": f"IP{number:03}",
        "name": name,
        "line": line,
        "stages": list(stages),
        "entry_age": {"from": 18, "to": 65},
        "premium_from": money(rng.randrange(5, 60)),
    }


def member(rng: Random, number: int, sizes: Mapping[str, int]) -> Document:
    """Make a member; one in four has no phone, and one in five has not told about their health."""
    name = people.name(rng)
    made = {
        "_id": _customer(number),
        "name": name,
        "language": rng.choice(("en", "de", "es")),
        "joined_at": _day(rng),
        "email": people.email(name, number),
        "phone": people.phone(rng) if rng.randrange(4) else None,
        "address": people.address(rng),
        "birth_date": FIRST_DAY - timedelta(days=rng.randrange(18 * _YEAR, 80 * _YEAR)),
        "gender": rng.choice(("f", "m", "x")),
        "marital_status": rng.choice(("single", "married", "widowed")),
        "dependants": few(rng, 4),
        "occupation": rng.choice(("nurse", "teacher", "driver", "engineer")),
        "income_band": rng.choice(("low", "middle", "high")),
        "consent": {name: rng.randrange(2) == 1 for name in ("email", "phone", "health")},
        "lifecycle": {"stage": rng.choice(STAGES), "since": _day(rng)},
        "holds": [_a_product(rng, sizes)],
        "offers": [_a_product(rng, sizes), _a_product(rng, sizes)],
    }
    return made | {"health": _health(rng)} if rng.randrange(5) else made


def proposer(rng: Random, number: int, sizes: Mapping[str, int]) -> Document:
    """Make a proposer; one in three is a member already, the others are not yet."""
    key = _one_of(rng, sizes["members"]) if rng.randrange(3) == 0 else sizes["members"] + number
    name = people.name(rng)
    return {
        "_id": f"PR{number:05}",
        "customer_id": _customer(key),
        "name": name,
        "email": people.email(name, number),
        "consent": {"email": rng.randrange(2) == 1},
        **_named_product(rng, sizes),
        "state": rng.choice(("started", "waiting for documents", "accepted", "declined")),
        "agent_id": f"A{_one_of(rng, sizes['agents']):04}",
        "proposed_at": _day(rng),
    }


def policy(rng: Random, number: int, sizes: Mapping[str, int]) -> Document:
    """Make a policy; some members hold several."""
    issued = _day(rng)
    return {
        "_id": _policy(number),
        "holder_id": _holder(number, sizes),
        **_named_product(rng, sizes),
        "agent_id": f"A{_one_of(rng, sizes['agents']):04}",
        "branch_id": f"B{_one_of(rng, sizes['branches']):03}",
        "status": rng.choice(_STATUSES),
        "sum_assured": money(1_000 * rng.randrange(5, 500)),
        "premium": money(rng.randrange(5, 300) + 0.5),
        "premium_frequency": rng.choice(("monthly", "quarterly", "yearly", "single")),
        "issued_at": issued,
        "next_due_at": issued + timedelta(days=30),
        "matures_at": issued + timedelta(days=10 * _YEAR),
    }


def policy_change(rng: Random, number: int, sizes: Mapping[str, int]) -> Document:
    """Make a change of a policy; one in twenty was entered by mistake."""
    about = _one_of(rng, sizes["policies"])
    made = {
        "_id": number,
        "policy_id": _policy(about),
        "holder_id": _holder(about, sizes),
        "kind": rng.choice(_CHANGES),
        "changed_at": _day(rng),
        "by": f"A{_one_of(rng, sizes['agents']):04}",
    }
    return made if rng.randrange(20) else made | {"void": True}


def web_visit(rng: Random, number: int, sizes: Mapping[str, int]) -> Document:
    """Make a visit; one in three did not sign in, and in some a form or a payment was begun."""
    started = _day(rng)
    made = {
        "_id": f"V{number:07}",
        "mcvisid": f"{rng.getrandbits(126):038}",
        "visit_num": 1 + few(rng, 20),
        "visit_start_time_gmt": started,
        "last_hit_time_gmt": started + timedelta(seconds=rng.randrange(900)),
        "visit_page_num": 1 + few(rng, 12),
        "post_pagename": rng.choice(("home", "quote", "claims", "pay")),
        "geo_city": people.place(rng)["city"],
    }
    whose = {"post_evar5": _customer(_one_of(rng, sizes["members"]))} if rng.randrange(3) else {}
    campaign = {"post_campaign": "autumn"} if rng.randrange(4) == 0 else {}
    return made | whose | campaign | _begun(rng, sizes)


def chat_session(rng: Random, number: int, sizes: Mapping[str, int]) -> Document:
    """Make a conversation; one in five is with somebody unknown, and half of them are not rated."""
    started = _day(rng)
    made = {
        "_id": number,
        "channel": rng.choice(("web", "whatsapp")),
        "language": rng.choice(("en", "de", "es")),
        "started_at": started,
        "ended_at": started + timedelta(minutes=few(rng, 30)),
        "topic": rng.choice(_TOPICS),
        "sentiment": rng.choice(("good", "neutral", "bad")),
        "messages": 2 + few(rng, 30),
        "handed_to_agent": rng.randrange(4) == 0,
    }
    whose = {"customer_id": _customer(_one_of(rng, sizes["members"]))} if rng.randrange(5) else {}
    return made | whose | ({"rating": rng.randrange(1, 6)} if rng.randrange(2) else {})


def _begun(rng: Random, sizes: Mapping[str, int]) -> Document:
    kind = rng.randrange(10)
    if kind == 0:
        state = rng.choice(("started", "abandoned", "submitted"))
        return {"form": {"product_id": _a_product(rng, sizes), "step": "details", "state": state}}
    if kind == 1:
        state = rng.choice(("started", "abandoned", "paid"))
        due = {"policy_id": _policy(_one_of(rng, sizes["policies"])), "amount": money(rng.randrange(5, 300))}
        return {"payment": {**due, "state": state}}
    return {}


def _health(rng: Random) -> Document:
    return {
        "smoker": rng.randrange(4) == 0,
        "height_cm": rng.randrange(150, 200),
        "weight_kg": rng.randrange(50, 120),
        "conditions": rng.sample(("asthma", "diabetes", "hypertension"), few(rng, 3)),
    }


def _named_product(rng: Random, sizes: Mapping[str, int]) -> Document:
    number = _one_of(rng, sizes["products"])
    name, line, _ = _product(number)
    return {"product_id": f"IP{number:03}", "product_name": name, "line": line}


def _product(number: int) -> tuple[str, str, tuple[str, ...]]:
    edition, index = divmod(number - 1, len(_PRODUCTS))
    name, (line, stages) = list(_PRODUCTS.items())[index]
    return f"{name} {edition + 1}" if edition else name, line, stages


def _a_product(rng: Random, sizes: Mapping[str, int]) -> str:
    return f"IP{_one_of(rng, sizes['products']):03}"


def _holder(policy_number: int, sizes: Mapping[str, int]) -> str:
    """Tell who holds a policy, without making it."""
    return _customer(1 + few(chance(SEED, "holder", policy_number), sizes["members"]))


def _customer(number: int) -> str:
    return f"C{number:06}"


def _policy(number: int) -> str:
    return f"POL{number:06}"


def _one_of(rng: Random, size: int) -> int:
    return 1 + rng.randrange(size)


def _day(rng: Random) -> datetime:
    return FIRST_DAY + timedelta(minutes=rng.randrange(_YEAR * 24 * 60))
