"""The section `gateway`: how clients are met, and how their requests are admitted, routed and retried."""

from typing import Annotated, Literal

from pydantic import Field

from engine.section import Positive, Seconds, Section


class GatewayConfig(Section):
    """The gateway and the front that clients connect to."""

    replicas: Positive = 1
    """Gateway replicas."""
    front: Literal["haproxy", "direct", "proxy"] = "haproxy"
    """What clients connect to: HAProxy (haproxy), each gateway itself (direct), or Ray Serve's own proxy (proxy). It
    takes effect when Ray is started."""
    drain_seconds: Annotated[float, Field(ge=0)] = 2.0
    """Seconds for which a gateway that is being removed still accepts requests, until the front has heard of it. Only
    for the fronts haproxy and direct."""
    grpc_port: Annotated[int, Field(ge=1, le=65535)] = 9000
    """The gRPC port of the front, without TLS. HAProxy listens on `http_host`; with the other fronts, Serve's proxy
    listens on every interface."""
    http_host: str = "127.0.0.1"
    """The address on which the front listens for HTTP, and HAProxy for gRPC too."""
    http_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """The HTTP port of the front; another than `grpc_port`."""
    max_ongoing: Positive = 512
    """The most requests that one gateway replica works on at once."""
    max_queued: Positive = 512
    """The most requests that may wait for a gateway replica; further ones are refused with RESOURCE_EXHAUSTED."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a request is prefilled again after its replica or its handoff was lost. All requests together have a
    budget of `max_ongoing` retries, to which each successful request adds half a retry."""
    max_queued_seconds: Seconds = 60.0
    """The most seconds of prefill work that may wait ahead of a new request; beyond that it is refused with
    RESOURCE_EXHAUSTED. Work that would be done after the new request does not count."""
    pool_policy: Literal["first", "fastest", "spill"] = "first"
    """The decode pool of a request that names none: the first one of the configuration (first); the one that promises
    the most tokens per second now (fastest); or the first one that promises `targets.tokens_per_second`, or else the
    fastest (spill)."""
    tiers: dict[str, str] = Field(default_factory=dict)
    """The decode pool of each `service_tier` that a request may name, such as {interactive: lpx, standard: default}."""
    default_max_tokens: Positive = 256
    """The `max_tokens` of a request that gives none, cut to what the model's context still has room for."""
    request_seconds: Seconds = 600.0
    """The most seconds that a request may take, from its arrival to its last token."""
