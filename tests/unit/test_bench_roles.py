"""``bench roles``: what it refuses, its load, its rows, where everybody sits, how it reads. No process is started."""

from __future__ import annotations

import json
import random
from array import array
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench import busyrole, pins, roles
from bench.busyrole import Busy
from bench.dnsload import COUNTERS, flood
from bench.jobs import STANDARD
from bench.machines import STANDARD as CONFIGURATIONS
from bench.machines import Measured
from bench.pins import Places
from bench.report.roletables import roles as role_table
from bench.report.sentence import summary
from bench.report.stored import Run
from bench.results import BadResults, load
from bench.roles import ARMS, Arm, Beside, row
from bench.roletable import run_lines
from tests import measured_runs
from vmbus_emu.cli.main import cli

ZMQ = CONFIGURATIONS[1]
READ = STANDARD["read-4k"]


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "roles", *arguments])


@pytest.mark.parametrize(("arguments", "told"), [
    (["--arch", "monolithic"], "a monolithic hypervisor takes no roles"), (["--arch", "all"], "takes no roles"),
    (["--cpu-limit", "0"], "0.01<=x<=1024"), (["--queries", "0"], "1<=x<=256"),
    (["--trace", "t.json"], "no requests apart"),
])
def test_what_cannot_be_measured_is_refused_in_one_line(arguments: list[str], told: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert told in line


def test_without_dnspython_it_says_so_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busyrole, "find_spec", lambda name: None)
    result = bench("--rounds", "1")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert "dnspython, which is not installed" in line
    assert "pip install 'vmbus-emu[roles]'" in line
    listed = CliRunner().invoke(cli, ["bench", "list"]).stdout
    assert "arms, bench roles only (needs dnspython: pip install 'vmbus-emu[roles]')" in listed


# -- the load -------------------------------------------------------------------------------------------------------

QUERY, ANSWER = b"\0\0query", b"\0\0answer"


class Server:
    """Answers in order, each query as ``reply`` says; after ``turns`` datagrams the load is told to end."""

    def __init__(self, reply: Any, turns: int) -> None:
        self.reply, self.turns = reply, turns
        self.queue: deque[bytes] = deque()
        self.most = 0
        self.asked: list[bytes] = []
        self.counters = [0] * len(COUNTERS)

    def send(self, query: bytes) -> None:
        self.asked.append(query)
        self.queue.append(query)
        self.most = max(self.most, len(self.queue))

    def receive(self) -> bytes | None:
        self.turns -= 1
        answer: bytes | None = self.reply(self.queue.popleft())
        return answer

    def run(self, outstanding: int) -> dict[str, int]:
        flood(self.send, self.receive, QUERY, ANSWER, outstanding, self.counters, lambda: self.turns <= 0)
        return dict(zip(COUNTERS, self.counters, strict=True))


def test_the_load_keeps_its_queries_under_way_each_with_an_id_of_its_own() -> None:
    server = Server(lambda query: query[:2] + ANSWER[2:], 1000)
    told = server.run(7)
    assert told["answered"] >= 1000
    assert (told["wrong"], told["late"], told["lost"]) == (0, 0, 0)
    assert server.most == 7
    assert {query[2:] for query in server.asked} == {b"query"}
    assert len({query[:2] for query in server.asked[:1000]}) == 1000


def test_the_load_counts_wrong_answers_late_ones_and_those_that_never_come() -> None:
    assert Server(lambda query: query[:2] + b"Answer", 100).run(3)["wrong"] >= 100
    # The id of no query under way.
    assert Server(lambda query: b"\xff\xff" + ANSWER[2:], 1).run(300)["late"] >= 1
    told = Server(lambda query: None, 10).run(3)
    assert (told["lost"], told["answered"]) == (30, 0)


# -- where everybody sits -------------------------------------------------------------------------------------------


