"""Rollups: what MongoDB computes over the records of a derived collection, one document per group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributary.derive.records import DerivedCollection, IndexSpec


@dataclass(frozen=True, eq=False)
class Rollup:
    """A derived collection of one document per group of the records in another: `{_id: group, **compute}`.

    `by`: the field whose value is the group, or a list of fields (`_id` is a document then). `compute`: result fields,
    each an accumulator of `$group` whose result does not depend on the order of records. `match`: a query; only
    records that match it are counted. A record in which a field of `by` is missing or null belongs to no group.
    """

    name: str
    over: DerivedCollection
    by: str | Sequence[str]
    compute: Mapping[str, Mapping[str, Any]]
    match: Mapping[str, Any] | None = None
    indexes: Sequence[IndexSpec] = field(default=())
