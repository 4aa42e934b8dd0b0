"""Branches, as they are looked up.

branch_directory: which branch is in this city? A record per branch that is open; its figures are in
branch_book.
"""

from typing import Any

from distributary import DerivedCollection, Record, transform
from distributary.personal import plain_place

directory = DerivedCollection("branch_directory", indexes=[["country", "city"]])


@transform("branches")
def branches(branch: dict[str, Any]) -> Record | None:
    """Give the branch's entry; one that was closed is not in the directory."""
    if branch.get("closed_at") is not None:
        return None
    place = branch.get("address") or {}
    return directory.record(
        branch["_id"],
        {
            "name": branch.get("name"),
            "city": plain_place(place.get("city")),
            "country": place.get("country"),
        },
    )
