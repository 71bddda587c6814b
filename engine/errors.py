"""Every error a caller can see, with the gRPC and HTTP status it maps to.

SparkpoolError                     INTERNAL             500
├── BadRequest(field)              INVALID_ARGUMENT     400   the request is at fault; names the field
├── UnknownModel                   NOT_FOUND            404
├── DoesNotFit                     FAILED_PRECONDITION  422   more pages than the pool has at all
├── Overloaded                     RESOURCE_EXHAUSTED   429   try again; says when
├── DeadlineExceeded               DEADLINE_EXCEEDED    504
├── Cancelled                      CANCELLED            499
├── Unavailable                    UNAVAILABLE          503   the retry budget is spent
│   ├── HandoffLost                UNAVAILABLE          503   pages were gone; the gateway prefills again
│   └── Preempted                  UNAVAILABLE          503   pages ran out; the gateway prefills again
├── HandoffRefused                 FAILED_PRECONDITION  500   the two pools serve different models
├── ModelFailure                   INTERNAL             500   NaN or infinity in this request's logits
├── EngineFailure                  INTERNAL             500   a fault of ours: the replica stops
└── ConfigError                    FAILED_PRECONDITION  500   at start: names the key or the file
    └── CheckpointRefused          FAILED_PRECONDITION  500   pre-flight: with numbers
"""


class SparkpoolError(Exception):
    """The root. `grpc_status` is a name from grpc.StatusCode, `http_status` a number."""

    grpc_status = "INTERNAL"
    http_status = 500


class BadRequest(SparkpoolError):
    """The request cannot be served as written. `field` is the name in the API's own spelling."""

    grpc_status, http_status = "INVALID_ARGUMENT", 400

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class UnknownModel(SparkpoolError):
    grpc_status, http_status = "NOT_FOUND", 404


class DoesNotFit(SparkpoolError):
    """The request needs more pages than the pool has at all: waiting would not help."""

    grpc_status, http_status = "FAILED_PRECONDITION", 422


class Overloaded(SparkpoolError):
    """A queue is full. `retry_seconds` is a hint, in seconds."""

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
    """The pages were gone before they had been read: the request must be prefilled again."""


class Preempted(Unavailable):
    """A decode replica gave this request's pages to an earlier one. Going on from the tokens so far needs a prefill."""


class HandoffRefused(SparkpoolError):
    """The prefill replica's target fingerprint is not ours. The message names the difference."""

    grpc_status, http_status = "FAILED_PRECONDITION", 500


class ModelFailure(SparkpoolError):
    """The model gave NaN or infinity for this request. Others in the same batch go on; trying again would not help."""


class EngineFailure(SparkpoolError):
    """A bug of ours or a device fault. The replica that raised it reports itself unhealthy."""


class ConfigError(SparkpoolError):
    grpc_status, http_status = "FAILED_PRECONDITION", 500


class CheckpointRefused(ConfigError):
    """Pre-flight said no. The message has the numbers."""
