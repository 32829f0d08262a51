"""The plan of a stress client, its message, its pacing and its sums: tables over pure functions."""

import bisect
import os
import socket
import subprocess
from pathlib import Path

import pytest
import stress_facts
import stress_plan
import stress_ports
import stress_result
from histogram import Histogram
from stress_message import DEFAULT, MessageError, compile_message
from stress_pace import TokenBucket, Window
from stress_plan import HostFacts, PlanRefused, Request, count_ports, make_plan
from stress_result import LatencyTimeline, Timeline, WorkerReport
from stress_slab import COUNTERS

UNTUNED = (32768, 60999)
TUNED = (1025, 65000)
ONE = ("127.0.0.1",)
TWO = ("127.0.0.1", "127.0.0.2")


def facts(**change):
    base = HostFacts(
        port_range=UNTUNED,
        reserved=(),
        busy={},
        nofile=20000,
        cpus=2,
        memory_available=32 << 30,
        files_free=2000000,
        processes_free=30000,
        conntrack_free=None,
        target_here=True,
        busy_from="sock_diag",
        limits=(1024, 20000),
        socket_bytes=4000,
    )
    return base._replace(**change)


def request(connections, **change):
    asked = Request(connections, ONE, 0, 1, None, None, 1)._replace(**change)
    return asked if "clients" in change else asked._replace(clients=asked.slices)


WORKERS = [
    # connections, request, facts, expected number of workers
    (100, {}, {}, 1),
    (15000, {}, {}, 2),  # two processors have work
    (50000, {"sources": TWO}, {}, 3),  # the open-files limit demands it
    (50000, {}, {"port_range": TUNED}, 3),
    (50000, {"sources": TWO}, {"nofile": 1048576, "cpus": 1}, 1),
    (1, {"workers": 4}, {}, 1),
    (28232, {}, {}, 2),  # every single port of the range
]


@pytest.mark.parametrize(("connections", "asked", "host", "workers"), WORKERS)
def test_workers_and_their_shares(connections, asked, host, workers):
    plan = make_plan(request(connections, **asked), facts(**host))
    assert len(plan.workers) == workers
    assert sum(share.connections for share in plan.workers) == connections
    assert [share.first for share in plan.workers] == [
        sum(s.connections for s in plan.workers[:i]) for i in range(workers)
    ]
    for share in plan.workers:
        assert count_ports(share.blocks) >= share.connections
        assert share.connections + stress_plan.SPARE_DESCRIPTORS <= plan.nofile
    pairs = [(ip, port) for s in plan.workers for ip, a, b in s.blocks for port in range(a, b + 1)]
    assert len(pairs) == len(set(pairs)) == plan.usable


REFUSALS = [
    # connections, request, facts, [(ceiling, allowed)], words of the sentence
    (
        70000,
        {},
        {},
        [("source ports", 28232)],
        ["70,000", "127.0.0.1", "28,232", "32768-60999", "3 source addresses", "--source", "2 after `inv tune`"],
    ),
    (50000, {}, {}, [("source ports", 28232)], ["`inv tune`", "2 source addresses"]),
    (70000, {}, {"port_range": TUNED}, [("source ports", 63976)], ["1025-65000", "2 source addresses"]),
    (28232, {}, {"reserved": ((40000, 40009),)}, [("source ports", 28222)], ["10 reserved", "0 busy"]),
    (28232, {}, {"busy": {"127.0.0.1": frozenset([33000, 33001, 80])}}, [("source ports", 28230)], ["2 busy"]),
    (300, {"ports": (1, 200)}, {}, [("source ports", 200)], ["--ports is 1-200"]),
    (20000, {"slices": 2, "slice_index": 1}, {}, [("source ports", 14116)], ["share 1/2 of 127.0.0.1"]),
    (20000, {"workers": 1}, {}, [("open files per process (nofile)", 19936)], ["20,064", "20,000", "--workers"]),
    (5, {}, {"nofile": 64}, [("open files per process (nofile)", 0)], ["limit", "inv tune"]),
    (20000, {}, {"files_free": 39999}, [("open files (fs.file-max)", 19999)], ["40,000", "fs.file-max"]),
    (
        20000,
        {},
        {"memory_available": 80000000},
        [("bytes of memory", 10000)],
        ["160,000,000", "both ends", "for 10,000"],
    ),
    (
        9000,
        {"clients": 3},
        {"files_free": 20000},
        [("open files (fs.file-max)", 3333)],
        ["27,000", "of 3 clients"],
    ),
    (20000, {}, {"conntrack_free": 19999}, [("conntrack entries", 19999)], ["nf_conntrack_max"]),
    (20000, {}, {"processes_free": 1}, [("worker processes", 19936)], ["2 worker processes, but 1", "ulimit"]),
    (2000, {"workers": 9}, {"processes_free": 8}, [("worker processes", 8)], ["let --workers be automatic"]),
    (300, {"ports": (1, 200)}, {"reserved": ((1, 1023),)}, [("source ports", 0)], ["200 reserved", "choose"]),
    (
        70000,
        {"workers": 1},
        {"conntrack_free": 10},
        [("source ports", 28232), ("open files per process (nofile)", 19936), ("conntrack entries", 10)],
        [],
    ),
]


