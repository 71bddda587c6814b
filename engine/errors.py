"""Every error that a caller can see, and the gRPC and HTTP status that it maps to.

SparkpoolError                     INTERNAL             500
├── BadRequest(field)              INVALID_ARGUMENT     400   the request is invalid; names the field
├── UnknownModel                   NOT_FOUND            404
├── DoesNotFit                     FAILED_PRECONDITION  422   needs more pages than the pool has
├── Overloaded                     RESOURCE_EXHAUSTED   429   try again after `retry_seconds`
├── DeadlineExceeded               DEADLINE_EXCEEDED    504
├── Cancelled                      CANCELLED            499
├── Unavailable                    UNAVAILABLE          503   no replica, or no retries left
│   ├── HandoffLost                UNAVAILABLE          503   pages are gone; the gateway prefills again
│   └── Preempted                  UNAVAILABLE          503   pages ran out; the gateway prefills again
├── HandoffRefused                 FAILED_PRECONDITION  500   the two pools serve different models
├── ModelFailure                   INTERNAL             500   NaN or infinity in the request's logits
├── EngineFailure                  INTERNAL             500   a bug or a device fault: the replica stops
└── ConfigError                    FAILED_PRECONDITION  500   at start; names the key or the file
    └── CheckpointRefused          FAILED_PRECONDITION  500   by pre-flight; names the numbers
"""


class SparkpoolError(Exception):
    """The base class. `grpc_status` is a name of grpc.StatusCode."""

    grpc_status = "INTERNAL"
    http_status = 500


class BadRequest(SparkpoolError):
    """The request is invalid. `field` is the name in the API."""

    grpc_status, http_status = "INVALID_ARGUMENT", 400

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class UnknownModel(SparkpoolError):
    grpc_status, http_status = "NOT_FOUND", 404


class DoesNotFit(SparkpoolError):
    """The request needs more pages than the pool has, so waiting would not help."""

    grpc_status, http_status = "FAILED_PRECONDITION", 422


class Overloaded(SparkpoolError):
    """A queue is full. `retry_seconds` is an estimate of when it no longer is."""

    grpc_status, http_status = "RESOURCE_EXHAUSTED", 429

    def __init__(self, reason: str, retry_seconds: float) -> None:
        super().__init__(reason, retry_seconds)
        self.reason, self.retry_seconds = reason, retry_seconds

    def __str__(self) -> str:
        return f"{self.reason}; retry in {self.retry_seconds:.1f} s"


class DeadlineExceeded(SparkpoolError):
    grpc_status, http_status = "DEADLINE_EXCEEDED", 504


class Cancelled(SparkpoolError):
    grpc_status, http_status = "CANCELLED", 499


class Unavailable(SparkpoolError):
    grpc_status, http_status = "UNAVAILABLE", 503


class HandoffLost(Unavailable):
    """The pages were released before they had been read, so the request must be prefilled again."""


class Preempted(Unavailable):
    """A decode replica needed this request's pages for another one, so its tokens so far must be prefilled again."""


class HandoffRefused(SparkpoolError):
    """The prefill replica serves another model. The message names the difference of the fingerprints."""

    grpc_status, http_status = "FAILED_PRECONDITION", 500


class ModelFailure(SparkpoolError):
    """The model returned NaN or infinity for this request. Others in the batch continue; a retry would not help."""


class EngineFailure(SparkpoolError):
    """A bug or a device fault. The replica that raised it reports itself unhealthy."""


class ConfigError(SparkpoolError):
    grpc_status, http_status = "FAILED_PRECONDITION", 500


class CheckpointRefused(ConfigError):
    """Pre-flight refused the checkpoint. The message has the numbers."""
