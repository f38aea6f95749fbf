"""Every key of the sections of broker.toml with its type, limits, default and effect.

What belongs here: the frozen settings.  What does not: reading (broker.config), what a kind of value is
(broker.config.values) and the keys of tables and adapters (broker.config.tables, broker.config.platforms).
A field's annotation holds its reader and limits; RELOAD marks a key that a running broker takes over on
SIGHUP, as it does centers; the others need a new process.  Durations end in `_s` and are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from broker.adapter import Asset, Image, StatedPool
from broker.config import values as v
from broker.config.keys import RELOAD
from broker.core.model import CenterId, CenterState, NodeShape, Price

POLICY_FILE: Final = "policy.toml"
DATA: Final = "/var/lib/broker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """[server]: how users reach the broker, and what it is called at the centers."""

    # Where the HTTP server listens.
    listen: Annotated[str, v.host_port] = "127.0.0.1:8238"
    # What users put before every path; links in answers start with it.
    public_url: Annotated[str, v.http_url] = "http://127.0.0.1:8238"
    # Prefix of every remote name.  With ten random characters and the platforms' own additions it
    # stays within their limit of 20; it starts with a letter because several platforms demand that.
    name: Annotated[str, v.pattern("[a-z][a-z0-9]{0,7}", "1 to 8 of a-z and 0-9, starting with a letter")] = (
        "bk"
    )
    # Zone of all northbound times, in and out, and of price windows.
    timezone: Annotated[str, v.timezone] = "Asia/Shanghai"
    # Most rows of one page of a listing.
    max_page_size: Annotated[int, v.whole(1, 10_000)] = 1000
    # Bytes of a request body; a larger one is refused.
    max_body_bytes: Annotated[int, v.whole(1024, 1 << 30)] = 1 << 20
    # Bytes of one uploaded data set.
    max_upload_bytes: Annotated[int, v.whole(1, 1 << 50)] = 100 << 30
    # Origins of web pages that may call the API from a browser, such as "https://portal.example".
    cors_origins: Annotated[tuple[str, ...], v.array_of(v.origin)] = ()
    # Addresses or networks of reverse proxies whose X-Forwarded-For is believed.
    trusted_proxies: Annotated[tuple[str, ...], v.array_of(v.network)] = ()
    # Least severe log line that is written.
    log_level: Annotated[str, v.choice("debug", "info", "warning", "error")] = "info"
    # After SIGTERM: time for what is in flight before it is cancelled.
    shutdown_s: Annotated[float, v.seconds(0, 3600)] = 30.0

    @property
    def address(self) -> tuple[str, int]:
        """Host, without brackets, and port of `listen`."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """[store]: where rows and files are kept, and for how long."""

    # SQLAlchemy's form; a relative SQLite path is relative to the file.  It may hold a password.
    url: Annotated[str, v.store_url] = field(default=f"sqlite:///{DATA}/broker.db", repr=False)
    # Folder of uploads, logs and results; shared by all replicas.
    data_dir: Annotated[Path, v.path] = Path(f"{DATA}/data")
    # Bytes of one node's output, and of one run's results, that are copied from a center.
    max_log_bytes: Annotated[int, v.whole(1, 1 << 50)] = 10 << 30
    max_result_bytes: Annotated[int, v.whole(1, 1 << 50)] = 1 << 40
    # Days that logs and results of an ended job are kept.
    log_retention_days: Annotated[int, v.whole(1, 36_500), RELOAD] = 30
    # Days that event rows, which are the audit, are kept.
    event_retention_days: Annotated[int, v.whole(1, 36_500), RELOAD] = 90
    # Days that an Idempotency-Key is remembered, and longer while its job lives.
    idempotency_retention_days: Annotated[int, v.whole(7, 36_500), RELOAD] = 7
    # Most writes that share one transaction of the writer.
    commit_batch: Annotated[int, v.whole(1, 10_000)] = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """[scheduler]: rounds, and the patience with centers."""

    # A round at least this often; events wake it sooner.
    interval_s: Annotated[float, v.seconds(0.05, 3600)] = 2.0
    # Wall time of one round's search for a better plan.
    solve_limit_s: Annotated[float, v.seconds(0.01, 600)] = 0.5
    # Policies and their weights.  The default name means the packaged file where none is beside this one.
    policy: Annotated[Path, v.path, RELOAD] = Path(POLICY_FILE)
    # Plans rest on what earlier runs took; false: on stated estimates and one hour alone.
    learn_run_times: Annotated[bool, v.flag, RELOAD] = True
    # Calls that run at once against one center.
    dispatch_concurrency: Annotated[int, v.whole(1, 1000)] = 8
    # A probe without an answer after this has failed.
    probe_timeout_s: Annotated[float, v.seconds(0.1, 3600)] = 30.0
    # Failed polls in a row after which a center is down and is sent nothing.
    down_after_polls: Annotated[int, v.whole(1, 1000)] = 3
    # A run at a center that has been silent for this long becomes LOST (northbound UNKNOWN).
    silent_after_s: Annotated[float, v.seconds(1, 30 * 86_400)] = 300.0
    # Life of the leader's lease; a replica takes over at most this long after the leader's death.
    lease_s: Annotated[float, v.seconds(1, 3600)] = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """[auth]: accounts and tokens."""

    # Life of a login token.
    token_ttl_s: Annotated[int, v.whole(60, 366 * 86_400)] = 86_400
    # "open": anybody may create an account.
    registration: Annotated[str, v.choice("closed", "open")] = "closed"
    # Tenant of those who register.
    registration_tenant: Annotated[
        str, v.pattern("[A-Za-z0-9._-]{1,64}", "1 to 64 of A-Z, a-z, 0-9, dot, _ and -")
    ] = "default"
    # Wrong passwords in a row after which an account is frozen.
    freeze_after_failures: Annotated[int, v.whole(1, 1000)] = 10
    # Life of a signed link to a log.
    log_link_ttl_s: Annotated[int, v.whole(1, 7 * 86_400)] = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """[limits]: how much anybody may ask for; each is of one process."""

    # Requests of one account: so many a second for long, so many at once.
    requests_per_s: Annotated[float, v.seconds(0.1, 1_000_000)] = 5000.0
    request_burst: Annotated[int, v.whole(1, 1_000_000)] = 10_000
    # Failed logins of one name, and from one address: for long, and at once.
    login_failures_per_minute: Annotated[int, v.whole(1, 1_000_000)] = 10
    login_failure_burst: Annotated[int, v.whole(1, 1_000_000)] = 50
    # Accounts registered from one address.
    registrations_per_hour: Annotated[int, v.whole(1, 1_000_000)] = 20
    # Open event streams of one account.
    event_streams: Annotated[int, v.whole(1, 10_000)] = 20
    # Open event streams of all accounts.
    all_event_streams: Annotated[int, v.whole(1, 100_000)] = 1000
    # Requests of one account that are worked on at once, and that wait for their turn.
    requests_at_once: Annotated[int, v.whole(1, 100_000)] = 64
    requests_waiting: Annotated[int, v.whole(0, 1_000_000)] = 2000
    # Uploads, downloads and open logs of one account.
    transfers: Annotated[int, v.whole(1, 100_000)] = 64
    # Tokens that are none, from one address: for long, and at once.
    unknown_tokens_per_minute: Annotated[int, v.whole(1, 1_000_000)] = 60
    unknown_token_burst: Annotated[int, v.whole(1, 1_000_000)] = 200
    # Passwords that wait to be checked or hashed.
    passwords_waiting: Annotated[int, v.whole(1, 100_000)] = 100
    # Open connections.
    connections: Annotated[int, v.whole(16, 1_000_000)] = 10_000
    # A connection on which no whole request header comes for so long is closed.
    idle_connection_s: Annotated[float, v.seconds(1, 3600)] = 75.0
    # A body that has not come by then, a part of an upload, an answer of which nothing is taken.
    stalled_s: Annotated[float, v.seconds(1, 3600)] = 30.0
    # Reads or writes that wait for the database from which on requests are refused (503).
    store_waiting: Annotated[int, v.whole(1, 1_000_000)] = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitSettings:
    """[submit]: what `broker submit` fills in."""

    # Image id used without --image; "" for none.
    image: Annotated[str, v.text] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingSettings:
    """[billing]: which ended runs become bill lines, and by whose record."""

    # Runs that the broker or a center ended (preempted, evicted, lost …) are billed too.
    interrupted: Annotated[bool, v.flag, RELOAD] = False
    # "center": a line is corrected to the center's own record when one comes; "broker": it is only shown.
    record: Annotated[str, v.choice("center", "broker"), RELOAD] = "center"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """[services]: passing requests on to running online services."""

    # What users put before /services; "": server.public_url.  Another host keeps services away from
    # what browsers keep for the broker's own pages.
    public_url: Annotated[str, v.optional(v.http_url)] = ""
    # Requests and WebSockets passed on at once, to all services and to one; more are answered 503.
    max_concurrent: Annotated[int, v.whole(1, 100_000)] = 512
    max_concurrent_per_service: Annotated[int, v.whole(1, 100_000)] = 64
    # Bytes of the header of a request, and of that of an answer.
    max_header_bytes: Annotated[int, v.whole(1024, 1 << 20)] = 32 << 10
    # Bytes of a request's body; it is never kept in memory.
    max_body_bytes: Annotated[int, v.whole(1, 1 << 50)] = 10 << 30
    # Bytes of one WebSocket message, which is kept in memory.
    max_message_bytes: Annotated[int, v.whole(1024, 1 << 30)] = 4 << 20
    # For name, TCP and TLS of a connection to a service.
    connect_timeout_s: Annotated[float, v.seconds(0.1, 600)] = 5.0
    # A request is cut when nothing of it or of its answer has moved for so long.
    idle_timeout_s: Annotated[float, v.seconds(0.1, 86_400)] = 300.0
    # Life of what a signed link leaves in a browser.
    cookie_ttl_s: Annotated[int, v.whole(60, 366 * 86_400)] = 86_400


@dataclass(frozen=True, slots=True)
class NodeShapeSpec:
    """[[specs]]: a further spec beside the derived ones; its id follows from the shape."""

    name: str
    shape: NodeShape


class StatedPrice(NamedTuple):
    """[[centers.prices]]: of an accelerator by canonical name, or per core-hour of an architecture.

    The other one of `accelerator` and `arch` is "".
    """

    accelerator: str
    arch: str
    price: Price


@dataclass(frozen=True, slots=True, kw_only=True)
class CenterSettings:
    """[[centers]]: one center.  `connection` and `credentials`: its adapter's (broker.config.platforms)."""

    id: Annotated[CenterId, v.pattern("[A-Za-z0-9._-]{1,64}", "1 to 64 of A-Z, a-z, 0-9, dot, _ and -")]
    adapter: str
    # The name shown to people; "" in the file: the id.
    name: Annotated[str, v.text] = ""
    province: Annotated[str, v.text] = ""
    city: Annotated[str, v.text] = ""
    desc: Annotated[str, v.text] = ""
    state: Annotated[CenterState, v.choice(*CenterState)] = CenterState.ACTIVE
    # How often capacity and runs are looked at.
    poll_interval_s: Annotated[float, v.seconds(0.05, 3600)] = 15.0
    # Most runs submitted and not yet running there.
    max_in_flight: Annotated[int, v.whole(1, 100_000)] = 32
    # GiB of copies of data sets kept there; what waiting and living jobs read is kept beyond that.  0: all.
    dataset_cache_gib: Annotated[int, v.whole(0, 1 << 30)] = 1024
    # Paths are absolute, durations float.  May hold keys of a cipher, so it is not shown.
    connection: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    credentials: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    pools: tuple[StatedPool, ...] = ()
    prices: tuple[StatedPrice, ...] = ()
    images: tuple[Image, ...] = ()
    datasets: tuple[Asset, ...] = ()
    models: tuple[Asset, ...] = ()
    apps: tuple[Asset, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration; `source` is the file it came from."""

    server: Server = Server()
    store: StoreSettings = StoreSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    submit: SubmitSettings = SubmitSettings()
    billing: BillingSettings = BillingSettings()
    services: ServiceSettings = ServiceSettings()
    specs: tuple[NodeShapeSpec, ...] = ()
    centers: tuple[CenterSettings, ...] = ()
    source: Path | None = None
