"""The configuration: every error at once with key and line, what a good file becomes, reload."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker import config
from broker.adapter import Image, StatedPool
from broker.config import ConfigError, Problem, Settings
from broker.config.keys import keys_of, restart_keys
from broker.core.model import CenterState, NodeShape, Price
from tests.daemon_process import A800_POOL

CONFIG = Path(__file__).parent.parent / "config"
BASE = Path("/etc/broker")

CENTER = """
[[centers]]
id = "one"
adapter = "local"
[centers.connection]
work_dir = "work"
"""


def settings(text: str, **environ: str) -> Settings:
    return config.parse(text, base=BASE, environ=environ)


def problems(text: str, **environ: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        settings(text, **environ)
    return caught.value.errors


def problem(text: str, **environ: str) -> Problem:
    """The only error of a text."""
    (only,) = problems(text, **environ)
    return only


def remote(adapter: str, connection: str, credentials: str = "") -> str:
    return (
        f'[[centers]]\nid = "one"\nadapter = "{adapter}"\n'
        f"[centers.connection]\n{connection}\n[centers.credentials]\n{credentials}\n"
    )


# ---------------------------------------------------------------- what a good file gives


def test_an_empty_file_gives_the_documented_defaults() -> None:
    found = settings("")
    assert found.server.listen == "127.0.0.1:8238"
    assert found.server.address == ("127.0.0.1", 8238)
    assert found.server.public_url == "http://127.0.0.1:8238"
    assert (found.server.name, found.server.timezone) == ("bk", "Asia/Shanghai")
    assert found.server.max_page_size == 1000
    assert found.server.max_body_bytes == 1048576
    assert found.server.max_upload_bytes == 107374182400
    assert found.store.url == "sqlite:////var/lib/broker/broker.db"
    assert found.store.data_dir == Path("/var/lib/broker/data")
    assert (found.scheduler.interval_s, found.scheduler.solve_limit_s) == (2.0, 0.5)
    assert (found.auth.token_ttl_s, found.auth.registration) == (86400, "closed")
    assert found.submit.image == ""
    assert (found.specs, found.centers, found.source) == ((), (), None)


def test_a_center_becomes_domain_types() -> None:
    found = settings(
        CENTER
        + A800_POOL
        + """
[[centers.prices]]
accelerator = "Nvidia/GPU/A800"
price = 12.5
from = "22:00"
to = "08:00"
days = ["mon", "sun"]
[[centers.prices]]
arch = "ARM"
price = 1
[[centers.images]]
id = "pytorch-2.3"
native = "registry.local/pytorch:2.3"
arch = "X86"
processor = "GPU"
framework = "PyTorch"
[[centers.images]]
id = "plain"
"""
    ).centers[0]
    assert (found.id, found.name, found.state) == ("one", "one", CenterState.ACTIVE)
    assert isinstance(found.state, CenterState)
    assert (found.poll_interval_s, found.max_in_flight) == (15.0, 32)
    assert found.connection == {"work_dir": "/etc/broker/work"}
    shape = NodeShape("X86", 128, 1024, "Nvidia/GPU/A800", 8, 80)
    assert found.pools == (StatedPool("29", shape, 4),)
    night = Price(12_500_000, frozenset({0, 6}), start_min=1320, end_min=480)
    assert found.prices == (("Nvidia/GPU/A800", "", night), ("", "ARM", Price(1_000_000)))
    assert found.images == (
        Image("pytorch-2.3", "registry.local/pytorch:2.3", arch="X86", processor="GPU", framework="PyTorch"),
        Image("plain", "plain"),
    )


def test_remote_connections_have_their_defaults_and_plain_types() -> None:
    found = settings(
        remote(
            "aihub",
            'user_url = "https://a/u/"\ntraining_url = "https://a/t"\ntimeout_s = 2.5\nca_file = "ca"',
            'username = "u"\npassword = "p"',
        )
    ).centers[0]
    assert found.connection["user_url"] == "https://a/u"
    assert found.connection["timeout_s"] == 2.5
    assert isinstance(found.connection["timeout_s"], float)
    assert found.connection["ca_file"] == "/etc/broker/ca"
    assert found.connection["timezone"] == "Asia/Shanghai"
    assert (found.connection["mode"], found.connection["allow_preempt_kill"]) == ("training", False)
    assert "output" not in found.connection
    with pytest.raises(TypeError):
        found.connection["mode"] = "quota"  # type: ignore[index]


def test_relative_places_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    (tmp_path / "mine.toml").write_text("")
    file.write_text(
        '[store]\nurl = "sqlite:///b.db?timeout=5"\ndata_dir = "data"\n[scheduler]\npolicy = "mine.toml"\n'
        '[[centers]]\nid = "a"\nadapter = "local"\nconnection.work_dir = "~/w"\n'
    )
    found = config.load(file, environ={"HOME": "/home/u"})
    assert found.source == file
    assert found.store.url == f"sqlite:///{tmp_path}/b.db?timeout=5"
    assert found.store.data_dir == tmp_path / "data"
    assert found.scheduler.policy == tmp_path / "mine.toml"
    assert found.centers[0].connection["work_dir"] == "/home/u/w"


def test_policy_beside_the_file_wins_over_the_packaged_one(tmp_path: Path) -> None:
    for text in ("", '[scheduler]\npolicy = "policy.toml"'):
        assert config.parse(text, base=tmp_path, environ={}).scheduler.policy == CONFIG / "policy.toml"
    (tmp_path / "policy.toml").write_text("")
    assert config.parse("", base=tmp_path, environ={}).scheduler.policy == tmp_path / "policy.toml"
    assert problem('\n[scheduler]\npolicy = "gone.toml"') == Problem(
        "scheduler.policy", 3, "names the file /etc/broker/gone.toml, which does not exist"
    )


def test_accelerators_become_canonical_and_unknown_ones_are_errors() -> None:
    text = (
        '[[specs]]\nname = "a"\narch = "X86"\ncores = 8\nmemory_gib = 8\naccelerator = "{}"\n'
        "accelerators = 1\naccelerator_memory_gib = 80\n"
    )

    def known(name: str) -> str | None:
        return {"a800": "Nvidia/GPU/A800"}.get(name.lower())

    found = config.parse(text.format("A800"), base=BASE, environ={}, known_accelerator=known)
    assert found.specs[0].shape.accelerator == "Nvidia/GPU/A800"
    with pytest.raises(ConfigError) as caught:
        config.parse(text.format("A80"), base=BASE, environ={}, known_accelerator=known)
    (only,) = caught.value.errors
    assert (only.key, only.line) == ("specs[0].accelerator", 6)
    assert '"A80"' in only.message


# ---------------------------------------------------------------- all errors at once


def test_five_errors_give_five_problems_with_keys_and_lines() -> None:
    text = """\
