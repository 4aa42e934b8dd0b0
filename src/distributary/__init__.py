"""What a transform module imports, and nothing else."""

from distributary.derive.records import DerivedCollection, Record
from distributary.derive.transform import transform

__all__ = ["DerivedCollection", "Record", "transform"]
