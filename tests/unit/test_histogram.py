"""The histogram: error bound, merging, percentiles against a sorted list, the JSON form."""

import json
import random
from pathlib import Path

import histogram
import pytest
from histogram import LINEAR, MAX_VALUE, SIZE, Histogram, bucket_of, lowest, middle


def exact(values, percent):
    """The percentile by definition: the smallest value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(1, -(-len(ordered) * percent // 100)) - 1] if percent < 100 else ordered[-1]


def filled(values):
    out = Histogram()
    for value in values:
        out.record(value)
    return out


@pytest.mark.parametrize("value", [0, 1, 255, 256, 257, 511, 512, 1000, 10**6, 10**9, MAX_VALUE])
def test_a_bucket_holds_its_value_within_half_a_percent(value):
    index = bucket_of(value)
    assert lowest(index) <= value < lowest(index + 1)
    assert abs(middle(index) - value) <= value * 0.005
    if value < LINEAR:
        assert middle(index) == value


def test_buckets_are_contiguous_and_increasing():
    edges = [lowest(index) for index in range(SIZE + 1)]
    assert edges == sorted(set(edges))
    assert all(bucket_of(edge) == index for index, edge in enumerate(edges[:-1]))
    assert all(bucket_of(edge - 1) == index for index, edge in enumerate(edges[1:]))


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_match_the_sorted_list(seed):
    draw = random.Random(seed)
    values = [int(draw.lognormvariate(6, 2)) for _ in range(5000)]
    h = filled(values)
    for percent in (1, 25, 50, 75, 90, 99):
        want = exact(values, percent)
        assert abs(h.percentile(percent) - want) <= want * 0.005 + 0.5
    assert h.percentile(100) == h.max == max(values)
    assert h.mean == pytest.approx(sum(values) / len(values), rel=0.005)


CASES = [
    # values, percent, expected
    ([], 50, None),
    ([7], 0, 7),
    ([7], 50, 7),
    ([7], 99.9, 7),
    ([1, 2], 50, 1),
    ([1, 2], 51, 2),
    (range(1, 101), 99, 99),
    (range(1, 101), 99.9, 100),
    (range(1, 101), 100, 100),
    ([-5], 50, 0),
    ([MAX_VALUE * 2], 100, MAX_VALUE),
    ([999999], 50, 999999),  # never above the largest value seen
]


@pytest.mark.parametrize(("values", "percent", "expected"), CASES)
def test_percentile_cases(values, percent, expected):
    assert filled(values).percentile(percent) == expected


def test_merging_equals_recording_everything():
    draw = random.Random(1)
    parts = [[draw.randrange(10**6) for _ in range(500)] for _ in range(4)]
    merged = Histogram.merged(filled(part) for part in parts)
    together = filled([value for part in parts for value in part])
    assert merged.to_dict() == together.to_dict()
    assert merged.count == 2000


def test_the_json_form_comes_back_equal_and_small():
    h = filled([1, 1, 300, 10**7])
    data = json.loads(json.dumps(h.to_dict()))
    assert len(data["buckets"]) == 3
    assert Histogram.from_dict(data).to_dict() == h.to_dict()
    assert Histogram.from_dict(data).summary_ms() == h.summary_ms()
    assert h.summary_ms()["max"] == 10000.0
    assert h.summary_ms()["count"] == 4


@pytest.mark.parametrize(
    "change",
    [{"scheme": "other"}, {"buckets": [[SIZE, 1]]}, {"buckets": [[-1, 1]]}, {"buckets": [[0, -1]]}],
)
def test_a_foreign_or_broken_form_is_refused(change):
    data = dict(filled([1]).to_dict(), **change)
    with pytest.raises(ValueError, match="histogram"):
        Histogram.from_dict(data)


def test_differences_are_what_came_since():
    h = filled([10, 20])
    before = Histogram.merged([h])
    h.record(30)
    h.record(5000)
    since = h.differences(before)
    assert since.count == 2
    assert since.percentile(50) == 30
    assert since.percentile(100) == pytest.approx(5000, rel=0.01)
    assert h.differences(h).summary_ms() == Histogram().summary_ms()


def test_the_module_needs_no_sibling():
    source = Path(histogram.__file__).read_text()
    assert [line for line in source.splitlines() if line.startswith(("import", "from"))] == [
        "import math",
        "import sys",
        "from array import array",
        "from typing import Any, Dict, Iterable, Mapping, Optional, Sequence",
    ]
