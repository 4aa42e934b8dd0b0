"""Changes of policies, as the policy administration writes them down.

customer_timeline: records, one per change. They are what happened and not how it stands: that is in the policy
itself, so that a change is no item of the customer. One that was entered by mistake is marked `void` and
leaves.
"""

from collections.abc import Iterator
from typing import Any

from distributary import Record, transform

from .derived import moment


@transform("policy_changes")
def policy_changes(change: dict[str, Any]) -> Iterator[Record]:
    """Give the change on the timeline of who held the policy then."""
    if change.get("void"):
        return
    detail = {name: change[name] for name in ("before", "after", "by") if name in change}
    kind = f"policy {change.get('kind') or 'changed'}"
    about = {"policy_id": change.get("policy_id"), "detail": detail}
    yield from moment("policy_changes", change, "holder_id", "changed_at", kind=kind, **about)
