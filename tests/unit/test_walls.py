"""Which wall a run hit: tables of errors and recorded counters of both ends."""

import dataclasses
from typing import Any

import pytest

from tcpfleet import ceilings, limit, walls
from tcpfleet.cli import Options
from tcpfleet.errors import BadInput, Interrupted, NothingListens
from tcpfleet.limit import Search, Try, next_try
from tests.report_samples import observation


def seen(phase: str, **hosts: Any) -> dict:
    return {phase: {name: {"status": "ok", "observation": one} for name, one in hosts.items()}}


def errors(*rows: tuple[str, str, int]) -> list[dict]:
    return [
        {"phase": phase, "errno": name, "count": count, "host": "c1", "sample": "first"}
        for phase, name, count in rows
    ]


def server(overflows: int = 0, **more: Any) -> dict:
    return observation("s1", drops=overflows, **more)


def counters(netstat: dict | None = None, softnet: int = 0, pages: int = 5) -> dict:
    return {
        "netstat": {"TcpExt": {"ListenOverflows": 0, "ListenDrops": 0} | (netstat or {})},
        "softnet_stat": {"dropped": softnet},
        "sockstat": {"TCP": {"mem": pages}},
    }


FULL_PROCESS = {"pid": 1, "processes": [{"pid": 2, "fds": 1022, "nofile": {"soft": 1024, "hard": 1024}}]}
IDLE_PROCESS = {"pid": 1, "processes": [{"pid": 2, "fds": 22, "nofile": {"soft": 1024, "hard": 1024}}]}
TIMEOUT = ("echo", "ETIMEDOUT", 40)
OOM = "memory ran out, a process was killed"

# name of the wall, errors, before, peak and after of the server, words of evidence or fix
TABLE = [
    ("the server's accept queue", [TIMEOUT], {}, {}, {"overflows": 7}, ["grew by 7 on s1", "65,535"]),
    (
        "the server's accept queue",
        [TIMEOUT],
        {"sysctls": {"net.core.somaxconn": "128"}},
        {"listeners": [{"port": 1883, "accept_queue": 127, "backlog": 128}]},
        {"overflows": 7},
        ["holds 128", "net.core.somaxconn with `inv tune`"],
    ),
    (
        "the server's accept queue",
        [TIMEOUT],
        {"sysctls": {"net.core.somaxconn": "4096"}},
        {"listeners": [{"port": 1883, "accept_queue": 3, "backlog": 128}]},
        {"overflows": 7},
        ["holds 128", "listen with a longer backlog"],
    ),
    (
        "the server does not accept",
        [TIMEOUT],
        {},
        {"listeners": [{"port": 1883, "accept_queue": 129, "backlog": 128}]},
        {"overflows": 7},
        ["129 connections waited", "stuck"],
    ),
    (
        "open files of the server process (nofile)",
        [("echo", "ETIMEDOUT", 900)],
        {},
        {"server": FULL_PROCESS},
        {"overflows": 7, "server": FULL_PROCESS},
        ["1 of 1 server processes on s1 had all of their 1,024 open files", "ListenOverflows grew by 7"],
    ),
    (
        "open files of the server process (nofile)",
        [("echo", "EOF", 900)],
        {},
        {"server": IDLE_PROCESS},
        {"log": {"lines": ["accept4() failed (24: Too many open files)"]}},
        ["the server's log says: accept4() failed"],
    ),
    (
        "the server's SYN queue",
        [("connect", "ETIMEDOUT", 3)],
        {"counters": counters()},
        {},
        {"counters": counters({"TCPReqQFullDrop": 12, "TCPReqQFullDoCookies": 5})},
        ["12 SYNs were dropped and 5 answered with a cookie", "tcp_max_syn_backlog"],
    ),
    (
        "connections dropped by the server's listener",
        [("connect", "ETIMEDOUT", 3)],
        {"counters": counters()},
        {},
        {"counters": counters({"ListenDrops": 4})},
        ["ListenDrops grew by 4"],
    ),
    (
        "TCP memory (net.ipv4.tcp_mem)",
        [TIMEOUT],
        {"counters": counters()},
        {"counters": counters(pages=990), "sysctls": {"net.ipv4.tcp_mem": "100 500 1000"}},
        {"counters": counters({"TCPAbortOnMemory": 3, "TCPMemoryPressures": 1})},
        ["TCPAbortOnMemory grew by 3", "990 of 1,000 pages"],
    ),
    (
        "packets dropped before TCP saw them (net.core.netdev_max_backlog)",
        [("connect", "ETIMEDOUT", 3)],
        {"counters": counters()},
        {},
        {"counters": counters(softnet=77)},
        ["softnet dropped grew by 77"],
    ),
    (
        "connection tracking table",
        [("connect", "ETIMEDOUT", 3)],
        {},
        {"conntrack": {"count": 65530, "max": 65536}},
        {},
        ["65,530 of 65,536", "nf_conntrack_max"],
    ),
    (
        "open files of the machine (fs.file-max)",
        [("connect", "ENFILE", 12)],
        {},
        {"files": {"open": 2097000, "unused": 0, "max": 2097152}},
        {},
        ["2,097,000 of 2,097,152", "12 connects failed with ENFILE", "fs.file-max"],
    ),
    (
        "memory of s1",
        [("echo", "EOF", 5)],
        {},
        {},
        {"kernel_log": {"lines": [{"seconds": 1.0, "message": "Killed process 7 (echo)", "means": OOM}]}},
        ["Killed process 7"],
    ),
    (
        "a worker of a stress client died",
        [("echo", "WORKER_DIED", 40)],
        {},
        {},
        {},
        ["40 of 1,000 connections were c1's", "see why it ended"],
    ),
]


