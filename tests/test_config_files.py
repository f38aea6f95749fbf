"""The files that come with the broker load, are complete, and are found; the embedded default."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from broker import config
from broker.config import Settings
from broker.config.keys import keys_of
from broker.config.platforms import PLATFORMS

CONFIG = Path(__file__).parent.parent / "config"


def uncommented(text: str) -> str:
    """The template with every switched-off setting switched on."""
    return re.sub(r"^#(?=[a-z_\[])", "", text, flags=re.MULTILINE)


def environment_of(text: str) -> dict[str, str]:
    return dict.fromkeys(re.findall(r'env = "([A-Z0-9_]+)"', text), "secret")


@pytest.mark.parametrize("name", ["broker.toml", "examples/two-local.toml", "examples/all-adapters.toml"])
def test_the_files_load(name: str) -> None:
    text = (CONFIG / name).read_text(encoding="utf-8")
    found = config.load(CONFIG / name, environ=environment_of(text))
    assert found.centers
    assert all(center.images for center in found.centers if center.adapter == "local")


def test_the_example_of_all_adapters_shows_every_key_of_every_adapter() -> None:
    document = tomllib.loads((CONFIG / "examples/all-adapters.toml").read_text(encoding="utf-8"))
    assert {center["adapter"] for center in document["centers"]} == set(PLATFORMS)
    common = {"ca_file", "timezone", "timeout_s", "requests_per_s", "concurrency", "output"}
    for center in document["centers"]:
        platform = PLATFORMS[center["adapter"]]
        left_out = set() if center["adapter"] == "aihub" else common
        assert set(platform.connection) - left_out == set(center["connection"])
        assert set(platform.credentials) - {"token_command"} == set(center.get("credentials", {}))


def test_the_template_shows_every_key_with_its_default() -> None:
    text = uncommented(config.template())
    document = tomllib.loads(text)
    found = config.parse(text, base=CONFIG, environ=environment_of(text))
    default = Settings()
    chosen = {"url", "data_dir", "policy", "image"}  # set for trying out, or resolved to a path
    for name, section in config.SECTIONS.items():
        assert set(document[name]) == set(keys_of(section))
        for key in set(document[name]) - chosen:
            assert getattr(getattr(found, name), key) == getattr(getattr(default, name), key), key
    shown = set(document["centers"][0]) | set(document["centers"][1])
    assert shown == {each.name for each in fields(config.CenterSettings)}


def test_the_embedded_default_is_one_local_center_below_the_users_folder(tmp_path: Path) -> None:
    home = tmp_path / 'it "is" 家\x7f\\'
    text, found = config.embedded_default(home)
    folder = home / "computing-broker"
    assert found.store.url == f"sqlite:///{folder}/broker.db"
    assert found.store.data_dir == folder / "data"
    assert found.submit.image == "local"
    (center,) = found.centers
    assert (center.id, center.adapter) == ("local", "local")
    assert center.connection["work_dir"] == str(folder / "work")
    assert [image.id for image in center.images] == ["local"]
    assert config.parse(text, base=Path("/"), environ={}) == found


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_DATA_HOME": "/x"}, "/x"),
        ({"XDG_DATA_HOME": "relative", "HOME": "/home/u"}, "/home/u/.local/share"),
        ({"HOME": "/home/u"}, "/home/u/.local/share"),
    ],
)
def test_the_data_folder_follows_xdg(environ: Mapping[str, str], expected: str) -> None:
    assert config.data_home(environ) == Path(expected)


def test_files_of_the_broker_are_found_or_named() -> None:
    assert config.find_config_file("broker.toml").is_file()
    with pytest.raises(FileNotFoundError, match=r"none\.toml"):
        config.find_config_file("none.toml")
