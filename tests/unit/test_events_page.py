"""The page about events: its subscriber ends with the derived state, and its example is what is published."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bson import Timestamp, encode
from hypothesis import given
from hypothesis import strategies as st

from distributary.events.envelope import Envelope, Message, RecordChange

PAGE = (Path(__file__).parents[2] / "docs/events.md").read_text(encoding="utf-8")

#: Keys of which two have one subject, and two are equal.
KEYS: list[Any] = ["a", "1", 1, 1.0]

#: What becomes of which key, and whether the message is in binary mode.
CHANGES = st.lists(
    st.tuples(st.sampled_from(KEYS), st.none() | st.integers(0, 2), st.booleans()), max_size=12
)


def subscriber() -> dict[str, Any]:
    """Give what the page's subscriber defines."""
    defined: dict[str, Any] = {}
    code = re.search(r"```python\n# subscriber.py\n(.*?)```", PAGE, re.DOTALL)
    assert code
    exec(compile(code[1], "docs/events.md", "exec"), defined)
    return defined


APPLY: Callable[[Any, dict[Any, Any]], None] = subscriber()["apply"]


def published(number: int, key: Any, value: int | None, *, binary: bool) -> Message:
    """Give the message of the change with this number."""
    document = None if value is None else encode({"_id": key, "value": value, "_src": {}})
    change = RecordChange("customer", key, document, Timestamp(1, 1), "", (number, 0))
    return Envelope("w", binary=binary).of_record(change, "t")


@given(CHANGES, st.data())
def test_the_subscriber_ends_with_the_derived_state(
    changes: list[tuple[Any, int | None, bool]], data: st.DataObject
) -> None:
    """Messages in any order, each of them once or more, in both modes, with tombstones and keys that are alike."""
    messages = [
        published(number, key, value, binary=binary) for number, (key, value, binary) in enumerate(changes)
    ]
    again = data.draw(st.lists(st.sampled_from(messages), max_size=6)) if messages else []
    kept: dict[Any, Any] = {}
    for message in data.draw(st.permutations(messages + again)):
        APPLY(SimpleNamespace(data=message.data, attributes=message.attributes), kept)
    state: dict[Any, Any] = {}
    for key, value, _ in changes:
        state.pop(key, None)
        if value is not None:
            state[key] = {"_id": key, "value": value}
    records = [record for _, record in kept.values() if record]
    assert sorted(records, key=repr) == sorted(state.values(), key=repr)


def test_the_example_has_the_members_of_an_upsert() -> None:
    """In their order."""
    shown = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert shown
    example = json.loads(shown[1])
    key = example["data"]["_id"]
    change = RecordChange("customer", key, encode(example["data"]), Timestamp(1, 1), "82", (0xA41, 3))
    made = json.loads(Envelope("default").of_record(change, "t").data)
    assert list(made) == list(example)
    same = ("specversion", "source", "type", "subject", "sequence", "recordkey", "datacontenttype", "data")
    assert [made[name] for name in same] == [example[name] for name in same]