[server]
name = "Broker"
listen_on = "127.0.0.1:1"

[[centers]]
id = "a"
adapter = "local"
connection = { work_dir = "w" }

[[centers.pools]]
native = "x"
arch = "X86"
cores = 1
memory_gib = 1
nodes = 1
[[centers.pools]]
native = "y"
arch = "X86"
cores = -3
memory_gib = 1
nodes = 1

[[centers]]
id = "a"
adapter = "local"
[centers.connection]
"""
    found = problems(text)
    assert [(each.key, each.line) for each in found] == [
        ("server.name", 2),
        ("server.listen_on", 3),
        ("centers[0].pools[1].cores", 19),
        ("centers[1].id", 24),
        ("centers[1].connection.work_dir", 26),
    ]
    assert found[1].message == "is not a known key; did you mean listen?"
    assert found[2].message == "is -3; must be an integer from 1 to 65536"
    assert found[3].message == 'is "a", as centers[0].id (line 6); must differ'
    assert found[4].message == "is missing"


def test_errors_are_rendered_one_per_line_with_file_and_line() -> None:
    with pytest.raises(ConfigError) as caught:
        settings('[server]\nname = 5\n[auth]\nregistration = "maybe"')
    assert config.render_errors(caught.value, Path("etc/b.toml")).splitlines() == [
        "etc/b.toml:2: server.name: is 5; must be 1 to 8 of a-z and 0-9, starting with a letter",
        'etc/b.toml:4: auth.registration: is "maybe"; must be one of "closed", "open"',
    ]
    with pytest.raises(ConfigError) as caught:
        settings("a = \n")
    assert config.render_errors(caught.value, Path("b")).startswith("b:1: is not TOML: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[server]\nname = bk\n", 2),
        ('[server]\nname = "a"\nname = "b"\n', 3),
        ("[server]\n[store]\n[server]\n", 3),
        ("a = 1\n\nb = [1,\n", 4),
        ("a = " + "9" * 5000, 1),
        ("a = " + "[" * 5000, 1),
    ],
)
def test_a_syntax_error_is_one_problem_with_its_line(text: str, line: int) -> None:
    found = problem(text)
    assert (found.key, found.line) == ("", line)


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "none.toml", environ={})
    (tmp_path / "latin.toml").write_bytes(b"# a\n# \xe9\n")
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "latin.toml", environ={})
    assert caught.value.errors == (Problem("", 2, "is not UTF-8 text"),)


POOL = '[[centers.pools]]\narch = "X86"\ncores = 4\nmemory_gib = 8\nnodes = 1\n'
PRICE = '[[centers.prices]]\narch = "X86"\nprice = 1\n'

ONE_ERROR = [
    # text, key, a word of the message
    ('[sever]\nname = "a"', "sever", "did you mean server?"),
    ("x = 1", "x", "known here: server, store"),
    ("server = 5", "server", "must be a table: [server]"),
    ('[server]\nlisten = ":8238"', "server.listen", "host:port"),
    ('[server]\nlisten = "127.0.0.1:65536"', "server.listen", "host:port"),
    ('[server]\npublic_url = "ftp://x"', "server.public_url", "http://"),
    ('[server]\npublic_url = "http://x:99999"', "server.public_url", "http://"),
    ('[server]\nname = "abcdefghi"', "server.name", "1 to 8"),
    ('[server]\nname = "1a"', "server.name", "starting with a letter"),
    ('[server]\ntimezone = "Mars/Olympus"', "server.timezone", "time zone"),
    ('[server]\ntimezone = "Asia"', "server.timezone", "time zone"),
    ('[server]\ntimezone = "../etc"', "server.timezone", "time zone"),
    ("[server]\nmax_page_size = true", "server.max_page_size", "is true; must be an integer"),
    ("[server]\nmax_page_size = 2.0", "server.max_page_size", "is 2.0; must be an integer"),
    ('[server]\nlog_level = "loud"', "server.log_level", '"debug"'),
    ('[store]\nurl = "mysql://h/db"', "store.url", 'scheme "mysql"'),
    ('[store]\nurl = "sqlite:///:memory:"', "store.url", "names no database file"),
    ('[store]\nurl = "sqlite://"', "store.url", "names no database file"),
    ('[store]\nurl = "postgresql://h"', "store.url", "names no database"),
    ("[store]\nidempotency_retention_days = 6", "store.idempotency_retention_days", "from 7"),
    ("[scheduler]\ninterval_s = 0", "scheduler.interval_s", "from 0.05"),
    ("[scheduler]\ninterval_s = nan", "scheduler.interval_s", "is NaN"),
    ('[scheduler]\ninterval_s = "2"', "scheduler.interval_s", 'is "2"'),
    ('[[specs]]\narch = "ARM"\ncores = 1\nmemory_gib = 1', "specs[0].name", "is missing"),
    ('[[specs]]\nname = "a"\narch = "ARM"\ncores = 1\nmemory_gib = 1\n' * 2, "specs[1].name", "must differ"),
    ("[centers]\nid = 1", "centers", "the heading [[centers]]"),
    (CENTER.replace('"one"', '"a b"'), "centers[0].id", "1 to 64"),
    (CENTER.replace('"one"', f'"{"x" * 65}"'), "centers[0].id", "1 to 64"),
    (CENTER.replace('"local"', '"slrum"'), "centers[0].adapter", 'did you mean "slurm"?'),
    (CENTER.replace('adapter = "local"\n', ""), "centers[0].adapter", "is missing"),
    (CENTER.replace('adapter = "local"', 'adapter = "local"\nstate = "off"'), "centers[0].state", '"drain"'),
    (CENTER + "[centers.credentials]\nkey = 1", "centers[0].credentials.key", "known here: none"),
    (CENTER + "[[centers.pool]]\n", "centers[0].pool", "did you mean pools?"),
    (CENTER + POOL.replace("X86", "x86"), "centers[0].pools[0].arch", '"X86"'),
    (CENTER + POOL + POOL, "centers[0].pools[1].native", "as centers[0].pools[0].native"),
    (CENTER + POOL + "accelerators = 1", "centers[0].pools[0].accelerator", "without their product"),
    (
        CENTER + POOL + 'accelerator = "a"\naccelerators = 1',
        "centers[0].pools[0].accelerator_memory_gib",
        "at least 1",
    ),
    (CENTER + PRICE + 'from = "8:00"\nto = "22:00"', "centers[0].prices[0].from", '"8:00"'),
    (CENTER + PRICE + 'from = "24:00"\nto = "22:00"', "centers[0].prices[0].from", '"23:59"'),
    (CENTER + PRICE + 'from = "08:00"\nto = "08:00"', "centers[0].prices[0].to", "window is empty"),
    (CENTER + PRICE + 'from = "08:00"\nto = 22:00:00', "centers[0].prices[0].to", "a date or time"),
    (CENTER + PRICE + 'from = "08:00"', "centers[0].prices[0].to", "is missing"),
    (CENTER + PRICE + 'days = ["mon", "Tue"]', "centers[0].prices[0].days[1]", '"Tue"'),
    (CENTER + PRICE + "days = []", "centers[0].prices[0].days", "at least 1"),
    (CENTER + PRICE + 'accelerator = "a"', "centers[0].prices[0]", "exactly one"),
    (CENTER + "[[centers.prices]]\nprice = 1", "centers[0].prices[0]", "exactly one"),
    (CENTER + PRICE.replace("1", '"1"'), "centers[0].prices[0].price", 'is "1"'),
    (CENTER + '[[centers.images]]\nid = "a"\n' * 2, "centers[0].images[1].id", "same arch"),
]


@pytest.mark.parametrize(("text", "key", "word"), ONE_ERROR, ids=lambda value: repr(value)[-40:])
def test_each_check_names_its_key(text: str, key: str, word: str) -> None:
    found = problem(text)
    assert found.key == key
    assert word in found.message


LOGIN = 'username = "u"\npassword = "p"'
ADAPTER_ERRORS = [
    # adapter, connection, credentials, keys after "centers[0]."
    ("aihub", "", LOGIN, ["connection.user_url", "connection.training_url"]),
    ("aihub", 'user_url = "http://a"\nmode = "quota"', LOGIN, ["connection.quota_url"]),
    ("cecstack", "", "", ["connection.endpoint", "connection.region"]),
    (
        "cecstack",
        'endpoint = "http://a"\nregion = "r"\nsignature = "hmac-sha256"',
        'access_key = "a"',
        ["credentials.secret_key"],
    ),
    ("ampha", 'base_url = "http://a"', 'username = "u"', ["credentials.password"]),
    (
        "ampha",
        'base_url = "http://a"\npassword_mode = "aes-cbc"',
        LOGIN,
        ["connection.password_key"],
    ),
    ("ampha", 'base_url = "http://a"', LOGIN + '\ntenant_password = "p"', ["credentials.tenant_username"]),
    ("slurm", 'url = "http://a"', "", ["credentials"]),
    ("slurm", 'url = "http://a"', 'token = "a"\ntoken_command = "b"', ["credentials"]),
    ("slurm", 'url = "http://a"\napi_version = "40"', 'token = "a"', ["connection.api_version"]),
    ("kubernetes", 'name_space = "a"', "", ["connection.name_space"]),
    ("kubernetes", "", 'token = "t"', ["credentials.token"]),
    ("kubernetes", 'output = { in_job = "m", here = "/h" }', "", ["connection.output.in_job"]),
    ("kubernetes", 'output = { in_job = "/m" }', "", ["connection.output"]),
    ("tai123", 'base_url = "http://a"', "", ["credentials.username", "credentials.password"]),
    ("local", 'work_dir = "w"\ntimeout_s = 1', "", ["connection.timeout_s"]),
]


@pytest.mark.parametrize(("adapter", "connection", "credentials", "keys"), ADAPTER_ERRORS)
def test_each_adapter_has_its_own_keys(
    adapter: str, connection: str, credentials: str, keys: list[str]
) -> None:
    found = problems(remote(adapter, connection, credentials))
    assert sorted(each.key for each in found) == sorted(f"centers[0].{key}" for key in keys)


# ---------------------------------------------------------------- reload


def test_a_reload_names_what_it_cannot_apply() -> None:
    old = settings("")
    assert config.changes_needing_restart(old, old) == ()
    applied = settings("[store]\nlog_retention_days = 5\n" + CENTER)
    assert config.changes_needing_restart(old, applied) == ()
    new = settings("""
[server]
listen = "[::1]:80"
name = "other"
[store]
url = "postgresql:///other"
data_dir = "other"
event_retention_days = 1
[scheduler]
lease_s = 5
[[specs]]
name = "a"
arch = "ARM"
cores = 1
memory_gib = 1
""")
    assert new.server.address == ("::1", 80)
    assert config.changes_needing_restart(old, new) == (
        "server.listen",
        "server.name",
        "store.url",
        "store.data_dir",
        "scheduler.lease_s",
        "specs",
    )


def test_a_reload_can_apply_the_policy_retention_and_billing_alone() -> None:
    keys = {(name, key) for name, section in config.SECTIONS.items() for key in keys_of(section)}
    needing = {(name, key) for name, section in config.SECTIONS.items() for key in restart_keys(section)}
    assert keys - needing == {
        ("scheduler", "policy"),
        ("scheduler", "learn_run_times"),
        ("store", "log_retention_days"),
        ("store", "event_retention_days"),
        ("store", "idempotency_retention_days"),
        ("billing", "interrupted"),
        ("billing", "record"),
    }
