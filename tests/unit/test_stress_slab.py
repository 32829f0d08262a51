"""The memory that workers and their supervisor share, read while it is written."""

import os
import signal
import time

import pytest
import stress_slab as slabs
from histogram import Histogram

SECONDS = 1.0


@pytest.fixture
def slab():
    return slabs.Slab(slabs.allocate(2), 1)


def write_forever(slab, write):
    """A process that calls write(slab, number) with rising numbers until it is killed; its pid."""
    pid = os.fork()
    if pid == 0:
        number = 0
        while True:
            number += 1
            write(slab, number)
    return pid


def while_written(slab, write, check):
    """check(slab) for SECONDS, while another process writes; how often that was."""
    pid = write_forever(slab, write)
    try:
        end, times = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            check(slab)
            times += 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    check(slab)
    return times


def test_counters_are_of_one_moment_and_never_go_back(slab):
    # 1000003: several bytes of the number change with each step, so that a half-written one shows.
    last = 0

    def check(slab):
        nonlocal last
        seen = set(slab.counters().values())
        assert len(seen) == 1
        value = seen.pop()
        assert value >= last
        last = value

    times = while_written(slab, lambda slab, n: slab.write_counters([n * 1000003] * len(slabs.COUNTERS)), check)
    assert times > 1000 and last > 0


def test_errors_are_whole_while_they_are_written(slab):
    def write(slab, number):
        slab.write_errors({("echo", "EOF"): [number, 0, 0, str(number) * (1 + number % 300)]})

    def check(slab):
        for count, _, _, sample in slab.errors().values():
            assert sample == str(count) * (1 + count % 300)

    while_written(slab, write, check)
    assert slab.errors()


def test_a_writer_killed_between_two_versions_leaves_the_last_whole_one(slab):
    slab.write_counters([7] * len(slabs.COUNTERS))
    version = slab.words[0]
    slab.write_counters([8] * len(slabs.COUNTERS))
    slab.words[0] = version  # as if it had been killed before the last store
    assert set(slab.counters().values()) == {7}


def test_slabs_do_not_overlap():
    memory = slabs.allocate(3)
    every = [slabs.Slab(memory, index) for index in range(3)]
    full = Histogram()
    full.counts = type(full.counts)("Q", [2**64 - 1] * len(full.counts))
    for slab in (every[0], every[2]):
        slab.write_counters([2**63] * len(slabs.COUNTERS))
        for number in range(len(slabs.HISTOGRAMS)):
            slab.write_histogram(number, full)
        for _ in range(2):
            slab.write_errors({("echo", "EOF"): [1, 0, 0, "x" * 16000]})
    assert set(every[1].counters().values()) == {0} and every[1].errors() == {}
    assert every[0].histogram(3).counts == full.counts
    assert every[2].errors()["echo", "EOF"][3] == "x" * 16000
