"""Bodies of requests: names, types, limits and meanings of their fields.

What belongs here: what can be judged by the body alone, with the code of Annex B for each fault.
What does not: anything that needs the store (admission.py) and telling the failures (reading.py).

Integers written as 1.0 are integers, as JSON Schema has it; true and "1" are not.  A field that is
null is absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from broker.api.stated import NO_NUL, NUL_FREE, Number, Stated, one_of, whole_text

ANNEX = "annex_"
"""Prefix of an error type that is a code of Annex B."""

MAX_NODES = 100_000
MAX_SECONDS = 10 * 365 * 86_400
MAX_PRICE_CNY = 1_000_000_000
MAX_FLOPS = 10**24
MAX_COMMAND_BYTES = 64 << 10
MAX_ENV_BYTES = 32 << 10
MAX_INTEGER_DIGITS = 40
DEFAULT_TENANT = "default"

_JOB_NAME = re.compile(r"[0-9A-Za-z_-]*", re.ASCII)
_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_LABEL_KEY = re.compile(r"[A-Za-z0-9._/-]{1,63}", re.ASCII)
_ACCOUNT_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}", re.ASCII)
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def annex(code: str, text: str, *, field: str = "") -> NoReturn:
    """Refuse with a code of Annex B; an object names the `field` in it that is at fault."""
    context = {"text": text, "field": field}
    raise PydanticCustomError(f"{ANNEX}{code}", "{text}", context)


# ---------------------------------------------------------------- kinds of fields


def _whole(value: Any) -> Any:
    """An integral number as int; what else it is, strict mode refuses."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return value
    if value and Decimal(value).adjusted() >= MAX_INTEGER_DIGITS:
        annex("0204", f"must have at most {MAX_INTEGER_DIGITS} digits")
    return int(value) if value == int(value) else value


def _is_whole(value: Any) -> Any:
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("int_type", "must be an integer")
    return value


def number(value: Any) -> Any:
    """A JSON number, exact."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("number_type", "must be a number")
    return value if isinstance(value, Decimal) else Decimal(value)


def is_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "must be a text")
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        annex("0202", "must not have a NUL character")
    return value


def _at_most_bytes(value: str, limit: int) -> None:
    size = len(value.encode())
    if size > limit:
        annex("0204", f"must have at most {limit} bytes, not {size}")


Whole = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, AfterValidator(_no_nul), NO_NUL]
Seconds = Annotated[Whole, Field(ge=1, le=MAX_SECONDS)]


def _job_name(value: str) -> str:
    if not 1 <= len(value) <= 64:
        annex("0206", f"must have 1 to 64 characters, has {len(value)}")
    if not _JOB_NAME.fullmatch(value):
        annex("0205", "must consist of 0-9, A-Z, a-z, _ and -")
    return value


def _job_desc(value: str) -> str:
    if len(value) > 256:
        annex("0207", f"must have at most 256 characters, has {len(value)}")
    return _no_nul(value)


def _image_url(value: str) -> str:
    if len(value) > 1024:
        annex("0204", f"must have 1 to 1024 characters, has {len(value)}")
    if not value.isprintable() or " " in value:  # of all white space a blank alone is printable
        annex("0202", "must not have white space or control characters")
    return value


def _command(value: str) -> str:
    _at_most_bytes(value, MAX_COMMAND_BYTES)
    return _no_nul(value)


def _env_key(value: str) -> str:
    if len(value) > 255:
        annex("0204", f"must have at most 255 characters, has {len(value)}")
    if not _ENV_KEY.fullmatch(value):
        annex("0202", "must be a letter or _ followed by letters, digits and _")
    if value.startswith("BROKER_"):
        annex("0202", "must not start with BROKER_, which is the broker's own")
    return value


def _env_value(value: str) -> str:
    _at_most_bytes(value, MAX_ENV_BYTES)
    return _no_nul(value)


def _price(value: Decimal) -> Decimal:
    if not 0 <= value <= MAX_PRICE_CNY:
        annex("0204", f"must be 0 to {MAX_PRICE_CNY} CNY")
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    if exponent < -6:
        annex("0202", "must have at most six decimal places")
    return value


def _labels(value: dict[str, str]) -> dict[str, str]:
    for key, text in value.items():
        if len(text) > 255:
            annex("0204", f"the value of {key!r} must have at most 255 characters, has {len(text)}")
    for key, text in value.items():
        if not _LABEL_KEY.fullmatch(key):
            annex("0202", "keys must be 1 to 63 of A-Z, a-z, 0-9, '.', '_', '/' and '-'")
        _no_nul(text)
    return value


def _auth_method(value: Any) -> str:
    """The standard types it String and shows a list: password, ["password"] and the list's text."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = value[0] if len(value) == 1 else ""
    text: str = is_text(value)
    if text not in ("password", '["password"]'):
        annex("0202", 'must be "password"')
    return "password"


