"""Numbers of things, for people."""


def counted(count: int, noun: str) -> str:
    """Give a number with what it counts, in the plural with an s where it is not one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
