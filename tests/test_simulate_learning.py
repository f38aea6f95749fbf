"""The simulator's learned run times and forecasts, and how far off they are."""

from __future__ import annotations

import statistics

import pytest

from broker.simulate import Order, Settings
from broker.simulate.report import estimate_factors, forecast_errors, report, table
from broker.simulate.trace import TraceJob
from tests.test_simulate import job, many, nodes, play


def habits(count: int = 120) -> list[TraceJob]:
    """Jobs of two tenants, one of minutes and one of hours, that differ a little among themselves."""
    return [
        job(
            f"{n:03}",
            n * 600,
            (300 if n % 2 else 20_000) + n % 7,
            tenant="quick" if n % 2 else "slow",
        )
        for n in range(count)
    ]


def test_learned_run_times_come_nearer_with_every_run() -> None:
    outcome = play(habits(), (nodes(12),), oracle=False, learn=True)
    records = [record for record in outcome.jobs if record.planned_s is not None]
    assert [record.planned_s for record in records[:4]] == [3600] * 4  # nothing is known yet
    half = len(records) // 2
    first, last = (statistics.median(estimate_factors(part)) for part in (records[:20], records[half:]))
    assert first > 3
    assert last < 1.2
    assert report(outcome).label == "policy, pooled, learned run times"


def test_learned_run_times_shorten_the_mean_wait() -> None:
    """Whose jobs are short is known after some: about as good as if each had said so."""
    told, learned = (
        report(play(habits(), (nodes(4),), oracle=False, noise=0.0, learn=learn)) for learn in (False, True)
    )
    blind = statistics.fmean(
        record.waited_s for record in play(habits(), (nodes(4),), oracle=False, order=Order.FIFO).jobs
    )
    assert told.overall.wait_mean_s is not None
    assert learned.overall.wait_mean_s is not None
    assert learned.overall.wait_mean_s < blind
    assert learned.overall.wait_mean_s == pytest.approx(told.overall.wait_mean_s, rel=0.02)


def test_forecasts_are_measured() -> None:
    """With true run times the only thing that a forecast does not know is who comes later."""
    outcome = play([job(str(n), 0, 600) for n in range(6)], forecast=True)
    off, covered = forecast_errors(outcome.jobs)
    told = report(outcome)
    assert told.forecasts == len(off) == len(covered) == 5
    # every run may take up to four times its estimate, as far as the forecast knows
    assert told.forecast_p90_coverage == 1.0
    assert told.forecast_error_p50_s is not None
    assert told.forecast_error_p50_s <= 1200
    document = told.document()
    assert (document["forecasts"], document["estimateFactorP50"]) == (5, 1.0)
    assert report(play(many(4))).forecasts == 0


def test_nothing_is_learned_where_all_is_known() -> None:
    with pytest.raises(ValueError, match="learn: only where nothing is known"):
        Settings(learn=True, oracle=True)
    with pytest.raises(ValueError, match="by the production scheduler"):
        Settings(learn=True, order=Order.SJF)


def test_what_is_measured_is_told_where_it_was_asked_for() -> None:
    measured = {"estimateFactorP50", "forecasts", "forecastErrorP50S", "forecastP90Coverage"}
    asked = report(play(many(4), oracle=False, learn=True)), report(play(many(4), forecast=True))
    for told in asked:
        assert measured <= told.document().keys()
        assert "estimate off by, median" in table(told)
    assert not measured & report(play(many(4))).document().keys()