def _pattern(pattern: re.Pattern[str], text: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            annex("0202", text)
        return value

    return AfterValidator(check)


Password = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_no_nul), NO_NUL]
ShortText = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_no_nul), NO_NUL]
AccountName = Annotated[
    str,
    _pattern(_ACCOUNT_NAME, "must be 1 to 64 of A-Z, a-z, 0-9, '.', '_', '@', '-'"),
    Stated(pattern=whole_text(_ACCOUNT_NAME)),
]
TenantName = Annotated[
    str,
    _pattern(_TENANT, "must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'"),
    Stated(pattern=whole_text(_TENANT)),
]
RoleName = Annotated[Literal["user", "tenant-admin", "operator"], BeforeValidator(is_text)]


# ---------------------------------------------------------------- bodies


class Body(BaseModel):
    """A JSON object whose fields are known, typed strictly, and absent when null."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)
    parts: ClassVar[tuple[type[Body], ...]] = ()

    @classmethod
    def known(cls) -> set[str]:
        """Names of the fields of this object and of the objects in it."""
        own = {to_camel(name) for name in cls.model_fields}
        return own.union(*(part.known() for part in cls.parts))

    @classmethod
    def also_missing(cls, data: dict[str, Any]) -> Iterator[str]:
        """Paths that are missing although no single field of them is required."""
        return iter(())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if None not in data.values():
            return data
        fields = {to_camel(name) for name in cls.model_fields}
        return {key: value for key, value in data.items() if value is not None or key not in fields}


class LoginUser(Body):
    name: Annotated[Text, Field(description="User name.")]
    password: Annotated[Text, Field(description="Password.")]


class Login(Body):
    parts = (LoginUser,)
    auth_method: Annotated[
        str,
        BeforeValidator(_auth_method),
        Stated(enum=["password", ["password"], '["password"]'], type=["string", "array"]),
        Field(description='"password".'),
    ]
    user: LoginUser


class ChangePassword(Body):
    old: Annotated[Text, Field(description="The present password.")]
    new: Annotated[Password, Field(description="The new password.")]


class EnvEntry(Body):
    key: Annotated[
        str,
        AfterValidator(_env_key),
        Stated(pattern=f"^(?!BROKER_){_ENV_KEY.pattern}$", maxLength=255),
        Field(description="A letter or _, then also digits; not BROKER_ at its start."),
    ]
    value: Annotated[str, AfterValidator(_env_value), NO_NUL, Field(description="At most 32 KiB.")]


class Config(Body):
    """What a job asks for."""

    parts = (EnvEntry,)
    model_config = one_of({"specId": {"type": "string"}}, {"minComputingPower": {"type": "integer"}})
    center_id: Annotated[
        list[Text] | None,
        Field(max_length=1000, description="Candidate centers; empty or absent: the broker chooses."),
    ] = None
    spec_id: Annotated[str | None, Field(description="A spec of /resource/specs, per node.")] = None
    min_computing_power: Annotated[
        Whole | None,
        Field(
            ge=1,
            le=MAX_FLOPS,
            description="FP16 FLOPS per node, instead of specId: any spec at least so strong.",
        ),
    ] = None
    node_count: Annotated[Whole, Field(ge=1, le=MAX_NODES, description="Nodes.")] = 1
    image_id: Annotated[Text, Field(description="An image of /resource/images; or imageUrl.")] = ""
    image_url: Annotated[
        str,
        AfterValidator(_image_url),
        Stated(pattern=r"^\S*$", maxLength=1024),
        Field(description="A public image; or imageId. 1 to 1024 characters."),
    ] = ""
    command: Annotated[
        str, AfterValidator(_command), NO_NUL, Field(description="Run command, at most 64 KiB.")
    ] = ""
    priority: Annotated[
        Literal["low", "normal", "high"],
        BeforeValidator(is_text),
        Field(description="Order in the queue; never preempts by itself."),
    ] = "normal"
    is_vip: Annotated[bool, Field(description="VIP job; needs the right.")] = False
    preempt_policy: Annotated[
        Annotated[Literal[1, 2], BeforeValidator(_is_whole)] | None,
        Field(description="VIP only. 1 (default): wait for lower jobs to end; 2: stop them."),
    ] = None
    vip_node_names: Annotated[
        list[ShortText] | None,
        Field(max_length=1024, description="VIP only. Nodes held for the job, where the platform can."),
    ] = None
    preemptible: Annotated[
        bool | None,
        Field(description="May be preempted. Default true for training jobs of low and normal, else false."),
    ] = None
    estimated_run_time: Annotated[Seconds | None, Field(description="Seconds; a planning hint.")] = None
    max_run_time: Annotated[Seconds | None, Field(description="Seconds; stopped after that.")] = None
    max_price: Annotated[
        Annotated[
            Decimal,
            BeforeValidator(number),
            AfterValidator(_price),
            Number(minimum=0, maximum=MAX_PRICE_CNY),
        ]
        | None,
        Field(description="CNY, ceiling for the whole job at the estimate; at most six decimal places."),
    ] = None
    max_retries: Annotated[
        Whole | None,
        Field(
            ge=0,
            le=1000,
            description="Training jobs: for the job's own failures, default 0. Online services: for every end"
            " of their own, default 10.",
        ),
    ] = None
    on_lost: Annotated[
        Literal["wait", "rerun", "fail"],
        BeforeValidator(is_text),
        Field(description="When a center is silent about a run: wait; run again, maybe twice; or fail."),
    ] = "wait"
    resumable: Annotated[bool, Field(description="Can go on from BROKER_CHECKPOINT_DIR.")] = False
    checkpoint_interval: Annotated[Seconds | None, Field(description="Seconds between checkpoints.")] = None
    stop_grace: Annotated[Whole, Field(ge=0, le=3600, description="Seconds, capped by the center.")] = 30
    # Made anew by a factory: pydantic takes as long to copy an empty list as to check the rest of a body.
    env: Annotated[
        list[EnvEntry], Field(max_length=256, description="Environment variables."), Stated(default=[])
    ] = Field(default_factory=list)
    dataset_ids: Annotated[
        list[Text], Field(max_length=256, description="Data the job reads."), Stated(default=[])
    ] = Field(default_factory=list)
    port: Annotated[
        Whole | None,
        Field(ge=1, le=65_535, description="Online services only: where it listens; see BROKER_PORT."),
    ] = None
    public: Annotated[
        bool | None, Field(description="Online services only: its address needs no token. Default false.")
    ] = None
    labels: Annotated[
        dict[str, str],
        Field(max_length=64),
        AfterValidator(_labels),
        Stated(
            propertyNames={"pattern": whole_text(_LABEL_KEY)},
            additionalProperties={"type": "string", "maxLength": 255, "pattern": NUL_FREE},
            default={},
        ),
        Field(description="Searchable."),
    ] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, data: Any) -> Any:
        """The standard's text also says image_id and image_url."""
        if not isinstance(data, dict):
            return data
        renamed = dict(data)
        for other, name in (("image_id", "imageId"), ("image_url", "imageUrl")):
            if other in renamed and name not in renamed:
                renamed[name] = renamed.pop(other)
        return renamed

    @model_validator(mode="after")
    def _belongs_together(self) -> Config:
        if self.image_id and self.image_url:
            annex("0202", "only one of imageId and imageUrl may be given", field="imageUrl")
        if self.spec_id and self.min_computing_power is not None:
            text = "only one of specId and minComputingPower may be given"
            annex("0202", text, field="minComputingPower")
        for name in ("preempt_policy", "vip_node_names"):
            if getattr(self, name) is not None and not self.is_vip:
                annex("0202", "is for VIP jobs: it needs isVip true", field=to_camel(name))
        keys = [entry.key for entry in self.env]
        if len(set(keys)) < len(keys):
            double = next(key for key in keys if keys.count(key) > 1)
            annex("0202", f"must not have the key {double!r} twice", field="env")
        return self


