"""Which transforms and collections belong together."""

from collections.abc import Iterable, Mapping, Sequence


def groups(transforms: Mapping[str, Sequence[str]], wanted: Iterable[str]) -> list[tuple[str, ...]]:
    """Give the transforms that have to be rebuilt together with the wanted ones: who shares a collection with them.

    `transforms` are all that are plugged in, with the collections that each names.
    """
    left, found = sorted(set(wanted)), []
    while left:
        group, collections = {left[0]}, set(transforms[left[0]])
        while more := {
            name for name, some in transforms.items() if name not in group and collections & set(some)
        }:
            group |= more
            collections = {each for name in group for each in transforms[name]}
        found.append(tuple(sorted(group)))
        left = [name for name in left if name not in group]
    return found
