"""Numbers, blanks and times as platforms write them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from adapters.values import number, utc_ms, whole
from broker.adapter import Unavailable

SHANGHAI = ZoneInfo("Asia/Shanghai")


@pytest.mark.parametrize(
    ("given", "expected"),
    [(3, 3), ("3", 3), (" 251.53 ", Decimal("251.53")), (Decimal("0.5"), Decimal("0.5")), (0, 0)]
    + [(blank, None) for blank in (None, "", "  ", "--", "-", "未知", "无限制")],
)
def test_number(given: Any, expected: Any) -> None:
    assert number(given, "cpu") == expected


@pytest.mark.parametrize("given", ["four", "4G", "NaN", "Infinity", "1e99", True, [1], 0.5, "９9x"])
def test_no_number(given: Any) -> None:
    with pytest.raises(Unavailable, match="cpu is"):
        number(given, "cpu")


def test_whole() -> None:
    assert whole("8.0", "gpuNum") == 8
    assert whole("", "gpuNum") is None
    with pytest.raises(Unavailable, match=r"gpuNum is '8\.5'"):
        whole("8.5", "gpuNum")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2023-12-07 03:23:14", 1701890594000),
        ("2025-02-10 15:54:52", 1739174092000),
        ("2024-12-30 16:51:08.282473060", 1735548668282),
        ("2024-07-11T22:29:12.9", 1720708152900),
        ("2024-06-21T14:06:18.000+08:00", 1718949978000),
        ("2024-09-10T07:43:31.000+00:00", 1725954211000),
        ("2024-09-10T07:43:31Z", 1725954211000),
        (1720708152150, 1720708152150),
        ("1720708152150", 1720708152150),
        (0, None),
        ("", None),
        (None, None),
        ("未知", None),
    ],
)
def test_times(given: Any, expected: int | None) -> None:
    assert utc_ms(given, "startTime", SHANGHAI) == expected


@pytest.mark.parametrize("given", ["15 days ago", "2024-02-30 00:00:00", "0000-01-01 00:00:00", "2024-01-01"])
def test_no_times(given: str) -> None:
    with pytest.raises(Unavailable, match="startTime is"):
        utc_ms(given, "startTime", SHANGHAI)
