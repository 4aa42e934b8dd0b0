"""Agents, as they are looked up.

agent_directory: who works in this branch, and whose number is this? A record per agent that is active; what an
agent has sold is in policies_by_agent and agent_book, under the same key.
"""

from typing import Any

from distributary import DerivedCollection, Record, transform
from distributary.personal import plain_email, plain_phone

directory = DerivedCollection("agent_directory", indexes=[["branch_id", "name.family"], "phone"])


@transform("agents")
def agents(agent: dict[str, Any]) -> Record | None:
    """Give the agent's entry; who has left is not in the directory."""
    if agent.get("left_at") is not None:
        return None
    shown = {name: agent.get(name) for name in ("name", "branch_id", "languages", "licensed_for")}
    reached = {"email": plain_email(agent.get("email")), "phone": plain_phone(agent.get("phone"))}
    return directory.record(agent["_id"], {**shown, **reached})
