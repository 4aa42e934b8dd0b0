"""The one place that judges a failure: try again, or stop and say why."""

from enum import StrEnum

from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WaitQueueTimeoutError,
    WTimeoutError,
)

from distributary.errors import CheckpointMoved, DistributaryError, LeaseLost, PositionLost
from distributary.quoting import message_of


class Verdict(StrEnum):
    """What a failure means for the worker."""

    TRANSIENT = "transient"
    #: It passes with connections that are made anew.
    CONNECTION = "connection"
    LEASE = "lease"
    POSITION = "position"
    FATAL = "fatal"


#: Server errors after which the same work may succeed: elections, shutdowns, timeouts, killed cursors and
#: sessions, conflicts. Source: the server's error_codes.yml, categories RetriableError, Interruption,
#: NotPrimaryError, CursorInvalidatedError, SnapshotError, CancellationError; and a member that only just started.
TRANSIENT_CODES = frozenset(
    {
        6,  # HostUnreachable
        7,  # HostNotFound
        24,  # LockTimeout
        43,  # CursorNotFound
        50,  # MaxTimeMSExpired
        63,  # StaleShardVersion
        64,  # WriteConcernFailed
        79,  # UnknownReplWriteConcern
        89,  # NetworkTimeout
        90,  # CallbackCanceled
        91,  # ShutdownInProgress
        94,  # NotYetInitialized
        112,  # WriteConflict
        117,  # ConflictingOperationInProgress
        133,  # FailedToSatisfyReadPreference
        134,  # ReadConcernMajorityNotAvailableYet
        136,  # CappedPositionLost
        150,  # StaleEpoch
        175,  # QueryPlanKilled
        189,  # PrimarySteppedDown
        202,  # NetworkInterfaceExceededTimeLimit
        206,  # NoSuchSession
        225,  # TransactionTooOld
        234,  # RetryChangeStream
        237,  # CursorKilled
        239,  # SnapshotTooOld
        246,  # SnapshotUnavailable
        251,  # NoSuchTransaction
        262,  # ExceededTimeLimit
        279,  # ClientDisconnect
        281,  # TransactionCoordinatorSteppingDown
        290,  # TransactionExceededLifetimeLimitSeconds
        317,  # ConnectionPoolExpired
        358,  # InternalTransactionNotSupported
        365,  # TemporarilyUnavailable
        384,  # ConnectionError
        9001,  # SocketException
        10058,  # LegacyNotPrimary
        10107,  # NotWritablePrimary
        11600,  # InterruptedAtShutdown
        11601,  # Interrupted
        11602,  # InterruptedDueToReplStateChange
        13388,  # StaleConfig
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary
    }
)

#: The driver asks a member once, when it connects, whether it has sessions. One that is just changing its role has
#: none, and the driver keeps the connection with that answer for good.
_NO_SESSIONS = "Sessions are not supported"

_LABELS = (
    "TransientTransactionError",
    "RetryableWriteError",
    "ResumableChangeStreamError",
    "UnknownTransactionCommitResult",
)


#: What the driver puts before what it knows of all members, in its own words.
_TIMEOUT, _TOPOLOGY = ", Timeout: ", ", Topology Description: "


def reason(error: BaseException) -> str:
    """Give what went wrong in one line for the log, without what it quotes of documents."""
    if isinstance(error, DistributaryError | ConnectionFailure):
        text = str(error).partition(_TIMEOUT)[0].partition(_TOPOLOGY)[0]
        return text[:300] or type(error).__name__
    return (message_of(error, error.__traceback__) or type(error).__name__)[:300]


def judge(error: BaseException) -> Verdict:
    """Say what a failure means; what is not known to pass by itself is fatal."""
    if isinstance(error, LeaseLost):
        return Verdict.LEASE
    if isinstance(error, PositionLost):
        return Verdict.POSITION
    if lacks_sessions(error):
        return Verdict.CONNECTION
    if isinstance(error, CheckpointMoved) or (isinstance(error, PyMongoError) and _passes(error)):
        return Verdict.TRANSIENT
    return Verdict.FATAL


def passes(error: OperationFailure) -> bool:
    """Whether the same work may succeed a moment later."""
    return judge(error) is Verdict.TRANSIENT


def lacks_sessions(error: BaseException) -> bool:
    """Whether a connection was made while its member changed its role, and is of no use from then on."""
    return isinstance(error, ConfigurationError) and _NO_SESSIONS in str(error)


def _passes(error: PyMongoError) -> bool:
    if any(error.has_error_label(label) for label in _LABELS):
        return True
    if isinstance(error, OperationFailure):
        return error.code in TRANSIENT_CODES or isinstance(error, ExecutionTimeout | WTimeoutError)
    return isinstance(error, AutoReconnect | ConnectionFailure | WaitQueueTimeoutError)