@pytest.mark.parametrize(("connections", "asked", "host", "ceilings", "words"), REFUSALS)
def test_what_cannot_work_is_refused_by_name(connections, asked, host, ceilings, words):
    with pytest.raises(PlanRefused) as caught:
        make_plan(request(connections, **asked), facts(**host))
    assert [(r.ceiling, r.allowed) for r in caught.value.refusals] == ceilings
    for word in words:
        assert word in str(caught.value)
    for refusal in caught.value.refusals:
        assert refusal.fix in refusal.sentence


def test_the_number_a_refusal_allows_is_allowed():
    for connections, asked, host, ceilings, _ in REFUSALS:
        allowed = min(number for _, number in ceilings)
        if allowed:
            make_plan(request(allowed, **asked), facts(**host))
            assert allowed < connections


@pytest.mark.parametrize("slices", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("sources", [ONE, TWO])
def test_slices_never_overlap_whatever_each_sees_busy(slices, sources):
    seen = set()
    for index in range(slices):
        # Later clients see the earlier ones' connections as busy; the cut must not depend on it.
        busy = {"127.0.0.1": frozenset(port for _, port in seen)} if index % 2 else {}
        plan_request = request(10, sources=sources, slices=slices, slice_index=index)
        blocks, _ = stress_plan.usable_blocks(plan_request, facts(busy=busy))
        pairs = {(ip, port) for ip, a, b in blocks for port in range(a, b + 1)}
        assert not pairs & seen
        seen |= pairs
    assert len(seen) == 28232 * len(sources)


SUBTRACT = [
    ((1, 10), [], [(1, 10)]),
    ((1, 10), [(5, 5)], [(1, 4), (6, 10)]),
    ((1, 10), [(1, 10)], []),
    ((1, 10), [(0, 3), (9, 20)], [(4, 8)]),
    ((1, 10), [(3, 6), (2, 4)], [(1, 1), (7, 10)]),
    ((1, 10), [(20, 30)], [(1, 10)]),
]


@pytest.mark.parametrize(("span", "holes", "rest"), SUBTRACT)
def test_subtract(span, holes, rest):
    assert stress_plan.subtract(span, holes) == rest


@pytest.mark.parametrize(
    ("text", "ranges"),
    [("\n", ()), ("8080\n", ((8080, 8080),)), ("8080,9148-9150\n", ((8080, 8080), (9148, 9150)))],
)
def test_reserved_ports(text, ranges):
    assert stress_facts.parse_ranges(text) == ranges


# -- messages ------------------------------------------------------------------------------------------------

MESSAGES = [
    # text, conn, seq, bytes
    (DEFAULT, 12, 3, b"GET /msg_server HTTP/1.1\r\nConnection: keep-alive\r\nX-Tcpfleet: 12.3\r\n\r\n"),
    ("hello", 1, 2, b"hello"),
    (r"{seq}-{conn}\n", 1, 2, b"2-1\n"),
    (r"{conn}{conn}", 7, 0, b"77"),
    (r"100% \{x\} \x00\xff\\", 0, 0, b"100% {x} \x00\xff\\"),
    (r"%d {conn}.{seq}", 5, 6, b"%d 5.6"),
    ("é", 0, 0, "é".encode()),
]


@pytest.mark.parametrize(("text", "conn", "seq", "expected"), MESSAGES)
def test_messages(text, conn, seq, expected):
    message = compile_message(text)
    assert message.render(conn, seq) == expected
    assert message.longest >= len(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (r"\q", r"unknown escape \q"),
        ("end\\", "unknown escape"),
        ("{hosts}", "unknown placeholder {hosts}"),
        ("{", "unknown placeholder {"),
        ("x" * (1 << 20) + "y", "longer than 1,048,576"),
    ],
)
def test_bad_messages_are_named(text, words):
    with pytest.raises(MessageError) as caught:
        compile_message(text)
    assert words in str(caught.value)