def scene(failed: list, before: dict, peak: dict, after: dict, **more: Any) -> walls.Scene:
    def made(changes: dict) -> dict:
        return server(**changes)

    return walls.Scene(
        errors=errors(*failed),
        connections={
            "requested": 1000,
            "established": 999 if failed else 1000,
            "failed": sum(row[2] for row in failed),
        },
        observations=seen("before", s1=made(before)) | seen("peak", s1=made(peak)) | seen("after", s1=made(after)),
        server="s1",
        clients=["c1"],
        lost={},
        **more,
    )


@pytest.mark.parametrize(("name", "failed", "before", "peak", "after", "words"), TABLE, ids=[r[0] for r in TABLE])
def test_walls(name: str, failed: list, before: dict, peak: dict, after: dict, words: list[str]) -> None:
    wall = walls.diagnose(scene(failed, before, peak, after))
    assert wall is not None and wall["name"] == name
    for word in words:
        assert word in wall["evidence"] + wall["fix"]


def busy(*shares: float, every: float = 1.0) -> dict:
    """Samples of one host, the first without a share of its own."""
    rows = [{"t": 0.0}] + [{"t": every * (at + 1), "cpu_busy": share} for at, share in enumerate(shares)]
    return {"samples": {"s1": {"rows": rows}}}


HOLD = {"of the ramp": (0.0, 0.03), "of the hold": (0.65, 4.65)}
CPU_TABLE = [
    # The average from before the load until after it was 0.79: no wall was named.
    (busy(0.42, 0.99, 0.995, 0.99, 0.75, 0.07), HOLD, "95% busy or more in 3.0 of 4.0 s of the hold"),
    (busy(0.42, 0.99, 0.8, 0.7, 0.75, 0.07), HOLD, None),  # one sample
    (busy(0.42, 0.94, 0.94, 0.94, 0.94), HOLD, None),
    (
        busy(*[1.0] * 20, *[0.3] * 400),
        {"of the ramp": (0.0, 20.0), "of the hold": (20.0, 420.0)},
        "20.0 of 20.0 s of the",
    ),
    (busy(*[0.3] * 20, *[1.0] * 20, *[0.3] * 380), {"of the hold": (20.0, 420.0)}, None),
    (busy(*[1.0] * 60, every=8), {"of the hold": (10.0, 470.0)}, "460.0 of 460.0 s"),  # samples of a long run
    ({"samples": {"s1": {"unavailable": {"samples": "damaged"}}}}, HOLD, None),
    ({}, HOLD, None),
]


@pytest.mark.parametrize(("sampled", "phases", "words"), CPU_TABLE)
def test_processors_without_time_left_in_a_phase(sampled: dict, phases: dict, words: str | None) -> None:
    wall = walls.diagnose(scene([], {}, {}, {}, phases=phases, **sampled))
    assert (wall and wall["name"]) == (words and "CPU of s1")
    assert wall is None or words in wall["evidence"]


