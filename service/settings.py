"""Settings: the tables of what an operator may set, each with its defaults and what it may be."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from askance.engines import Engine
from askance.service.call import Role
from askance.service.guard.access import ClientConfig
from askance.service.guard.reception import COPIES
from askance.service.guard.tls import TlsConfig
from askance.service.observability.log import LogFormat, LogLevel
from askance.service.observability.pooled import POOL_REQUESTS, POOL_SECONDS
from askance.service.store import SCHEMES

PILLOW_LIMIT = 89_478_485  # Pillow itself objects to images of more pixels
MEBIBYTE = 1024 * 1024


class Policy(StrEnum):
    """What is done with a verdict.

    Attributes:
        ANNOTATE: it leaves with the prediction.
        BLOCK: the same, but an image judged ADVERSARIAL gets PERMISSION_DENIED and no prediction.
        MONITOR: clients get the prediction alone; verdicts go to the metrics only.
    """

    ANNOTATE = "annotate"
    BLOCK = "block"
    MONITOR = "monitor"


class Probabilities(StrEnum):
    """What a stranger sees of the probabilities.

    Attributes:
        ROUNDED: two digits after the point.
        FULL: all digits.
    """

    ROUNDED = "rounded"
    FULL = "full"


class Table(BaseModel):
    """Never changed, and nothing in it that has no name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# Above, clocks and gRPC's timers overflow, and whatever waits for them dies of it. Eleven days
Seconds = Annotated[float, Field(le=1_000_000)]
Host = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x20]*$")]
ModelName = Annotated[str, Field(pattern=r"^[!-.0-~]{1,128}$")]  # printable, and a part of a path
TensorName = Annotated[str, Field(pattern=r"^[ -~]{1,128}$")]


class ModelConfig(Table):
    """What clients of the Open Inference Protocol that know another server call things here, and what they send.

    Attributes:
        names: of the model, beside its own.
        versions: of the default version, beside its own, such as "1".
        input: what tensors of floats hold: "pixels" in [0, 1], or pixels that are "normalised" by the bundle's mean and
            std. Bytes and files are pixels always.
        inputs: {another name: "image" or "encoded"}.
        outputs: {another name: an output's own}; these come first, in this order, where a client names none.
    """

    names: tuple[ModelName, ...] = ()
    versions: tuple[ModelName, ...] = ()
    input: Literal["pixels", "normalised"] = "pixels"
    inputs: dict[TensorName, str] = {}
    outputs: dict[TensorName, str] = {}

    @field_validator("versions")
    @classmethod
    def _no_bundles(cls, versions: tuple[str, ...]) -> tuple[str, ...]:
        for version in versions:
            if re.fullmatch("[0-9a-f]{12}", version):
                raise ValueError(f"{version} could be a bundle's own: choose a name that is not 12 digits of an id")
        return versions


class InferenceConfig(Table):
    """How images are screened.

    Attributes:
        engine: "auto", "onnxruntime" or "torch": what computes classifier and detectors. A bundle's graph
            needs none of the classifier's code, and is mostly faster for single images; "auto" takes it where there is
            one.
        max_batch: the most images that share one call of the classifier.
        threads: those inside one call of the classifier; 0 takes one less than the CPUs, so that the event
            loop keeps one: threads that outnumber them cost most of the throughput. Of several workers each takes its
            share of the CPUs.
        decode_threads: how many images are decoded at a time.
        stall_seconds: the server is not ready while the inference thread is at one batch for longer.
        single_pass: leave out the detectors that need altered views of each image, and their extra forward passes; the
            fused score has a calibration of its own for that.
        second_looks: read only those images with views that a single pass finds suspicious, and at most this share of
            all; 0 reads every image with views. Who sends suspicious images decides how many of them there are.
    """

    engine: Engine = Engine.AUTO
    max_batch: int = Field(default=32, ge=1, le=4096)
    threads: int = Field(default=0, ge=0, le=1024)
    decode_threads: int = Field(default=2, ge=1, le=64)
    stall_seconds: Seconds = Field(default=30.0, gt=0)
    single_pass: bool = False
    second_looks: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.single_pass and self.second_looks:
            raise ValueError("single_pass reads no image with views: leave out second_looks, or single_pass")
        return self