def test_the_default_fits_the_article_s_server():
    message = compile_message(DEFAULT)
    assert message.unique
    assert message.longest < 1024
    assert b"\0" not in message.render(10**18, 10**18)


# -- pace ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.5, 1, 7, 500, 2000, 10000])
@pytest.mark.parametrize("turn", [0.0005, 0.003, 0.02])
def test_the_bucket_keeps_the_rate_and_bounds_the_burst(rate, turn):
    bucket = TokenBucket(rate, 100.0)
    assert bucket.available(99.9) == 0
    times = []
    now = 100.0
    span = max(1.0, 60 / rate)
    while now < 100.0 + span:
        granted = bucket.available(now)
        bucket.take(granted)
        times += [now] * granted
        now += turn
    assert len(times) == pytest.approx(rate * span, rel=0.02, abs=1.5)
    allowed = int(max(1, 2 * rate * 0.1)) + 1
    assert all(last - first >= 0.1 for first, last in zip(times, times[allowed:], strict=False))


def test_a_late_worker_does_not_catch_up_in_one_burst():
    bucket = TokenBucket(1000, 0.0)
    assert bucket.available(10.0) == 81


def test_the_window_stays_small_near_and_opens_far():
    near, far = Window(), Window()
    for n in range(5000):
        near.verified(0.0001 if n == 0 else 0.0001 * near.size, n * 0.0001)
        far.verified(0.1, n * 0.001)
    assert 8 <= near.size <= 24
    assert far.size > 500


def test_an_overflow_halves_the_window_once_and_caps_it():
    window = Window()
    for n in range(200):
        window.verified(0.1, n * 0.01)
    before = window.size
    window.verified(1.05, 10.0)
    window.verified(1.05, 10.1)
    assert window.size == before // 2
    assert window.drops == 2
    for n in range(200):
        window.verified(0.1, 10.2 + n * 0.01)
    assert window.size == before // 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_caller_s_bound_holds_over_all_workers(workers):
    windows = [Window(6, workers) for _ in range(workers)]
    for window in windows:
        for n in range(1000):
            window.verified(0.1, n * 0.01)
    assert sum(w.size for w in windows) <= 6


# -- sums ----------------------------------------------------------------------------------------------------


def report(share, died=None, errors=None, **counters):
    values = dict.fromkeys(COUNTERS, 0)
    values.update(counters)
    return WorkerReport(0, 1, share, values, errors or {}, died, 50.0)


def test_a_dead_worker_s_share_is_failed_and_its_messages_are_lost():
    errors = {("echo", "EBADMSG"): [2, 10.0, 11.0, "x"]}
    alive = report(10, started=10, established=10, open=10, sent=12, echoed=12)
    dead = report(
        10,
        "was killed by signal 9",
        errors,
        started=9,
        established=6,
        failed=2,
        open=6,
        sent=9,
        echoed=5,
        mismatched=2,
        lost=1,
    )
    totals = stress_result.add_up([alive, dead])
    assert (totals.requested, totals.failed, totals.open) == (20, 10, 10)
    assert totals.sent == totals.echoed + totals.mismatched + totals.lost == 21
    rows = stress_result.error_rows([alive, dead], "h")
    assert [(row["errno"], row["count"]) for row in rows] == [("WORKER_DIED", 8), ("EBADMSG", 2)]
    assert sum(row["count"] for row in rows) == totals.failed
    assert not stress_result.is_pass(totals)


def test_the_asked_rate_is_judged_by_the_connects_whatever_the_replies_take():
    slow = {"started": 51, "first_us": 1_000_000, "last_us": 9_000_000, "established": 51}
    reports = [report(51, begun_us=2_000_000, **slow), report(50, begun_us=1_990_000, **slow | {"started": 50})]
    assert stress_result.begun_per_second(reports) == 100.0
    assert stress_result.begun_per_second([report(51, **slow)]) == 0.0  # none was asked for


VERDICTS = [
    ({"established": 10, "sent": 10, "echoed": 10}, True),
    ({"established": 9, "failed": 1, "sent": 9, "echoed": 9}, False),
    ({"established": 10, "failed": 1, "broken": 1, "sent": 10, "echoed": 10}, False),
    ({"established": 10, "sent": 11, "echoed": 10, "lost": 1}, False),
]


