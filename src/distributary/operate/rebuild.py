"""Building derived collections anew: which job that takes, and why it cannot be."""

from collections.abc import Iterable, Mapping

from distributary.derive.groups import groups
from distributary.derive.registry import Registry
from distributary.errors import Failed
from distributary.state import Checkpoint, Job, JobKind


def rebuild(
    registry: Registry, names: Iterable[str], *, keep: bool = False, undo: bool = False, publish: bool = False
) -> Job:
    """Give the job that builds anew all collections of these transforms, or brings back what was kept of them.

    With `publish` it tells of what differs behind that. Raises `Failed` when one of the collections is filled by
    another transform, too.
    """
    wanted = tuple(sorted(names))
    together = sorted({name for group in groups(_collections(registry), wanted) for name in group})
    others = [name for name in together if name not in wanted]
    if others:
        shared = sorted(
            collection
            for name in wanted
            for collection in registry.transforms[name].collections
            if registry.owners_of(collection) - set(wanted)
        )
        raise Failed(
            f"{_listed(shared)} {'is' if len(shared) == 1 else 'are'} also filled by {', '.join(others)}: a derived"
            " collection is rebuilt for all of its transforms.",
            f"Run `distributary rebuild {' '.join(together)}`.",
        )
    kind = JobKind.UNDO if undo else JobKind.REBUILD
    source = registry.transforms[wanted[0]].source
    return Job(None, kind, source, wanted, "asked for", keep=keep, publish=publish)


def drop(checkpoint: Checkpoint, named: Iterable[str]) -> Job | None:
    """Give the job that drops the collections that are not `named` any more; None when there are none."""
    left = checkpoint.left_behind(named)
    return Job(None, JobKind.DROP, "", (), "asked for", keys=left, total=len(left)) if left else None


def _collections(registry: Registry) -> Mapping[str, list[str]]:
    return {name: sorted(each.collections) for name, each in registry.transforms.items()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