def test_what_explains_more_comes_before_the_processors() -> None:
    found = walls.diagnose(scene([("echo", "WORKER_DIED", 40)], {}, {}, {}, phases=HOLD, **busy(*[1.0] * 5)))
    assert found is not None and found["name"] == "a worker of a stress client died"
    assert [one["name"] for one in found["also"]] == ["CPU of s1"]


@pytest.mark.parametrize(
    ("failed", "peak", "after"),
    [
        # All came up, and later one reply did not come, or the server closed: no limit of their number did that.
        (("echo", "ETIMEDOUT", 1), {"server": FULL_PROCESS}, {}),
        (("close", "EOF", 1), {"states": {"server": {"ESTAB": 1000}}}, {}),
        (("close", "EOF", 1), {"conntrack": {"count": 65530, "max": 65536}}, {}),
        (("echo", "ETIMEDOUT", 1), {"files": {"open": 2097000, "unused": 0, "max": 2097152}}, {}),
        (("echo", "ETIMEDOUT", 1), {}, {"counters": counters({"TCPReqQFullDrop": 12})}),
        # What a reply says is the server's doing, whatever the counters did meanwhile.
        (("echo", "EBADMSG", 1), {}, {"overflows": 7}),
        (("echo", "CROSSED", 1), {}, {"counters": counters(softnet=77)}),
        (("tls", "EPROTO", 1), {"server": FULL_PROCESS}, {"overflows": 7}),
    ],
)
def test_a_counter_that_cannot_have_done_it_is_no_wall(failed: tuple, peak: dict, after: dict) -> None:
    said = {"name": "the server's doing", "evidence": "e", "fix": "f"}
    one = scene([failed], {"counters": counters()}, peak, after, said=[(said, 1)], capacity=1000)
    counts = {"requested": 1000, "established": 1000, "failed": 1}
    wall = walls.diagnose(dataclasses.replace(one, connections=counts))
    assert wall is not None and wall["name"] == "the server's doing"


def test_what_the_clients_say_counts_where_counters_are_silent() -> None:
    said = {"name": "nothing listens", "evidence": "e", "fix": "f"}
    found = walls.diagnose(scene([("connect", "ECONNREFUSED", 9)], {}, {}, {}, said=[(said, 9)]))
    assert found == said | {"also": []}
    assert walls.diagnose(scene([], {}, {}, {"overflows": 9})) is None  # nothing failed, nothing was slow


def test_the_evidence_of_clients_is_that_of_all_of_them() -> None:
    """It was one client's: "91 of 200 connections failed" of a run of 400."""
    said = {
        "name": "nothing listens",
        "evidence": "3 of 500",
        "fix": "f",
        "phase": "connect",
        "errno": "ECONNREFUSED",
    }
    rows = errors(("connect", "ECONNREFUSED", 4), ("connect", "ECONNREFUSED", 3), ("connect", "ETIMEDOUT", 1))
    rows = [row | {"first": f"2026-01-01T00:00:0{9 - at}.000Z"} for at, row in enumerate(rows)]
    all_of_them = scene([], {}, {}, {}, said=[(said, 3), (said, 4)])
    of_all = dataclasses.replace(all_of_them, errors=rows, connections={"requested": 1000, "peak": 992})
    found = walls.diagnose(of_all)
    assert found is not None and found["evidence"] == (
        "7 of 1,000 connections failed with ECONNREFUSED (connect), first at 2026-01-01T00:00:08.000Z; "
        "at most 992 were open; first"
    )


def test_a_client_s_own_limit_comes_before_the_server_s_counters() -> None:
    said = {"name": "source ports", "evidence": "e", "fix": "f"}
    failed = [("connect", "EADDRNOTAVAIL", 9)]
    found = walls.diagnose(scene(failed, {}, {}, {"overflows": 9}, said=[(said, 9)]))
    assert found is not None and found["name"] == "source ports"
    assert [one["name"] for one in found["also"]] == ["the server's accept queue"]