@pytest.fixture
def single_threads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every process has one thread, with its own id."""
    monkeypatch.setattr(pins, "threads", lambda pid: iter([(pid, "python")]))
    named = (("machine", "machine"), ("hypervisor", "hypervisor"), ("parent", "parent"), ("vm1", "child"),
             ("vm2", "child"), ("dns", "role"))  # fmt: skip
    return [{"name": name, "role": role, "host": name, "pid": 10 + place} for place, (name, role) in enumerate(named)]


def test_the_role_is_among_the_hosts_and_its_load_not_with_vm1(single_threads: list[dict[str, Any]]) -> None:
    two = Places((0, 1), (1,))
    assert pins.processor_of(single_threads, two)["dns"] == 1
    assert pins.bystander(single_threads, two) == 1
    assert pins.processor_of(single_threads, two)["vm1"] == 0


def test_where_there_is_room_the_load_has_a_processor_that_nobody_needs(single_threads: list[dict[str, Any]]) -> None:
    eight = Places(tuple(range(8)), (4, 5, 6, 7))
    taken = pins.processor_of(single_threads, eight)
    free = pins.bystander(single_threads, eight)
    assert free not in {taken[name] for name in ("vm1", "vm2", "parent", "dns")}
    assert pins.bystander(single_threads, Places((3,), (3,))) == 3


# -- rows -----------------------------------------------------------------------------------------------------------


def beside(us: float, busy: Busy | None = None, held_by: str | None = None) -> Beside:
    chance = random.Random(us)
    latencies = array("q", (round(us * 1000 * chance.lognormvariate(0, 0.1)) for _ in range(2000)))
    return Beside(Measured(latencies, sum(latencies) / 1e9, us, {"vm1": us}, 2.0, {"packets": 2.0}), held_by, busy)


def test_a_row_is_held_against_the_same_rounds_without_a_role() -> None:
    without: list[Beside | str] = [beside(100 + step) for step in range(10)]
    busy: list[Beside | str] = [beside(3 * (100 + step), Busy(4000.0, 0.5, 0.05), "no limit") for step in range(10)]
    without[3], busy[7] = "vm1 died", "the role answered 0 queries, so it was not busy"
    one = row(Arm(ZMQ, "busy"), READ, busy, without, 0.2)
    assert (one["arm"], one["role"], one["cpu_limit"], one["held_by"]) == ("busy", "dns", None, "no limit")
    assert (one["repetitions"], one["failed"]) == (9, ["the role answered 0 queries, so it was not busy"])
    assert (one["queries_per_s"], one["role_cpu"], one["load_cpu"]) == (4000.0, 0.5, 0.05)
    half = one["times"]["p50_us"]
    assert half["value"] == pytest.approx(3, rel=0.05)
    assert half["significant"]
    assert one["times"]["ops_per_s"]["value"] == pytest.approx(1 / 3, rel=0.05)
    assert one["times"]["p99_us"]["value"] == pytest.approx(3, rel=0.2)
    assert [place for place, us in enumerate(one["sets"]["p50_us"]) if us is None] == [7]


def test_the_arm_without_a_role_has_none_and_what_was_not_measured_is_null() -> None:
    none = row(Arm(ZMQ, "none"), READ, [beside(100)], [beside(100)], 0.2)
    assert [none[name] for name in ("role", "cpu_limit", "held_by", "queries_per_s", "role_cpu", "times")] == [None] * 6
    failed = row(Arm(ZMQ, "limited"), READ, ["no machine"], [beside(100)], 0.3)
    assert (failed["cpu_limit"], failed["repetitions"], failed["p50_us"], failed["sets"]) == (0.3, 0, None, None)
    assert failed["times"] == {"p50_us": None, "p99_us": None, "ops_per_s": None}


def test_what_failed_makes_the_run_unstable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "make_image", lambda path: None)
    monkeypatch.setattr(roles, "sample_set", lambda plan, one: {
        job: "the role gave 3 wrong answers" if one.arm == "busy" else beside(100) for job in plan.jobs})
    run = roles.run([ZMQ], [READ], rounds=2, seed=1)
    assert [(one["arm"], one["repetitions"]) for one in run["roles"]] == [("none", 2), ("busy", 0), ("limited", 2)]
    assert "read-4k on microkernel zmq, dns busy failed 2 times: the role gave 3 wrong answers" in run["reasons"]
    assert not run["stable"]
    assert (run["results"], run["ratios"]) == ([], [])


# -- how it reads ---------------------------------------------------------------------------------------------------


def test_the_table_says_what_the_role_did_and_what_holds_it_back() -> None:
    told = list(run_lines(measured_runs.document(roles=measured_runs.roles())))
    assert max(map(len, told)) <= 120
    (busy,) = [line for line in told[:8] if "microkernel zmq, dns, busy" in line]
    assert busy.split()[4:6] == ["550", "5.00"]
    assert busy.split()[-3:] == ["5,000", "0.50", "0.01"]
    (alone,) = [line for line in told[:8] if "microkernel zmq, no role" in line]
    assert alone.split()[-1] == "8,000"
    assert "Limited: 0.2 cores, by cgroup v1." in told
    assert "Processors: vm1 0, vm2 1, parent 1, dns 1, load 1." in told


def test_a_host_that_cannot_enforce_a_limit_is_told_as_one() -> None:
    rows = measured_runs.roles()
    for one in rows:
        if one["arm"] == "limited":
            one["held_by"] = "idle priority; 0.2 cores cannot be enforced here"
            one |= {"p50_us": None, "repetitions": 0, "failed": ["the role answered nothing"]} if (
                one["job"] == "ping") else {}
    run = measured_runs.document(roles=rows)
    told = list(run_lines(run))
    assert "Limited: idle priority; 0.2 cores cannot be enforced here." in told
    assert sum("dns, limited" in line and "the role answered nothing" in line for line in told) == 2
    page = role_table(Run(run))
    assert "dns: idle priority; 0.2 cores cannot be enforced here" in page
    assert "the role answered nothing" in page


def test_the_sentence_is_about_the_first_job() -> None:
    assert summary(Run(measured_runs.document(roles=measured_runs.roles()))) == (
        "On this machine a 4 KiB cached read takes 110 µs (100 to 120) over ZeroMQ in the microkernel without a "
        "role; 5.00 times as long beside a busy one, no limit (4.50 to 5.50); "
        "2.00 times as long beside a busy one, 0.2 cores, by cgroup v1 (1.50 to 2.50, not significant).")  # fmt: skip


def test_a_run_is_kept_and_loaded_with_its_roles(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(measured_runs.document(roles=measured_runs.roles())))
    assert load(path)["roles"] == measured_runs.roles()
    path.write_text(json.dumps(measured_runs.document(roles=[3])))
    with pytest.raises(BadResults, match="its roles are damaged"):
        load(path)


def test_every_arm_is_listed() -> None:
    listed = CliRunner().invoke(cli, ["bench", "list"]).stdout
    for arm, words in ARMS.items():
        assert f"  {arm:16} {words}\n" in listed