class LimitsConfig(Table):
    """How much may be asked for; of several workers each holds its own clients to it.

    Attributes:
        queue_size: the most requests accepted and not yet with the classifier; one more is refused.
        max_in_flight_bytes: memory of all requests received and not yet answered, twice their bytes; it holds
            the largest at least. What is still being received counts, too: where it makes the process grow, what has
            been under way for longest is ended.
        receive_seconds: for a request's message to arrive.
        client_rate: images a second from one client (by its name, or its address); 0 is no limit.
        client_burst: the most images at once from one client, where there is a rate.
        client_ipv6_prefix: the bits of an anonymous client's IPv6 address that are its own; it has all addresses of
            that network.
        stream_window: the most requests of one stream in flight; the server reads no further ahead.
        max_image_pixels: the largest encoded image, width x height; judged by its header, before it is decoded.
        max_message_bytes: the largest request.
    """

    queue_size: int = Field(default=256, ge=1)
    max_in_flight_bytes: int = Field(default=128 * MEBIBYTE, ge=1024)
    receive_seconds: Seconds = Field(default=30.0, gt=0)
    client_rate: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    client_burst: int = Field(default=64, ge=1)
    client_ipv6_prefix: int = Field(default=64, ge=1, le=128)
    stream_window: int = Field(default=64, ge=1)
    max_image_pixels: int = Field(default=16_000_000, ge=1, le=PILLOW_LIMIT)
    max_message_bytes: int = Field(default=16 * MEBIBYTE, ge=1024, le=2**31 - 1)

    @model_validator(mode="after")
    def _the_largest_request_fits(self) -> Self:
        if self.max_in_flight_bytes < (least := COPIES * self.max_message_bytes):
            raise ValueError(
                f"max_in_flight_bytes must hold one request of max_message_bytes twice, {least} bytes or more, got "
                f"{self.max_in_flight_bytes}"
            )
        return self


class ConnectionsConfig(Table):
    """How connections are kept.

    Attributes:
        keepalive_seconds: an idle connection is pinged so often, so that dead ones are noticed.
        min_ping_seconds: a client may ping as often as that, calls under way or not; one that does more often loses its
            connection (gRPC's "too many pings").
        max_calls: the most calls of one connection under way; more of them wait at the client.
        max_idle_seconds: a connection without calls is closed after so long; 0 is never.
        max_age_seconds: a connection is closed after so long, its calls finished first, so that clients spread over the
            replicas anew; 0 is never.
    """

    keepalive_seconds: Seconds = Field(default=60.0, ge=1)
    min_ping_seconds: Seconds = Field(default=10.0, gt=0)
    max_calls: int = Field(default=512, ge=1)
    max_idle_seconds: Seconds = Field(default=0.0, ge=0)
    max_age_seconds: Seconds = Field(default=0.0, ge=0)


class VerdictsConfig(Table):
    """What is done with a verdict, and without one.

    Attributes:
        policy: "annotate", "block" or "monitor".
        fail_open: answer an image that the detectors fail on, or have no time for, with the prediction alone (verdict
            UNSCREENED); otherwise with an error.
        reserve_seconds: an image whose deadline is nearer when its turn comes is not screened; 0 screens whatever is
            not too late.
    """

    policy: Policy = Policy.ANNOTATE
    fail_open: bool = False
    reserve_seconds: Seconds = Field(default=0.0, ge=0)


class AccessConfig(Table):
    """Who may ask, and for what.

    Attributes:
        anonymous: what a client without token or certificate may do; empty: nothing.
        anonymous_probabilities: "rounded" to two digits, or "full", are those that it sees, without the role logits:
            all digits are a slope to whoever feels his way by answers.
        reflection: whether generic gRPC clients may ask what there is to call.
        clients: those that are known, by token or certificate, and what each may do.
    """

    anonymous: frozenset[Role] = frozenset({Role.PREDICT})
    anonymous_probabilities: Probabilities = Probabilities.ROUNDED
    reflection: bool = True
    clients: tuple[ClientConfig, ...] = ()


class BundlesConfig(Table):
    """Which bundles are served.

    Attributes:
        allowed_factories: what builds a bundle's classifier, beside the shipped ones, torchvision's and timm's: import
            paths ("package.module:callable"), "transformers:NAME", or modules whole. A bundle that wants another is
            refused, nothing imported.
        require_signature: a keyring, a PEM file of Ed25519 public keys, read anew for each bundle; one that none of
            them has signed is refused. None takes unsigned bundles.
    """

    allowed_factories: tuple[str, ...] = ()
    require_signature: Path | None = None


class RolloutConfig(Table):
    """How bundles take each other's place.

    Attributes:
        candidate: a bundle that answers only requests that name its version, and screens unseen what the default one
            has answered, while the server has nothing better to do; None is none.
        keep_versions: how many bundles that were replaced still answer requests that name their version.
        watch_seconds: look so often whether another bundle stands where this one (or the candidate) was loaded from; 0
            is never. What is refused is tried again after so long, then after twice as long, and so on.
    """

    candidate: Path | None = None
    keep_versions: int = Field(default=0, ge=0)
    watch_seconds: Seconds = Field(default=0.0, ge=0)