def test_hosts_of_one_machine_are_counted_once() -> None:
    files = {"files": {"open": 2097000, "unused": 0, "max": 2097152}}
    both = {name: observation(name, boot="same", **files) for name in ("s1", "c1")}
    found = walls.diagnose(
        walls.Scene(
            errors=errors(("connect", "ENFILE", 1)),
            connections={"requested": 10, "failed": 1},
            observations=seen("peak", **both),
            server="s1",
            clients=["c1"],
            lost={},
        )
    )
    assert found is not None and "on s1, c1 (one machine, counted once)" in found["evidence"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"overflows": 7}, "the server's accept queue"),
        ({"counters": counters({"TCPReqQFullDrop": 12})}, "the server's SYN queue"),
        ({"counters": counters({"ListenDrops": 4})}, "connections dropped by the server's listener"),
    ],
)
@pytest.mark.parametrize(
    ("old", "new", "ours"),
    [
        ({"drops": 5, "sockets": [7]}, {"drops": 5, "sockets": [7]}, False),
        ({"drops": 5, "sockets": [7]}, {"drops": 6, "sockets": [7]}, True),
        ({"drops": 0, "sockets": [7]}, {"drops": 0, "sockets": [8]}, True),  # started anew
        ({"unavailable": "Linux 3.10"}, {"unavailable": "Linux 3.10"}, True),
        ({}, {}, True),
    ],
)
def test_drops_of_another_server_s_port_are_not_this_one_s(
    changes: dict, name: str, old: dict, new: dict, ours: bool
) -> None:
    """The host's counters are of all its listeners."""
    start = {"counters": counters(), "listener_drops": old}
    found = walls.diagnose(scene([TIMEOUT], start, {}, changes | {"listener_drops": new}))
    assert (found and found["name"]) == (name if ours else None)


@pytest.mark.parametrize(
    ("errno", "established", "named"), [("EOF", 1000, False), ("EOF", 999, True), ("ETIMEDOUT", 1000, True)]
)
def test_a_server_that_hangs_up_later_had_no_full_accept_queue(errno: str, established: int, named: bool) -> None:
    one = scene([("echo", errno, 1)], {}, {}, {"overflows": 7})
    one = dataclasses.replace(one, connections={"requested": 1000, "failed": 1, "established": established})
    assert (walls.accept_queue(one) is not None) is named


def test_a_reboot_makes_no_deltas() -> None:
    one = scene([TIMEOUT], {}, {}, {"overflows": 7, "boot": "another"})
    assert walls.accept_queue(one) is None


# ---------------------------------------------------------------- before the load


def test_the_server_s_part_of_the_plan() -> None:
    facts = ceilings.facts(server(server=IDLE_PROCESS), 5000, 1883)
    assert (facts["capacity"], facts["backlog"], facts["somaxconn"]) == (5000, 65535, "65535")
    assert (facts["processes"], facts["nofile_per_process"]) == (1, 1024)
    assert facts["conntrack_free"] is None and facts["tcp_mem"] is None
    assert facts["files_free"] == 2097152 - 1500
    assert facts["bytes_per_connection"] == 2368 + 832 + 192 + 128 + 192 + 250
    assert ceilings.refusals(facts, 5000, 10000) == []


@pytest.mark.parametrize(
    ("changes", "wanted", "ends", "words"),
    [
        ({"capacity": 4999}, 5000, 5000, "can hold 4,999 connections, 5,000 are asked: `inv deploy-server --max"),
        ({"files_free": 9999}, 5000, 10000, "fs.file-max"),
        ({"conntrack_free": 100}, 101, 101, "nf_conntrack_max"),
        ({"memory_available": 2**20}, 1000, 2000, "MiB of memory are needed for 2,000 ends"),
    ],
)
def test_refusals_name_ceiling_number_and_fix(changes: dict, wanted: int, ends: int, words: str) -> None:
    found = ceilings.refusals(ceilings.facts(server(), None, 1883) | changes, wanted, ends)
    assert len(found) == 1 and words in found[0]


def test_an_observation_that_saw_nothing_refuses_nothing() -> None:
    facts = ceilings.facts({}, None, 1883)
    assert ceilings.refusals(facts, 10**7, 2 * 10**7) == []


# ---------------------------------------------------------------- find-limit


