"""What can be wrong with a derived collection or a rollup by itself."""

from collections.abc import Iterator

from distributary.derive.found import Declared, DeclaredRollup
from distributary.derive.naming import derived_name_problem, indexes_problems, is_text
from distributary.derive.records import FORMATS
from distributary.derive.rollup import problems
from distributary.derive.topics import is_topic
from distributary.errors import Fault


def collection_faults(declared: Declared) -> Iterator[Fault]:
    """Check the name, the indexes, the topic and the format of a derived collection."""
    collection, place = declared.collection, declared.place
    if problem := derived_name_problem(collection.name):
        yield Fault(
            place,
            f"{collection.name!r:.80} cannot name a derived collection: {problem}.",
            "Choose another name.",
        )
    for problem in indexes_problems(collection.indexes):
        yield Fault(
            place,
            f"derived collection {collection.name!r:.80} {problem}.",
            'Write indexes as a list, each a field name or a list of them: ["sku", ["customer_id", "-at"]].',
        )
    if collection.publish is not None and not (is_text(collection.publish) and is_topic(collection.publish)):
        yield Fault(
            place,
            f"derived collection {collection.name!r:.80} is published to {collection.publish!r:.60}, no topic.",
            "Name one of 3 to 255 letters, digits and -._~+%, a letter first, that does not begin with goog.",
        )
    if collection.format not in FORMATS:
        yield Fault(
            place,
            f"derived collection {collection.name!r:.80} has the format {collection.format!r:.80}.",
            f"There are: {', '.join(FORMATS)}.",
        )


def rollup_faults(declared: DeclaredRollup) -> Iterator[Fault]:
    """Check the name, the accumulators and the indexes of a rollup."""
    rollup, place = declared.rollup, declared.place
    if problem := derived_name_problem(rollup.name):
        yield Fault(
            place,
            f"{rollup.name!r:.80} cannot name a rollup: {problem}.",
            "Choose another name.",
        )
    for problem, cure in problems(rollup):
        yield Fault(place, f"rollup {rollup.name!r:.80} {problem}.", cure)
    for problem in indexes_problems(rollup.indexes):
        yield Fault(
            place,
            f"rollup {rollup.name!r:.80} {problem}.",
            'Write indexes as a list, each a field name or a list of them: ["orders", ["city", "-spent"]].',
        )