class LogConfig(Table):
    """What is logged and traced.

    Attributes:
        level: the least that is logged: "debug" (a line for each request), "info" (for those flagged, or failed here),
            "warning", "error".
        format: "text" for people, "json" for machines.
        traces: send spans to an OpenTelemetry collector, by the standard OTEL_* environment variables.
    """

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.TEXT
    traces: bool = False


class MetricsConfig(Table):
    """Who may read the metrics, and how much of how images were judged they show at a time.

    Attributes:
        token_sha256: SHA-256 of the bearer token that /metrics asks for, in hexadecimal (`askance token` makes both);
            None asks for none. /healthz and /livez ask for none.
        tls: where the certificates of that port are; None serves it in the clear.
        pool_requests: verdicts, p-values, flags and times of stages are shown for so many requests together, at least.
        pool_seconds: and not sooner than that after the last time.
    """

    token_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    tls: TlsConfig | None = None
    pool_requests: int = Field(default=POOL_REQUESTS, ge=1)
    pool_seconds: Seconds = Field(default=POOL_SECONDS, ge=0)


class LiveConfig(Table):
    """The live page, at / of the metrics' port: for clients with the role admin; where no clients are known, for this
    machine alone.

    Attributes:
        page: whether there is one.
    """

    page: bool = True


class Response(StrEnum):
    """What becomes of a client that probes.

    One whose images are unusual, and no more, is named, whatever the response: they are judged one by one anyway.

    Attributes:
        OFF: nobody looks.
        LOG: it is named, in the log and the metrics.
        THROTTLE: the same, and it is answered slowly.
        BLOCK: the same, and it is not answered.
    """

    OFF = "off"
    LOG = "log"
    THROTTLE = "throttle"
    BLOCK = "block"


class ProbingConfig(Table):
    """Clients that probe: whose images, one after the other, feel their way to one that is let through.

    Attributes:
        response: "off" looks for none; "log" names one in log and metrics, "throttle" answers it slowly from then on,
            "block" not at all.
        throttle_rate: images a second of a client that is throttled.
        keep_seconds: after which one that was found is let off, and what nobody asks for any more is forgotten.
        max_bytes: of images of late; the oldest make room for the latest, so that busy servers see slow attackers no
            more.
        most_alike: images that are nearly the same, whoever asks for them, after which who asks for more is named; 0 is
            any number, for clients that send frames. Where they send photos, a few tens leave no attack the questions
            that it needs, however it asks them.
    """

    response: Response = Response.OFF
    throttle_rate: float = Field(default=0.2, gt=0, allow_inf_nan=False)
    keep_seconds: Seconds = Field(default=3600.0, gt=0)
    max_bytes: int = Field(default=128 * MEBIBYTE, ge=MEBIBYTE)
    most_alike: int = Field(default=0, ge=0)


class ReplicasConfig(Table):
    """What servers behind one balancer know together: the clients that probe, by what all of them are asked.

    Attributes:
        store: a Redis or Valkey, such as "rediss://store.example:6379/0"; None: each server knows what it is asked
            itself. While the store is away that is so, too: no request waits for it.
        password_file: a file that holds the store's password.
        ca: the authority that the store's certificate is of, a PEM file; None: one that this machine trusts.
        name: what keys in the store begin with; servers of one name are one.
    """

    store: str | None = None
    password_file: Path | None = None
    ca: Path | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] = "askance"

    @field_validator("store")
    @classmethod
    def _known(cls, store: str | None) -> str | None:
        if store is None:
            return None
        if not store.startswith(SCHEMES):
            raise ValueError(f"expected an address that begins with {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}")
        if urlsplit(store).password is not None:
            raise ValueError(
                "a password stands in it: put it into a file, and the file's name into replicas.password_file"
            )
        return store


class ReviewConfig(Table):
    """Which requests are kept for people to look at: on the live page, and by `askance review`.

    Attributes:
        folder: where; None keeps none. Images of clients' are in it: it is its owner's alone.
        clean_share: of the requests that are not flagged so many are kept, drawn by chance.
        max_bytes: of all images kept, encoded as they came; the oldest make room for the latest.
        keep_days: after which a request is let go.
    """

    folder: Path | None = None
    clean_share: float = Field(default=0.0, ge=0, le=1)
    max_bytes: int = Field(default=1024 * MEBIBYTE, ge=1024)
    keep_days: float = Field(default=30.0, gt=0, le=36_500)


class ShutdownConfig(Table):
    """How a server stops.

    Attributes:
        lame_duck_seconds: how long a stopping server looks unready and answers all the same, so that load balancers
            notice before it refuses calls.
        drain_seconds: how long a stopping server waits for the requests it has accepted.
    """

    lame_duck_seconds: Seconds = Field(default=0.0, ge=0)
    drain_seconds: Seconds = Field(default=20.0, ge=0)
