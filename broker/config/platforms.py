"""The keys of each adapter's connection and credentials, with their limits and defaults.

What belongs here: one Platform per adapter.  What does not: reading (broker.config), and what an adapter
makes of its keys (adapters.*).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from broker.config import values as v
from broker.config.keys import Absent, Key
from broker.config.tables import ARCHITECTURES, CORES, MEMORY_GIB


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
        "cores": Key(CORES, Absent.OMITTED),
        "memory_gib": Key(MEMORY_GIB, Absent.OMITTED),
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
