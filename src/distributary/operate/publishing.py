"""Publishing what did not change: which jobs that takes, and what is in the way."""

from collections.abc import Iterable
from dataclasses import replace

from bson import ObjectId

from distributary.config import Config
from distributary.derive.registry import Registry
from distributary.errors import ConfigurationError, Fault
from distributary.state import Job, JobKind


def refuse_unpublished(config: Config, registry: Registry, transforms: Iterable[str]) -> None:
    """Raise `ConfigurationError` when nothing could be published of what these transforms fill."""
    if config.pubsub is None:
        raise ConfigurationError(
            [Fault("--publish", "nothing is published here.", "Set pubsub.project, or leave --publish out.")]
        )
    if not published_by(registry, transforms):
        raise ConfigurationError(
            [
                Fault(
                    "--publish",
                    "no derived collection of these transforms has a topic.",
                    'Declare one: DerivedCollection("customer", publish="customer-view").',
                )
            ]
        )


def published_by(registry: Registry, transforms: Iterable[str]) -> list[str]:
    """Give the published derived collections of some transforms, sorted."""
    named = frozenset[str]().union(*(registry.transforms[name].collections for name in transforms))
    return sorted(named & registry.published.keys())


def told_of(registry: Registry, transforms: Iterable[str], jobs: Iterable[Job]) -> list[Job]:
    """Give jobs with ids, and those that publish every record of what these transforms fill, once they are done."""
    first = [replace(job, id=ObjectId()) for job in jobs]
    behind = tuple(job.id for job in first)
    names = published_by(registry, transforms)
    return first + [Job(None, JobKind.PUBLISH, name, (), "asked for", behind=behind) for name in names]