@pytest.mark.parametrize(("counters", "passed"), VERDICTS)
def test_verdicts(counters, passed):
    assert stress_result.is_pass(stress_result.add_up([report(10, **counters)])) is passed


WALLS = [
    ("connect", "EMFILE", "open files of a client process"),
    ("connect", "EADDRNOTAVAIL", "source ports"),
    ("connect", "ECONNREFUSED", "nothing listens"),
    ("connect", "ETIMEDOUT", "handshakes unanswered"),
    ("echo", "ETIMEDOUT", "connected but no reply"),
    ("close", "EOF", "the server closes connections"),
    ("echo", "EBADMSG", "wrong replies"),
    ("echo", "CROSSED", "the server mixes up replies"),
    ("close", "EBADMSG", None),
    ("tls", "ETIMEDOUT", "TLS handshake"),
    ("connect", "ENETUNREACH", "the target is out of reach"),
    ("connect", "ECANCELED", None),
]


@pytest.mark.parametrize(("phase", "name", "wall"), WALLS)
def test_the_wall_is_named_from_the_errors(phase, name, wall):
    rows = stress_result.error_rows([report(5, None, {(phase, name): [3, 1.0, 2.0, "sample"]})], "h")
    found = stress_result.diagnose(rows, 5, 2, "10.0.0.1:80")
    assert (found and found["name"]) == wall
    if found:
        assert "3 of 5" in found["evidence"]
        assert "{" not in found["fix"]


def test_the_timeline_thins_itself_and_keeps_rates():
    timeline = Timeline()
    for n in range(2000):
        elapsed = n * 0.1
        if timeline.due(elapsed):
            totals = stress_result.add_up([report(10**6, established=n * 100, open=n * 100, sent=n, echoed=n)])
            timeline.add(elapsed, 1000.0 + elapsed, totals)
    points = timeline.points()
    assert len(points) < 600
    assert points[-1]["t"] > 198
    assert all(p["connects_per_second"] == pytest.approx(1000, rel=0.11) for p in points[1:])


def test_latencies_of_a_long_run_stay_few_and_keep_the_worst():
    timeline = LatencyTimeline()
    for n in range(5000):
        part = Histogram()
        part.record(90000 if n == 3210 else 100, 10)
        timeline.add(n / 2, {"connect": Histogram(), "response": part})
    timeline.add(2500, {"connect": Histogram(), "response": Histogram()})  # nothing was measured
    rows = timeline.rows
    assert len(rows) <= LatencyTimeline.MOST and rows[-1]["t"] == 2499.5
    assert {row["connect"] for row in rows} == {None}
    assert sum(row["response"]["count"] for row in rows) == 50000
    assert max(row["response"]["max"] for row in rows) == 90 and min(row["response"]["p99"] for row in rows) == 0.1


FIB_TRIE = """Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 10.77.0.0/24 2 0 2
        |-- 10.77.0.0
           /24 link UNICAST
        |-- 10.77.0.21
           /32 host LOCAL
        |-- 10.77.0.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
"""


def test_the_host_s_own_addresses():
    assert stress_facts.parse_fib_trie(FIB_TRIE) == {"10.77.0.21", "127.0.0.1"}
    assert stress_facts.parse_fib_trie("") == set()


SOURCES = [
    # --source, target, addresses needed, result
    ("auto", "127.0.0.1", 3, ("127.0.0.1", "127.0.0.2", "127.0.0.3")),
    ("127.0.0.9", "127.0.0.1", 3, ("127.0.0.9",)),
    ("127.1.0.0/30", "127.0.0.1", 9, ("127.1.0.1", "127.1.0.2")),
    ("127.1.0.0/31, 127.0.0.5", "127.0.0.1", 1, ("127.1.0.0", "127.1.0.1", "127.0.0.5")),
]


@pytest.mark.parametrize(("text", "target", "needed", "expected"), SOURCES)
def test_sources(text, target, needed, expected):
    assert stress_facts.parse_sources(text, socket.AF_INET, target, needed) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("192.0.2.1", "is not an address of this host"),
        ("127.0.0.1,127.0.0.1", "twice"),
        ("127.0.0.0/33", "127.0.0.0/33"),
        ("198.51.100.0/28", "no address of this host"),
        (",", "no address of this host"),
    ],
)
def test_sources_that_are_none(text, words):
    with pytest.raises(stress_facts.FactsError) as caught:
        stress_facts.parse_sources(text, socket.AF_INET, "127.0.0.1", 1)
    assert words in str(caught.value)