@pytest.mark.parametrize("true_limit", [0, 1, 7, 999, 1000, 1500, 63976, 10**6])
def test_the_search_ends_at_the_limit(true_limit: int) -> None:
    search, tries = Search(1000, 10**6, 0.05), []
    while (size := next_try(tries, search)) is not None:
        tries.append(Try(size, size <= true_limit, ""))
    assert len(tries) < 25
    held = max([one.size for one in tries if one.held], default=0)
    assert held <= true_limit <= max(held * 1.06, held + 1)


@pytest.mark.parametrize(
    ("grow", "size", "rate", "held"),
    [("connections", 100, 1.0, True), ("rate", 1000, 990.0, True), ("rate", 1000, 900.0, False)],
)
def test_a_rate_that_was_not_reached_did_not_hold(grow: str, size: int, rate: float, held: bool) -> None:
    record = {
        "connections": {"verified": 100, "requested": 100},
        "verdict": "pass",
        "churn": None,
        "rate": {"connects_per_second": rate},
        "warnings": [],
        "wall": None,
        "thresholds": [],
        "run_id": "r",
    }
    found = limit.judge(size, grow, record)
    assert found.held is held and (found.wall is None) is held


@pytest.mark.parametrize(
    ("held", "ended", "code"), [(True, None, 0), (False, None, 3), (False, Interrupted("interrupted"), 130)]
)
def test_a_search_in_which_nothing_held_has_failed(held: bool, ended: Interrupted | None, code: int) -> None:
    answer = limit._answer(Options({}), "connections", [Try(1, held, "")], ended)
    assert (answer.code, answer.data["limit"]) == (code, int(held))


def test_without_a_server_there_is_nothing_to_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was tried with ever fewer connections, down to one."""

    class Absent:
        all_hosts = ()

        def execute(self, fleet: object) -> None:
            raise NothingListens("nothing listens on port 1")

    monkeypatch.setattr(limit, "planned", lambda *arguments: Absent())
    with pytest.raises(NothingListens):
        limit.find_limit(Options({}), "connections", ("", "", ""), "1", "", "", False, {}, ())


def test_a_server_that_did_not_outlive_a_try_ends_the_search_with_what_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All tries were lost with it, also those that had held."""

    class Load:
        all_hosts = ()
        interrupted = False

        def __init__(self, count: str, each: str) -> None:
            self.size = int(count) * int(each)

        def execute(self, fleet: object) -> dict:
            if self.size == 15 and not self.interrupted:
                raise NothingListens("s1: nothing listens on port 1883")
            counts = {"verified": min(10, self.size), "requested": self.size}
            verdict = "pass" if self.size <= 10 else "fail"
            record = {"connections": counts, "verdict": verdict, "wall": None, "thresholds": [], "run_id": "r"}
            return record | {"interrupted": self.interrupted and self.size == 15}

    monkeypatch.setattr(limit, "planned", lambda options, count, each, *rest: Load(count, each))
    sizes = ("2", "", "")
    answer = limit.find_limit(Options({}), "connections", sizes, "5", "", "", False, {}, ())
    assert (answer.code, answer.data["limit"], answer.data["above"]["size"]) == (5, 10, 20)
    assert [one["size"] for one in answer.data["tries"]] == [5, 10, 20]  # from one for each client
    assert "not searched any further: s1: nothing listens on port 1883" in capsys.readouterr().out
    monkeypatch.setattr(Load, "interrupted", True)
    answer = limit.find_limit(Options({}), "connections", sizes, "5", "", "", False, {}, ())
    assert (answer.code, answer.data["above"]["size"]) == (130, 20)  # not that which was cut short
    with pytest.raises(BadInput, match="--most 3 is less than one for each of 5 clients"):
        limit.find_limit(Options({}), "connections", ("1", "3", ""), "5", "", "", False, {}, ())


def test_containers_of_one_kernel_are_one_machine() -> None:
    """systemd-nspawn gives each a boot id of its own."""
    hosts = {
        name: observation(
            name,
            boot=f"boot-{name}",
            cpu={"boot_epoch": 1769860000, "context_switches": switches},
            memory={"MemTotal": memory},
        )
        for name, memory, switches in (("s1", 2**30, 1_000_000), ("c1", 2**30, 1_000_900), ("c2", 2**31, 5))
    }
    scene = walls.Scene([], {}, seen("peak", **hosts), server="s1", clients=["c1", "c2"], lost={})
    assert scene.machines() == [("s1", ["s1", "c1"]), ("c2", ["c2"])]
