"""The insurer's raw documents in a database, and what customers and staff do with them."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any

from bson import Timestamp
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.sample import insurance, writing
from distributary.sample.insurance import (
    CUSTOMERS,
    SIZES,
    chat_session,
    data_set,
    policy_change,
    web_visit,
)
from distributary.sample.people import FIRST_DAY, SEED, Document, chance
from distributary.sample.writing import Acting, Chapter, keep_writing, tell

sizes_at = insurance.sizes_at

#: The day after the last one of the documents that are loaded.
TODAY = FIRST_DAY + timedelta(days=366)

#: A member of whom there is much to see: health data and consent to all of it.
_CONSENTS: Document = {"consent.email": True, "consent.health": True, "health": {"$exists": True}}


def somebody(database: Database[Document]) -> str:
    """Give the key of a member to tell a story about: one who consents to all, and has a policy if there is one."""
    consenting = [each["_id"] for each in database["members"].find(_CONSENTS, {"_id": 1}).sort("_id", -1)]
    anybody = database["members"].find_one({}, sort=[("_id", 1)])
    assert anybody, "load the data set first"
    holders = database["policies"].find({"holder_id": {"$in": consenting[:1000]}}).sort("_id", -1)
    return str(next((each["holder_id"] for each in holders), next(iter(consenting), anybody["_id"])))


def story(database: Database[Document], key: str) -> Iterator[tuple[str, Timestamp]]:
    """Let a member have a day, one write after the other; give what each was, and its cluster time.

    They take over a policy, withdraw consent, begin a form and ask the chatbot about it, and abandon the form.
    """
    return tell(database, lambda session: _chapters(database, session, key))


def _chapters(database: Database[Document], session: ClientSession, key: str) -> Iterator[Chapter]:
    rng, members, visits = chance(SEED, "story", key), database["members"], database["web_visits"]
    theirs = database["policies"].find_one(
        {"holder_id": {"$ne": key}, "status": "in force"}, sort=[("_id", -1)], session=session
    )
    visit = _begun(rng, key, _next(database, session, "web_visits"))
    chat = _about(rng, key, _next(database, session, "chat_sessions"))
    if theirs:
        change = {"$set": {"holder_id": key}}
        yield (
            f"takes over policy {theirs['_id']} from {theirs['holder_id']}",
            lambda: database["policies"].update_one({"_id": theirs["_id"]}, change, session=session),
        )
    withdrawn = {"$set": {"consent.email": False, "consent.health": False}}
    yield (
        "withdraws consent to e-mail and to health data",
        lambda: members.update_one({"_id": key}, withdrawn, session=session),
    )
    yield (
        f"begins a form for {visit['form']['product_id']}",
        lambda: visits.insert_one(visit, session=session),
    )
    yield "asks the chatbot", lambda: database["chat_sessions"].insert_one(chat, session=session)
    abandoned = {"$set": {"form.state": "abandoned", "form.step": "payment"}}
    yield "abandons the form", lambda: visits.update_one({"_id": visit["_id"]}, abandoned, session=session)


def _begun(rng: Random, key: str, number: int) -> Document:
    """Give a visit of today in which a form was begun."""
    made = web_visit(rng, number, SIZES) | {"post_evar5": key, "post_pagename": "quote"}
    made.pop("payment", None)
    form = {"product_id": "IP001", "step": "details", "state": "started"}
    return made | _today(number) | {"form": form}


def _about(rng: Random, key: str, number: int) -> Document:
    """Give a conversation of today."""
    started = TODAY + timedelta(minutes=number)
    about = {"customer_id": key, "topic": "new policy", "started_at": started}
    return chat_session(rng, number, SIZES) | about | {"ended_at": started + timedelta(minutes=5)}


def _today(number: int) -> Document:
    started = TODAY + timedelta(minutes=number)
    return {"visit_start_time_gmt": started, "last_hit_time_gmt": started + timedelta(minutes=3)}


def _next(database: Database[Document], session: ClientSession, collection: str) -> int:
    """Give the number behind the last one of a collection."""
    last = database[collection].find_one({}, sort=[("_id", -1)], session=session)
    return 1 + _number(last["_id"]) if last else 1


def _number(key: Any) -> int:
    return key if isinstance(key, int) else int("".join(filter(str.isdecimal, key)))


class Office(Acting):
    """What customers and staff do to the raw collections; every act is one write."""

    def __init__(self, database: Database[Document], session: ClientSession, rng: Random) -> None:
        super().__init__(database, session, rng, SIZES)
        self._sizes = {name: max(len(keys), 1) for name, keys in self.keys.items()}
        self._ever = {name: max(map(_number, keys), default=0) for name, keys in self.keys.items()}

    def habits(self) -> dict[Callable[[], str], int]:
        """Give what happens at an insurer, and how often in a hundred times."""
        return {
            self.visit: 18,
            self.go_on: 14,
            self.sign_in: 6,
            self.forget_visit: 3,
            self.chat: 10,
            self.rate_chat: 5,
            self.change_policy: 8,
            self.void_change: 3,
            self.change_holder: 5,
            self.change_status: 8,
            self.pay_premium: 6,
            self.consent: 4,
            self.correct_member: 4,
            self.reach_stage: 2,
            self.merge_members: 4,
        }

    def visit(self) -> str:
        """Insert a visit; in some a form or a payment was begun."""
        return self.insert(
            "web_visits", self._made("web_visits", web_visit) | _today(self._ever["web_visits"])
        )

    def go_on(self) -> str:
        """Take what was begun in a recent visit to its end, or abandon it."""
        key = self.recent("web_visits")
        found = self.read("web_visits", key)
        ends = {"form": ("abandoned", "submitted"), "payment": ("abandoned", "paid")}
        begun = next((what for what in ends if what in found), None)
        if begun:
            return self.update("web_visits", key, {"$set": {f"{begun}.state": self.rng.choice(ends[begun])}})
        return self.update("web_visits", key, {"$set": {"visit_page_num": self.rng.randrange(1, 20)}})

    def sign_in(self) -> str:
        """Tell whose a recent visit was."""
        change = {"$set": {"post_evar5": self.any_of("members")}}
        return self.update("web_visits", self.recent("web_visits"), change)

    def forget_visit(self) -> str:
        """Delete a visit, as when its time of retention is over."""
        return self.delete("web_visits")

    def chat(self) -> str:
        """Insert a conversation."""
        return self.insert(
            "chat_sessions", self._made("chat_sessions", chat_session) | self._at("started_at")
        )

    def rate_chat(self) -> str:
        """Rate a recent conversation."""
        change = {"$set": {"rating": self.rng.randrange(1, 6)}}
        return self.update("chat_sessions", self.recent("chat_sessions"), change)

    def change_policy(self) -> str:
        """Insert a change of a policy."""
        made = self._made("policy_changes", policy_change) | self._at("changed_at")
        return self.insert("policy_changes", made)

    def void_change(self) -> str:
        """Mark a change as entered by mistake, or take that back."""
        change = {"$set": {"void": bool(self.rng.randrange(2))}}
        return self.update("policy_changes", self.recent("policy_changes"), change)

    def change_holder(self) -> str:
        """Move a policy to another holder."""
        return self.update(
            "policies", self.any_of("policies"), {"$set": {"holder_id": self.any_of("members")}}
        )

    def change_status(self) -> str:
        """Let a policy lapse, or revive it."""
        change = {"$set": {"status": self.rng.choice(("in force", "lapsed", "cancelled"))}}
        return self.update("policies", self.any_of("policies"), change)

    def pay_premium(self) -> str:
        """Note when the next premium is due."""
        due = TODAY + timedelta(days=self.rng.randrange(1, 365))
        return self.update("policies", self.any_of("policies"), {"$set": {"next_due_at": due}})

    def consent(self) -> str:
        """Give or withdraw consent."""
        what = self.rng.choice(("email", "phone", "health"))
        change = {"$set": {f"consent.{what}": bool(self.rng.randrange(2))}}
        return self.update("members", self.any_of("members"), change)

    def correct_member(self) -> str:
        """Replace a member by what was filled into a form."""
        key = self.any_of("members")
        return self.replace("members", insurance.member(self.rng, _number(key), self._sizes) | {"_id": key})

    def reach_stage(self) -> str:
        """Let a member reach another stage of life."""
        change = {"$set": {"lifecycle.stage": self.rng.choice(insurance.STAGES)}}
        return self.update("members", self.any_of("members"), change)

    def merge_members(self) -> str:
        """Go on making one of two members, whom two systems had each for their own."""
        return self.merge(CUSTOMERS)

    def _made(self, collection: str, make: Callable[..., Document]) -> Document:
        self._ever[collection] += 1
        return make(self.rng, self._ever[collection], self._sizes)

    def _at(self, field: str) -> dict[str, datetime]:
        return {field: TODAY + timedelta(minutes=self._ever["web_visits"])}


#: Inserts the data set, see `writing.load`.
load = partial(writing.load, sizes_at, data_set, CUSTOMERS)

#: Keeps the insurer's systems alive, see `keep_writing`.
live = partial(keep_writing, Office)