class CreateJob(Body):
    """The body of a create."""

    parts = (Config,)
    job_name: Annotated[
        str,
        AfterValidator(_job_name),
        Stated(pattern=whole_text(_JOB_NAME), minLength=1, maxLength=64),
        Field(description="1 to 64 of 0-9 A-Z a-z _ -."),
    ]
    job_desc: Annotated[
        str,
        AfterValidator(_job_desc),
        Stated(pattern=NUL_FREE, maxLength=256),
        Field(description="At most 256 characters."),
    ] = ""
    config: Config

    @classmethod
    def also_missing(cls, data: dict[str, Any]) -> Iterator[str]:
        config = data.get("config")
        if isinstance(config, dict) and all(config.get(n) is None for n in ("specId", "minComputingPower")):
            yield "config.specId"


class CreateTrainJob(CreateJob):
    """A training job has no address."""

    @model_validator(mode="after")
    def _no_service(self) -> CreateTrainJob:
        for name in ("port", "public"):
            if getattr(self.config, name) is not None:
                annex("0202", "is for online services only", field=f"config.{name}")
        return self


class Resolve(Body):
    """An operator's word on a run in doubt or lost: exactly one of the three."""

    model_config = one_of(
        {"neverRan": {"const": True}}, {"remote": {"type": "string"}}, {"ended": {"type": "string"}}
    )
    never_ran: Annotated[bool | None, Field(description="true: it never ran.")] = None
    remote: Annotated[ShortText | None, Field(description="Its name at the center.")] = None
    ended: Annotated[Literal["SUCCEEDED", "FAILED", "STOPPED"] | None, Field(description="How it ended.")] = (
        None
    )

    @classmethod
    def also_missing(cls, data: dict[str, Any]) -> Iterator[str]:
        if all(data.get(name) is None for name in ("neverRan", "remote", "ended")):
            yield "neverRan, remote or ended"

    @model_validator(mode="after")
    def _exactly_one(self) -> Resolve:
        if self.never_ran is False:
            annex("0202", "must be true when it is given", field="neverRan")
        if sum(value is not None for value in (self.never_ran, self.remote, self.ended)) > 1:
            text = "only one of neverRan, remote and ended may be given"
            annex("0202", text, field="remote" if self.remote else "ended")
        return self


class CreateAccount(Body):
    name: Annotated[AccountName, Field(description="1 to 64 of A-Z a-z 0-9 . _ @ -.")]
    password: Annotated[Password, Field(description="1 to 1024 characters.")]
    role: Annotated[RoleName, Field(description="What the account may see and do.")] = "user"
    tenant: Annotated[
        TenantName | None,
        Field(description="Created when it is new; absent: default, or a tenant-admin's own."),
    ] = None


class Right(Body):
    right: Annotated[Literal["vip"], BeforeValidator(is_text), Field(description="The right.")]


class SetPassword(Body):
    password: Annotated[Password, Field(description="The new password.")]


class CenterCall(Body):
    """An operator's raw call to a center's platform."""

    method: Annotated[
        Literal["GET", "POST", "PUT", "PATCH", "DELETE"],
        BeforeValidator(is_text),
        Field(description="HTTP method."),
    ]
    path: Annotated[Text, Field(min_length=1, max_length=4096, description="Below the center's address.")]
    body: Annotated[str | None, Field(description="Sent as it is, as JSON.")] = None


class RunCommand(Body):
    """The arguments of a vendor command, by name."""

    arguments: Annotated[dict[str, Any], Field(max_length=64, description="By name.")] = {}
