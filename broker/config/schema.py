"""Every key of broker.toml with its type, limits, default and effect, and nothing that reads them.

What belongs here: the frozen settings and the key tables of pools, prices, images, specs and of each
adapter's connection and credentials.  What does not: reading (broker.config) and what a kind of
value is (broker.config.values).  A field's annotation holds its reader and limits; RELOAD marks a
key that a running broker takes over on SIGHUP, as it does centers; the others need a new process.
Durations end in `_s` and are seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple, get_type_hints
from zoneinfo import ZoneInfo

from broker.adapter import Asset, Image, StatedPool
from broker.config import values as v
from broker.core.model import CenterId, CenterState, NodeShape, Price

RELOAD: Final = "reload"
POLICY_FILE: Final = "policy.toml"
ARCHITECTURES: Final = ("X86", "ARM")  # the standard's values of `arch`
DATA: Final = "/var/lib/broker"


# ---------------------------------------------------------------- the sections


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
    # Life of the leader's lease; a replica takes over this long after the leader's death.
    lease_s: Annotated[float, v.seconds(1, 3600)] = 15.0


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
    """[[centers]]: one center.  `connection` and `credentials` have the adapter's keys (PLATFORMS)."""

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


# ---------------------------------------------------------------- key tables


class Absent(Enum):
    """What the absence of a key without a default means."""

    REQUIRED = "required"  # an error
    OMITTED = "omitted"  # the key stays out of the result


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table: its reader, and its default as the reader would give it back."""

    read: v.Read
    default: Any = Absent.REQUIRED


def keys_of(section: type) -> dict[str, Key]:
    """The keys of a settings class: its fields whose annotation has a reader."""
    hints = get_type_hints(section, include_extras=True)
    return {
        each.name: Key(
            hints[each.name].__metadata__[0], Absent.REQUIRED if each.default is MISSING else each.default
        )
        for each in fields(section)
        if hasattr(hints[each.name], "__metadata__")
    }


def restart_keys(section: type) -> tuple[str, ...]:
    """The keys of a settings class that only a new process can apply."""
    hints = get_type_hints(section, include_extras=True)
    return tuple(name for name in keys_of(section) if RELOAD not in hints[name].__metadata__)


_CORES = v.whole(1, 65_536)
_MEMORY = v.whole(1, 1 << 20)
_CARDS = v.whole(0, 1024)

SHAPE_KEYS: Mapping[str, Key] = {  # per node; memory in GiB, accelerator memory per card
    "arch": Key(v.choice(*ARCHITECTURES)),
    "cores": Key(_CORES),
    "memory_gib": Key(_MEMORY),
    "accelerator": Key(v.accelerator, ""),
    "accelerators": Key(_CARDS, 0),
    "accelerator_memory_gib": Key(v.whole(0, 65_536), 0),
    "card_permille": Key(v.whole(1, 1000), 1000),  # what part of a card each accelerator is
}
SPEC_KEYS: Mapping[str, Key] = {"name": Key(v.filled), **SHAPE_KEYS}
POOL_KEYS: Mapping[str, Key] = {
    "native": Key(v.text, ""),
    **SHAPE_KEYS,
    "split_permille": Key(v.whole(0, 500), 0),  # steps in which cards are given away; 0: whole cards only
    "nodes": Key(v.whole(1, 1_000_000)),
}
PRICE_KEYS: Mapping[str, Key] = {  # of accelerator and arch exactly one; from and to only together
    "accelerator": Key(v.accelerator, ""),
    "arch": Key(v.choice(*ARCHITECTURES), ""),
    "price": Key(v.price),
    "from": Key(v.minute_of_day(end=False), 0),
    "to": Key(v.minute_of_day(end=True), 24 * 60),
    "days": Key(v.weekdays, frozenset(range(7))),
}
IMAGE_KEYS: Mapping[str, Key] = {
    "id": Key(v.filled),
    "native": Key(v.text, ""),  # "": the id
    "name": Key(v.text, ""),
    "desc": Key(v.text, ""),
    "arch": Key(v.choice("", *ARCHITECTURES), ""),
    "processor": Key(v.text, ""),
    "os": Key(v.text, ""),
    "framework": Key(v.text, ""),
    "installed_lib": Key(v.array_of(v.filled), ()),
}
ASSET_KEYS: Mapping[str, Key] = {  # of datasets, models and apps
    "id": Key(v.pattern("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 of A-Z, a-z, 0-9, dot, _ and -")),
    "native": Key(v.text, ""),  # "": the id; of a data set the path that jobs there see, or the platform's id
    "title": Key(v.text, ""),  # "": the id
    "desc": Key(v.text, ""),
    "labels": Key(v.text, ""),  # between commas: the categories
    "bytes": Key(v.whole(0, 1 << 60), 0),
}


# ---------------------------------------------------------------- adapters


@dataclass(frozen=True, slots=True)
class Needs:
    """With `option = value`, a further key of the center is required, named from the center on."""

    option: str
    value: str
    key: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Platform:
    """The keys of one adapter.  `together`: credentials given both or neither; `one_of`: exactly one."""

    connection: Mapping[str, Key]
    required: Collection[str] = ()  # credentials
    optional: Collection[str] = ()
    one_of: tuple[str, ...] = ()
    together: tuple[tuple[str, str], ...] = ()
    needs: tuple[Needs, ...] = ()

    @property
    def credentials(self) -> tuple[str, ...]:
        return (*self.required, *self.one_of, *self.optional)


def _maybe(*names: str, read: v.Read = v.filled) -> dict[str, Key]:
    return {name: Key(read, Absent.OMITTED) for name in names}


REMOTE_KEYS: Mapping[str, Key] = {
    "ca_file": Key(v.path_text, Absent.OMITTED),  # PEM; without it the system's authorities
    "timezone": Key(v.timezone, "Asia/Shanghai"),  # of the platform's own times
    "timeout_s": Key(v.seconds(0.1, 3600), 30.0),  # of one HTTP call
    "requests_per_s": Key(v.seconds(0.01, 10_000), 10.0),
    "concurrency": Key(v.whole(1, 1000), 8),  # open HTTP calls at once
    "output": Key(v.output, Absent.OMITTED),
}

LOCAL = Platform(
    {
        "work_dir": Key(v.path_text),
        "cores": Key(_CORES, Absent.OMITTED),
        "memory_gib": Key(_MEMORY, Absent.OMITTED),
        "run_as": Key(v.filled, Absent.OMITTED),
    }
)

AIHUB = Platform(
    {
        **REMOTE_KEYS,
        "user_url": Key(v.http_url),
        **_maybe("tag_url", "training_url", "quota_url", "dataset_url", "workflow_url", read=v.http_url),
        **_maybe("warehouse_url", "evaluation_url", "s3_url", read=v.http_url),
        "project_id": Key(v.whole(0), Absent.OMITTED),
        "storage_ids": Key(v.array_of(v.whole(0)), ()),
        "mode": Key(v.choice("training", "quota"), "training"),
        "allow_preempt_kill": Key(v.flag, False),
        "sku_cnt": Key(v.choice("per-instance", "total"), "per-instance"),
        "sku_cards": Key(v.whole(1, 64), 1),
        "category_id": Key(v.whole(1, 4), 1),
        "framework": Key(v.choice("PyTorchJob", "MpiJob"), "PyTorchJob"),
        "shm_gib": Key(v.whole(0, 1 << 20), Absent.OMITTED),
        "s3_bucket": Key(v.filled, "broker"),
    },
    required=("username", "password"),
    optional=("s3_token",),
    needs=(
        Needs("mode", "training", ("connection", "training_url")),
        Needs("mode", "quota", ("connection", "quota_url")),
    ),
)

CECSTACK = Platform(
    {
        **REMOTE_KEYS,
        "endpoint": Key(v.http_url),
        "region": Key(v.filled),  # the platform wants it in every call
        **_maybe("project_id", "model_id", read=v.identifier),
        "resource_ids": Key(v.array_of(v.filled), ()),
        "signature": Key(v.choice("none", "hmac-sha256"), "none"),
        # Of the packages; the platform does not tell it.
        "cpu_arch": Key(v.choice(*ARCHITECTURES), Absent.OMITTED),
        **_maybe("vpc_id", "subnet_id", "eip_id", "eip", "volume_mount"),
        "node_selector": Key(v.filled, "train=true"),
        # Jobs of several nodes: none, or the platform's own fine-tuning.
        "multi_node": Key(v.choice("none", "fine-tuning"), "none"),
        # How late its lists, states and remaining amounts may be.
        "lookup_lag_s": Key(v.seconds(0, 3600), 10.0),
        "extra_headers": Key(v.table_of(v.hidden), Absent.OMITTED),
    },
    optional=("access_key", "secret_key"),
    needs=(
        Needs("signature", "hmac-sha256", ("credentials", "access_key")),
        Needs("signature", "hmac-sha256", ("credentials", "secret_key")),
    ),
)

AMPHA = Platform(
    {
        **REMOTE_KEYS,
        "base_url": Key(v.http_url),
        "user_group_id": Key(v.identifier, Absent.OMITTED),
        "spec_mode": Key(v.choice("free", "preset"), "free"),
        "task_api": Key(v.choice("trainOperator", "computationTask", "fineTune"), "trainOperator"),
        "password_mode": Key(v.choice("plain", "aes-cbc", "aes-ecb"), "plain"),
        **_maybe("password_key", "password_iv", read=v.hidden),
        "qos_ids": Key(v.table_of(v.identifier), Absent.OMITTED),  # the platform's user id to its priority id
        "paths": Key(v.table_of(v.filled), Absent.OMITTED),  # of its API, where an installation differs
        "lookup_lag_s": Key(v.whole(0, 3600), 30),  # a task created longer ago than this is in the lists
        "report_lag_s": Key(v.whole(0, 3600), 10),  # a task started longer ago than this is in what is free
        "algorithm_path": Key(v.filled, "/"),
        "startup_file": Key(v.filled, "main.sh"),
        "extra_inputs": Key(v.filled, Absent.OMITTED),  # where tasks find a further data set, with {key}
        "online_services": Key(v.choice("none", "models"), "none"),
        "service_gateway": Key(v.http_url, Absent.OMITTED),
    },
    required=("username", "password"),
    optional=(
        "tenant_username",
        "tenant_password",
        "system_username",
        "system_password",
        "callback_access_key",
        "callback_secret_key",
        "signature_key",
        "signature_iv",
    ),
    together=(
        ("tenant_username", "tenant_password"),
        ("system_username", "system_password"),
        ("callback_access_key", "callback_secret_key"),
    ),
    needs=(
        Needs("password_mode", "aes-cbc", ("connection", "password_key")),
        Needs("password_mode", "aes-ecb", ("connection", "password_key")),
    ),
)

SLURM = Platform(
    {
        **REMOTE_KEYS,
        "url": Key(v.http_url),
        "api_version": Key(
            v.pattern(r"v[0-9]+\.[0-9]+\.[0-9]+", 'a version such as "v0.0.40"'), Absent.OMITTED
        ),
        "user": Key(v.filled, Absent.OMITTED),
        "partitions": Key(v.array_of(v.filled), ()),  # none: every partition
    },
    one_of=("token", "token_command"),
)

KUBERNETES = Platform(
    {
        **REMOTE_KEYS,
        "kubeconfig": Key(
            v.path_text, Absent.OMITTED
        ),  # without it the service account of the broker's own pod
        **_maybe("context", "queue"),
        "namespace": Key(v.filled, "default"),
    }
)

TAI123 = Platform(
    {
        **REMOTE_KEYS,
        "base_url": Key(v.http_url),
        # A broker on the other side may stop others for a VIP job (preemptPolicy 2).
        "allow_preempt_kill": Key(v.flag, False),
        # Online services are made public there, because requests to them come without its tokens.
        "public_services": Key(v.flag, False),
    },
    required=("username", "password"),
)

PLATFORMS: Mapping[str, Platform] = {
    "local": LOCAL,
    "aihub": AIHUB,
    "cecstack": CECSTACK,
    "ampha": AMPHA,
    "slurm": SLURM,
    "kubernetes": KUBERNETES,
    "tai123": TAI123,
}
