"""Naming what takes long: a transform that hangs holds up everything behind it."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import unwrap
from threading import get_ident
from time import monotonic
from traceback import walk_stack
from types import CodeType, FrameType
from typing import NamedTuple

from distributary.derive.collapse import Latest
from distributary.derive.transform import Transform
from distributary.log import get_logger
from distributary.quoting import quoting
from distributary.state import SlowTransform

log = get_logger()


class _Begun(NamedTuple):
    document: Latest
    since: float


class Slow:
    """Knows which document each thread derives, and tells of one that takes longer than `seconds`.

    `tell` is called now and then by a thread that goes on while another hangs. What holds the interpreter
    itself for that time (a regular expression that backtracks without end) holds that thread up too.
    """

    def __init__(
        self,
        seconds: float,
        transforms: Mapping[str, Sequence[Transform]],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._seconds = seconds
        self._transforms = transforms
        self._clock = clock
        self._begun: dict[int, _Begun] = {}
        self._told: dict[int, _Begun] = {}

    def over(self, documents: Iterable[Latest]) -> Iterator[Latest]:
        """Give the documents one by one; each is at work in this thread until the next one is asked for."""
        thread = get_ident()
        try:
            for document in documents:
                self._begun[thread] = _Begun(document, self._clock())
                yield document
                del self._begun[thread], document  # before the next one is decoded
        finally:
            self._begun.pop(thread, None)

    def tell(self) -> list[SlowTransform]:
        """Give the documents that take too long, and write to the log about each of them once."""
        slow = []
        for thread, begun in list(self._begun.items()):
            seconds = self._clock() - begun.since
            if seconds >= self._seconds:
                frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented for finding out what hangs
                slow.append(self._slow(begun.document, seconds, frame))
                if self._told.get(thread) is not begun:
                    self._told[thread] = begun
                    place = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
                    key = quoting("", slow[-1].key)
                    log.warning("a transform takes long", **slow[-1]._replace(key=key)._asdict(), place=place)
        return slow

    def _slow(self, document: Latest, seconds: float, frame: FrameType | None) -> SlowTransform:
        name = self._name(document.collection, frame)
        return SlowTransform(name, document.collection, f"{document.key!r:.80}", round(seconds, 1))

    def _name(self, source: str, frame: FrameType | None) -> str:
        """Give the transform whose code the thread is in; all of the source's when none can be seen there."""
        transforms = self._transforms.get(source, ())
        names = {code: each.name for each in transforms if (code := _code(each))}
        running = (each.f_code for each, _ in walk_stack(frame)) if frame else iter(())
        return next((names[code] for code in running if code in names), ", ".join(names.values()))


def _code(transform: Transform) -> CodeType | None:
    return getattr(unwrap(transform.function), "__code__", None)
