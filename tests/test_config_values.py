"""Values that must be exact or hidden: money, and secrets in settings, messages and their sources."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import config
from broker.config import ConfigError
from broker.config.values import Place, Wrong, price
from tests.test_config import BASE, CENTER, LOGIN, problem, remote, settings

SECRET = "hunter2-not-to-be-seen"


def test_credentials_come_from_text_environment_file_and_systemd(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("from file \n")
    found = config.parse(
        remote(
            "aihub",
            'user_url = "http://a"\ntraining_url = "http://a"',
            'username = { env = "U" }\npassword = { file = "pw" }\ns3_token = { credential = "pw" }',
        ),
        base=tmp_path,
        environ={"U": "from env", "CREDENTIALS_DIRECTORY": str(tmp_path)},
    )
    assert found.centers[0].credentials == {
        "username": "from env",
        "password": "from file ",
        "s3_token": "from file ",
    }


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ('{ env = "NONE" }', '"NONE", which is not set'),
        ('{ file = "/no/such" }', "/no/such, which cannot be read: No such file"),
        ('{ credential = "x" }', "CREDENTIALS_DIRECTORY is not set"),
        (f'{{ vault = "{SECRET}" }}', "another form"),
        ('""', "is empty"),
        (f'["{SECRET}"]', "is an array"),
        ("1234567890123", "is a number"),
    ],
)
def test_a_credential_that_is_not_there_is_an_error_at_its_line(value: str, word: str) -> None:
    found = problem(remote("tai123", 'base_url = "http://a"', f'username = "u"\npassword = {value}'))
    assert (found.key, found.line) == ("centers[0].credentials.password", 8)
    assert word in found.message
    assert SECRET not in found.message
    assert "1234567890123" not in found.message


def test_a_systemd_credential_cannot_leave_its_folder(tmp_path: Path) -> None:
    text = remote("tai123", 'base_url = "http://a"', 'username = "u"\npassword = { credential = "../x" }')
    found = problem(text, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert "without a slash" in found.message


def test_secrets_are_in_no_repr() -> None:
    found = settings(
        f'[store]\nurl = "postgresql://u:{SECRET}@h/db"\n'
        + remote(
            "ampha",
            f'base_url = "http://a"\npassword_mode = "aes-ecb"\npassword_key = "{SECRET}"',
            f'username = "{SECRET}"\npassword = "{SECRET}"',
        )
    )
    assert found.centers[0].credentials["password"] == SECRET
    assert SECRET in found.store.url
    assert SECRET not in repr(found)
    assert SECRET not in str(found)


@pytest.mark.parametrize(
    "text",
    [
        f'[store]\nurl = "mysql://u:{SECRET}@h/db"',
        f'[store]\nurl = "postgresql://u:{SECRET}@h:port/db"',
        f'[store]\nurl = "{SECRET}"',
        f'[server]\npublic_url = "https://u:{SECRET}@h"',
        f'[server]\npublic_url = "https://h/?token={SECRET}"',
        remote("ampha", f'base_url = "http://a"\npassword_key = ["{SECRET}"]', LOGIN),
        remote("kubernetes", "", f'token = "{SECRET}"'),
    ],
)
def test_secrets_are_in_no_message(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(text)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)


# ---------------------------------------------------------------- money


@pytest.mark.parametrize(
    ("written", "micro"),
    [
        ("12.5", 12_500_000),
        ("0.1", 100_000),
        ("0.000001", 1),
        ("12.1234560", 12_123_456),
        ("1_000.25", 1_000_250_000),
        ("1e-3", 1000),
        ("7", 7_000_000),
        ("0", 0),
        ("999999.999999", 999_999_999_999),
    ],
)
def test_prices_are_exact(written: str, micro: int) -> None:
    found = settings(CENTER + f'[[centers.prices]]\narch = "X86"\nprice = {written}')
    assert found.centers[0].prices[0].price.micro_per_hour == micro


@pytest.mark.parametrize(
    "written",
    [
        "12.1234567",
        "-0.1",
        "1000000.1",
        "inf",
        "nan",
        "1e99",
        "1e-99",
        "true",
        "1e9999999999999999999",
        "0.1000000000000000000000000000000000000001",
    ],
)
def test_a_price_that_micro_cny_cannot_hold_is_an_error(written: str) -> None:
    found = problem(CENTER + f'[[centers.prices]]\narch = "X86"\nprice = {written}')
    assert (found.key, found.line) == ("centers[0].prices[0].price", 9)
    assert "at most 6 decimals" in found.message


@given(micro=st.integers(0, 10**12), zeros=st.integers(0, 5))
def test_every_whole_micro_price_survives_its_text(micro: int, zeros: int) -> None:
    written = f"{micro // 10**6}.{micro % 10**6:06d}" + "0" * zeros
    place = Place(BASE, {})
    assert price(Decimal(written), place) == micro
    with pytest.raises(Wrong):
        price(Decimal(f"{written}1") if zeros else Decimal(f"{written}01"), place)
