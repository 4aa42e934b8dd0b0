"""What a transform module imports, and nothing else."""

from distributary.derive.records import DerivedCollection, Item, Record, Section
from distributary.derive.rollup import Rollup
from distributary.derive.transform import transform
from distributary.derive.trigger import Publish, trigger

__all__ = ["DerivedCollection", "Item", "Publish", "Record", "Rollup", "Section", "transform", "trigger"]