def test_socket_bytes_are_those_of_the_host_where_it_tells():
    line = "TCP                   78    130   3000   13    8 : tunables    0    0    0\n"
    assert stress_facts.socket_bytes(line) - stress_facts.socket_bytes("") == 3000 - 2368


@pytest.mark.parametrize(("rate", "turn"), [(500, 0.003), (2000, 0.001), (10000, 0.0007), (10000, 0.01)])
def test_a_rate_is_met_within_two_percent_and_its_bursts_are_bounded(rate, turn):
    """Two workers share it; one is held up for 50 ms every second."""
    buckets = [TokenBucket(rate / 2, index / rate) for index in range(2)]
    now, stalled, times = 0.0, 1.0, []
    while now < 5:
        for index, bucket in enumerate(buckets):
            if index and now >= stalled:
                stalled += 1.0 if now >= stalled + 0.05 else 0.0
                continue
            granted = bucket.available(now)
            bucket.take(granted)
            times += [now] * granted
        now += turn
    assert len(times) / 5 == pytest.approx(rate, rel=0.02)
    most = max(bisect.bisect_left(times, begun + 0.1) - place for place, begun in enumerate(times))
    assert most <= 2 * rate * 0.1 + 2


def test_ports_by_range_only_where_the_kernel_heeds_it(monkeypatch):
    monkeypatch.setattr(stress_ports, "_has_range", lambda: True)
    inside, outside, span = (40000, 50000), (1025, 50000), (32768, 60999)
    assert stress_ports.choose(socket.AF_INET, inside, span, True) == "route"
    assert stress_ports.choose(socket.AF_INET, inside, span, False) == "range"
    assert stress_ports.choose(socket.AF_INET, outside, span, True) == "bind"
    assert stress_ports.choose(socket.AF_INET6, inside, span, True) == "bind"
    monkeypatch.setattr(stress_ports, "_has_range", lambda: False)
    assert stress_ports.choose(socket.AF_INET, inside, span, True) == "bind"


# -- limits of this process ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("controller", "text", "expected"),
    [
        ("pids", "0::/", ["/sys/fs/cgroup"]),
        ("pids", "0::/a/b.slice\n", ["/sys/fs/cgroup/a/b.slice", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]),
        # An old hierarchy for each controller, as on hosts with Python 3.6.
        ("pids", "8:pids:/a\n4:memory:/b\n1:name=systemd:/c", ["/sys/fs/cgroup/pids/a", "/sys/fs/cgroup/pids"]),
        ("cpu", "2:cpu,cpuacct:/\n", ["/sys/fs/cgroup/cpu"]),
        ("memory", "", []),
    ],
)
def test_control_groups_of_a_process(controller, text, expected):
    assert stress_facts.cgroups(controller, text) == expected


def test_an_old_control_group_leaves_so_many_processes_and_so_much_memory(monkeypatch):
    files = {
        "/proc/self/cgroup": "8:pids:/a\n4:memory:/a\n0::/",
        "/sys/fs/cgroup/pids/a/pids.max": "20\n",
        "/sys/fs/cgroup/pids/a/pids.current": "7\n",
        "/sys/fs/cgroup/pids/pids.max": "max\n",
        "/proc/meminfo": "MemAvailable: 9000 kB\n",
        "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "5000000\n",
        "/sys/fs/cgroup/memory/a/memory.usage_in_bytes": "4000000\n",
        "/sys/fs/cgroup/memory/a/memory.stat": "inactive_file 5\ntotal_inactive_file 300000\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    monkeypatch.setattr(stress_facts, "_read", files.get)
    assert stress_facts._processes_free() == 13
    assert stress_facts._memory_available() == 1300000
    files["/proc/self/cgroup"] = ""
    assert stress_facts._processes_free() is None
    assert stress_facts._memory_available() == 9000 * 1024


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_a_user_s_own_limits_are_ceilings():
    """`ulimit -u`, and ports that only root may take: a route was blamed for EACCES."""
    script = (
        f"import sys, os, resource, socket; sys.path.insert(0, {str(Path(stress_facts.__file__).parent)!r})\n"
        "import stress_facts as f; os.setuid(64999); resource.setrlimit(resource.RLIMIT_NPROC, (9, 9))\n"
        "facts = f.read_facts(socket.AF_INET, ('127.0.0.1', 9), ('127.0.0.1',), (500, 2000))\n"
        "print(facts.processes_free, facts.reserved[-1:])\n"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, check=True)
    start = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    assert done.stdout == f"8 ((1, {start - 1}),)\n"
