"""Policies, for the customer, for the agent and for the branch.

customer: an item in the list `policies`: a customer has a few, and sees them together. A policy that changes
its holder leaves the one list and joins the other.
policies_by_agent, policies_by_branch: records, since an agent has hundreds and a branch thousands, which are
read page by page. The policy carries the keys of its holder, agent, branch and product: a transform sees no
other document.
agent_book, branch_book: what an agent and a branch have in force, as rollups over these records.
customer_timeline: when the policy was issued.
"""

from collections.abc import Iterator
from typing import Any

from distributary import DerivedCollection, Item, Record, Rollup, transform

from ._values import amount, annual_premium, known
from .derived import customer, moment

Document = dict[str, Any]

by_agent = DerivedCollection("policies_by_agent", indexes=[["agent_id", "next_due_at"]])
by_branch = DerivedCollection("policies_by_branch", indexes=[["branch_id", "line", "status"]])

_IN_FORCE: dict[str, dict[str, Any]] = {
    "policies": {"$sum": 1},
    "annual_premium": {"$sum": "$annual_premium"},
    "sum_assured": {"$sum": "$sum_assured"},
}

agent_book = Rollup(
    "agent_book",
    over=by_agent,
    by="agent_id",
    match={"status": "in force"},
    compute={**_IN_FORCE, "next_due_at": {"$min": "$next_due_at"}},
)

branch_book = Rollup(
    "branch_book",
    over=by_branch,
    by=["branch_id", "line"],
    match={"status": "in force"},
    compute=_IN_FORCE,
)


@transform("policies")
def policies(policy: Document) -> Iterator[Record | Item]:
    """Give the policy to whom it concerns; one without a holder, agent or branch is not in their lists."""
    key, shown = policy["_id"], in_short(policy)
    whose = {name: policy.get(name) for name in ("holder_id", "agent_id", "branch_id")}
    if whose["holder_id"] is not None:
        concerned = {name: whose[name] for name in ("agent_id", "branch_id")}
        yield customer.item(whose["holder_id"], "policies", key, known({**shown, **concerned}))
    if whose["agent_id"] is not None:
        yield by_agent.record(key, {**whose, **shown})
    if whose["branch_id"] is not None:
        yield by_branch.record(key, {**whose, **shown})
    about = {
        "policy_id": key,
        "product_id": shown.get("product_id"),
        "detail": {"status": shown.get("status")},
    }
    yield from moment("policies", policy, "holder_id", "issued_at", kind="policy issued", **about)


def in_short(policy: Document) -> Document:
    """Give what is shown of a policy: what it is, how it stands, what it costs and what comes next."""
    names = ("product_id", "product_name", "line", "status", "issued_at", "matures_at", "next_due_at")
    money = {"sum_assured": amount(policy.get("sum_assured")), "annual_premium": annual_premium(policy)}
    return known({name: policy.get(name) for name in names} | money)
