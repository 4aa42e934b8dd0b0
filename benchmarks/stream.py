"""A change stream read by hand, one server reply at a time."""

from collections.abc import Iterator, Sequence

from pymongo import MongoClient

from benchmarks.workload import Document


def tail_in_batches(
    client: MongoClient[Document],
    database: str,
    pipeline: Sequence[Document],
    size: int,
    *,
    start_after: str | None = None,
) -> Iterator[tuple[list[Document], Document]]:
    """Give reply after reply, empty ones too, each with the resume token of its end; never ends."""
    stage: Document = {"startAfter": {"_data": start_after}} if start_after else {}
    source = client[database]
    with client.start_session() as session:
        reply = source.command(
            "aggregate",
            1,
            pipeline=[{"$changeStream": stage}, *pipeline],
            cursor={"batchSize": size},
            session=session,
        )
        number = reply["cursor"]["id"]
        yield reply["cursor"]["firstBatch"], reply["cursor"]["postBatchResumeToken"]
        while True:
            reply = source.command(
                "getMore", number, collection="$cmd.aggregate", batchSize=size, session=session
            )
            yield reply["cursor"]["nextBatch"], reply["cursor"]["postBatchResumeToken"]
