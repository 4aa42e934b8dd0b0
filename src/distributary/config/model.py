"""The sections and keys. The descriptions are the reference page, so each says its unit."""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr, model_validator
from pydantic.fields import FieldInfo

from distributary.config.values import (
    Bytes,
    Count,
    Database,
    Duration,
    Endpoint,
    HashKey,
    Name,
    Start,
    Text,
    Uri,
    wrong,
)

#: The folder of transform modules when none is named. Never a module: PyPI has one of this name.
DEFAULT_FOLDER = "transformers"

#: What every variable of the configuration starts with.
PREFIX = "DISTRIBUTARY_"


class Section(BaseModel):
    """One table of the file; frozen, and silent about the values that it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Source(Section):
    """The raw database, whose change stream is read."""

    uri: Uri = Field(description="Connection string of the raw deployment, a replica set.")
    database: Database = Field(description="Name of the database with the raw collections.")


class Derived(Section):
    """The database that the transforms fill."""

    uri: Uri = Field(
        description="Connection string of the derived deployment.",
        json_schema_extra={"default": "the value of `source.uri`"},
    )
    database: Database = Field(
        default="derived", description="Name of the database with the derived collections."
    )


class State(Section):
    """What survives a restart: checkpoints, leases, dead letters, jobs."""

    database: Database = Field(
        default="distributary",
        description="Name of the database for the worker's state, in the derived deployment.",
    )


class Worker(Section):
    """What the worker runs, where it begins, and how much it takes at a time."""

    name: Name = Field(
        default="default",
        description="Name of the worker, its checkpoint and its lease: up to 63 lower-case letters, digits,"
        " `-` and `_`. Several workers have several names.",
    )
    transformers: tuple[Text, ...] = Field(
        default=(DEFAULT_FOLDER,),
        description="Folders of transform modules, or importable modules. A relative folder is resolved"
        " against the folder of the configuration file.",
    )
    only: tuple[Text, ...] = Field(
        default=(), description="Names of the transforms to run; empty: all of them."
    )
    start: Start = Field(
        default="backfill",
        description="Where to begin without a checkpoint: `backfill` (derive what exists, then follow),"
        " `now`, `oldest`, a resume token in hex, an ISO-8601 time (UTC when it names no zone), or a"
        " duration back such as `-2h` (units s, m, h, d, w).",
    )
    on_lost_position: Literal["resync", "fail"] = Field(
        default="resync",
        description="When the position is no longer in the source's history: `resync` derives every document"
        " again, `fail` ends with exit code 4.",
    )
    on_source_drop: Literal["keep", "purge"] = Field(
        default="keep",
        description="When a raw collection is dropped: `keep` or `purge` the records it yielded.",
    )
    on_change: Literal["warn", "rebuild"] = Field(
        default="warn",
        description="When the code of a transform changed: `warn`, or `rebuild`, which derives everything again.",
    )
    lease_seconds: Duration = Field(
        default=10, description="Seconds after which another worker may take over from one that fell silent."
    )
    idle_save_seconds: Duration = Field(
        default=10, description="Seconds between saved positions while nothing changes in the source."
    )
    batch_changes: Count = Field(
        default=5000,
        description="Changes in one commit, at most; fewer where commits take longer than a second.",
    )
    batch_bytes: Bytes = Field(
        default=ByteSize(16 * 1024**2),
        description="Bytes of changes in one commit, at most; a number or `16MiB`.",
    )
    carry_bytes: Bytes = Field(
        default=ByteSize(256 * 1024),
        description="Bytes up to which the change stream carries a document; a larger one is read instead."
        " A number or `256KiB`.",
    )
    read_ahead_batches: Count = Field(
        default=2,
        description="Bound of what is read and not derived yet: so many times `batch_changes`; in bytes it is"
        " `batch_bytes`. Besides, one derived batch waits at most while another is committed.",
    )
    linger_milliseconds: int = Field(
        default=5, ge=0, le=60_000, description="Milliseconds that a small batch waits for more changes."
    )
    max_records: Count = Field(
        default=10_000,
        description="Records from one document, at most; a document that yields more is parked.",
    )
    scan_documents: Count = Field(
        default=2000,
        description="Documents in one slice of a job at most, between batches of the stream; fewer where their commits"
        " take long.",
    )
    job_documents_per_second: int = Field(
        default=0, ge=0, description="Documents per second that jobs derive at most; 0: no limit."
    )
    job_max_lag_seconds: Duration = Field(
        default=60, description="Seconds behind the source from which on jobs wait for the stream."
    )
    job_min_headroom_seconds: Duration = Field(
        default=3600,
        description="Seconds that the history must reach back further than the position; with less, jobs wait"
        " as long as the stream is behind.",
    )
    slow_transform_seconds: Duration = Field(
        default=10, description="Seconds after which a transform that still works on one document is logged."
    )
    shutdown_seconds: Duration = Field(
        default=2.5,
        description="Seconds for the batch under way to be committed when the worker is asked to stop; behind them it"
        " is given up, and the process has ended 1.5 s later at the latest.",
    )


class DeadLetters(Section):
    """When failing documents are a bug rather than data, and what is kept of them."""

    max_in_window: int = Field(
        default=100,
        ge=0,
        description="Failed changes among the last `window` that stop the worker; 0: never.",
    )
    window: Count = Field(default=1000, description="Changes that `max_in_window` looks back on.")
    values: bool = Field(
        default=False,
        description="Keep field values of documents that the messages of exceptions, of MongoDB and of Pub/Sub quote;"
        " `false`: they are left out. The letter of a trigger has its change in any case.",
    )

    @model_validator(mode="after")
    def _limit_is_reachable(self) -> "DeadLetters":
        if self.max_in_window > self.window:
            raise wrong(
                "max_in_window is larger than window.", "Make window larger, or max_in_window smaller."
            )
        return self


class PersonalData(Section):
    """What pseudonyms of personal data are made with; without this section there are none."""

    key: HashKey = Field(
        description="Key of the HMAC that `distributary.personal.pseudonym` gives: 16 characters or more, the same for"
        " every process. Transforms that make pseudonyms are outdated under another key.",
    )


#: What one message may have, in bytes.
MESSAGE_BYTES = 10_000_000


class PubSub(Section):
    """Where events are published; without this section nothing is."""

    project: Text = Field(description="Id of the Google Cloud project with the topics.")
    endpoint: Endpoint = Field(
        default="",
        description="Host and port of a regional endpoint, such as `europe-west1-pubsub.googleapis.com:443`; empty: the"
        " global one. The emulator that the variable `PUBSUB_EMULATOR_HOST` names comes first.",
    )
    mode: Literal["structured", "binary"] = Field(
        default="structured",
        description="Form of an event as a CloudEvent: `structured`, all of it as JSON in the message's data, or"
        " `binary`, its data there and the rest as attributes.",
    )
    json_form: Literal["relaxed", "plain"] = Field(
        default="relaxed",
        description="JSON of values that JSON does not know: `relaxed` Extended JSON, which tells their types, or"
        " `plain` text and numbers.",
    )
    too_large: Literal["dead-letter", "reference"] = Field(
        default="dead-letter",
        description="When an event has more than the 10 MB that Pub/Sub takes: park it as a `dead-letter`, or publish a"
        " `reference` to the record instead.",
    )
    outbox_events: Count = Field(
        default=1_000_000, description="Events that wait to be published, from which on the worker waits too."
    )
    outbox_bytes: Bytes = Field(
        default=ByteSize(1024**3),
        description="Bytes of events that wait to be published, from which on the worker waits too; a number or"
        " `1GiB`.",
    )
    in_flight_bytes: Annotated[Bytes, Field(ge=MESSAGE_BYTES)] = Field(
        default=ByteSize(32 * 1024**2),
        description="Bytes of messages that are sent and not confirmed yet, at most; a number or `32MiB`, and not less"
        " than the 10 MB that one message may have.",
    )


class Http(Section):
    """The endpoint for metrics and health: `/metrics`, `/healthz`, `/readyz`."""

    host: Text = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=9464, ge=0, le=65535, description="Port to listen on; 0: no endpoint.")


class Log(Section):
    """What the worker tells on stderr."""

    format: Literal["text", "json"] = Field(
        default="text",
        description="Form of the log: `text` for people, `json` with one object a line for machines.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level shown."
    )
    values: bool = Field(
        default=False, description="Show keys and field values of documents; `false`: they are left out."
    )


class Traces(Section):
    """Traces of OpenTelemetry; where they go, and which are kept, is what its variables (`OTEL_…`) say."""

    enabled: bool = Field(
        default=False,
        description="Whether a span is made of each batch, its stages and what is published; wants the extra `traces`.",
    )


class Config(Section):
    """The whole configuration; made by `load`, which also checks the sections against each other."""

    source: Source
    derived: Derived
    state: State = Field(default_factory=State)
    worker: Worker = Field(default_factory=Worker)
    dead_letters: DeadLetters = Field(default_factory=DeadLetters)
    personal_data: PersonalData | None = None
    pubsub: PubSub | None = None
    http: Http = Field(default_factory=Http)
    log: Log = Field(default_factory=Log)
    traces: Traces = Field(default_factory=Traces)


SECTIONS: Mapping[str, type[Section]] = {
    "source": Source,
    "derived": Derived,
    "state": State,
    "worker": Worker,
    "dead_letters": DeadLetters,
    "personal_data": PersonalData,
    "pubsub": PubSub,
    "http": Http,
    "log": Log,
    "traces": Traces,
}


class Key(NamedTuple):
    """A key of the configuration."""

    section: str
    name: str

    @property
    def field(self) -> FieldInfo:
        """What the model says about it."""
        return SECTIONS[self.section].model_fields[self.name]

    @property
    def variable(self) -> str:
        """The environment variable over it."""
        return f"{PREFIX}{self.section}__{self.name}".upper()

    @property
    def is_secret(self) -> bool:
        """Whether it is never shown, and may lie in a file of its own."""
        return self.field.annotation is SecretStr

    def __str__(self) -> str:
        return f"{self.section}.{self.name}"


#: Every key, in the order of the reference page.
KEYS: tuple[Key, ...] = tuple(
    Key(section, name) for section, model in SECTIONS.items() for name in model.model_fields
)
