"""--fail-if: what can be asked of a run, and what it answers."""

import pytest
from stress_threshold import NAMES, ThresholdError, judge, parse, sentence

POINTS = {"p50": 1.0, "p90": 2.0, "p99": 60.0, "p999": 70.0, "max": 80.0, "count": 5}
RECORD = {
    "connections": {"requested": 200, "established": 199, "verified": 198, "failed": 2, "peak": 150},
    "rate": {"connects_per_second": 500.0, "echoes_per_second": 10.0},
    "echoes": {"sent": 300, "verified": 299, "mismatched": 0, "lost": 1},
    "seconds": {"ramp": 2.5, "hold": 10},
    "latency_ms": {"connect": POINTS, "service": POINTS, "response": POINTS, "first_echo": dict.fromkeys(POINTS)},
    "churn": None,
}
CASES = [
    ("p99_response_ms > 50", 60.0, True),
    ("p99_response_ms>60", 60.0, False),
    ("p99_response_ms >= 60", 60.0, True),
    ("failed_percent > 0.5%", 1.0, True),
    ("failed > 2", 2.0, False),
    ("connects_per_second < 501", 500.0, True),
    ("peak <= 149.5", 150.0, False),
    ("lost > 0", 1.0, True),
    ("ramp_seconds > 3", 2.5, False),
    ("p99_first_echo_ms > 1", None, True),
    ("churn_per_second < 1", None, True),
]


@pytest.mark.parametrize(("text", "value", "failed"), CASES)
def test_conditions(text, value, failed):
    (row,) = judge([parse(text)], RECORD)
    assert row == {"text": text, "value": value, "failed": failed}
    assert text in sentence(row)


def test_every_name_answers():
    for name in NAMES:
        judge([parse(name + " > 1")], RECORD)


@pytest.mark.parametrize("text", ["", "p99", "p99_response_ms = 5", "what > 5", "failed > many", "failed > 5%"])
def test_what_is_no_condition(text):
    with pytest.raises(ThresholdError):
        parse(text)
