"""Roles of running machines: what they answer, what their deaths cost (nothing), and what is left of them (nothing)."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.message
import dns.query
import dns.rcode
import pytest

from vmbus_emu.client import MachineError

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]
LOOPBACK = "127.0.0.1"


def port_of(role: dict[str, Any]) -> int:
    return int(role["listens"][0].rpartition(":")[2])


def ask(port: int, name: str, kind: str = "A") -> dns.message.Message:
    """Asked over UDP and TCP, which must say the same."""
    query = dns.message.make_query(name, kind)
    answers = [way(query, LOOPBACK, port=port, timeout=5) for way in (dns.query.udp, dns.query.tcp)]
    assert answers[0] == answers[1]
    return answers[0]


def get(port: int, target: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    connection.request(method, target)                 # as it is: nothing is made straight on the way
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def test_dns_answers_for_the_vms_and_comes_and_goes_without_any_vm_noticing(lab: Lab, wait: Wait) -> None:
    machine = lab.up("disaggregated")
    before = {name: row["pid"] for name, row in lab.rows(machine).items()}
    status, out, errors = lab.cli("role", "add", "dns", "--name", "m")
    assert (status, out.startswith(b"dns: ready")) == (0, True), errors
    (role,) = lab.json("role", "list", "--name", "m")["roles"]
    port = port_of(role)
    assert [rrset.to_text() for rrset in ask(port, "vm2.m.vm").answer] == ["vm2.m.vm. 5 IN A 10.0.0.2"]
    assert str(ask(port, "2.0.0.10.in-addr.arpa", "PTR").answer[0][0]) == "vm2.m.vm."
    assert ask(port, "vm3.m.vm").rcode() == dns.rcode.NXDOMAIN
    row = lab.rows(machine)["dns"]
    assert (row["role"], row["host"], row["state"], row["counters"]["answered"]) == ("role", "dns", "ready", 6)

    machine.add_vm("vm3")
    assert [rrset.to_text() for rrset in ask(port, "vm3.m.vm").answer] == ["vm3.m.vm. 5 IN A 10.0.0.3"]
    machine.remove_vm("vm3")
    assert ask(port, "vm3.m.vm").rcode() == dns.rcode.NXDOMAIN

    run = machine.kill("dns")                          # under load; waits for the next incarnation
    assert run["kills"][0]["missing"] == []
    again = machine.roles()[0]
    assert (again["incarnation"], port_of(again)) == (2, port)
    assert again["pid"] != role["pid"]
    assert ask(port, "vm1.m.vm").rcode() == dns.rcode.NOERROR
    assert {name: row["pid"] for name, row in lab.rows(machine).items() if name != "dns"} == before

    assert lab.cli("role", "remove", "dns", "--name", "m")[:2] == (0, b"dns: removed\n")
    assert machine.roles() == []
    assert "dns" not in lab.rows(machine)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, port), 5)


@pytest.mark.skipif(shutil.which("dig") is None, reason="dig is not installed")
def test_dig_is_answered(lab: Lab) -> None:
    port = port_of(lab.up().add_role("dns"))
    dig = ["dig", f"@{LOOPBACK}", "-p", str(port), "+short", "+tries=1"]
    assert subprocess.run([*dig, "vm1.m.vm"], capture_output=True, timeout=20, check=True).stdout == b"10.0.0.1\n"
    found = subprocess.run([*dig, "-x", "10.0.0.1"], capture_output=True, timeout=20, check=True).stdout
    assert found == b"vm1.m.vm.\n"


def test_dns_outlives_what_is_no_query(lab: Lab) -> None:
    machine = lab.up()
    port = port_of(machine.add_role("dns"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for junk in (b"", b"\0", b"\xff" * 12, b"\1\2\1\0\0\1" + bytes(6), os.urandom(512)):
            udp.sendto(junk, (LOOPBACK, port))
    idle = [socket.create_connection((LOOPBACK, port), 5) for _ in range(40)]      # more than it takes
    for one in idle:
        one.close()
    with socket.create_connection((LOOPBACK, port), 5) as tcp:
        tcp.sendall(b"\0\5abc")                        # a length, and less than that
        assert ask(port, "vm1.m.vm").rcode() == dns.rcode.NOERROR
    assert machine.roles()[0]["incarnation"] == 1


def test_files_shows_logs_and_reports_and_nothing_else(lab: Lab) -> None:
    machine = lab.up()
    port = port_of(machine.add_role("files"))
    folder = lab.run / "m"
    assert get(port, "/logs/machine.log") == (200, (folder / "logs" / "machine.log").read_bytes())
    assert b"machine.log" in get(port, "/logs/")[1]
    assert get(port, "/logs")[0] == 301
    assert b"logs/" in get(port, "/")[1]
    (folder / "reports" / "run.html").write_text("<p>report")
    (folder / "reports" / "index.html").symlink_to("/etc/passwd")
    assert get(port, "/reports/run.html") == (200, b"<p>report")
    assert b"run.html" in get(port, "/reports/")[1]
    for target in ("/lock", "/pids", "/s/", "/logs/../pids", "/logs/%2e%2e/pids", "/reports/index.html", "/logs/none"):
        status, content = get(port, target)
        assert status == 404, target
        assert b"root:" not in content
    for method in ("PUT", "POST", "DELETE"):
        assert get(port, "/logs/machine.log", method)[0] == 501
    counters = lab.rows(machine)["files"]["counters"]
    assert counters["not_found"] == 7


def test_a_role_that_hangs_is_replaced(lab: Lab, wait: Wait) -> None:
    machine = lab.up(role={"files": {}})
    os.kill(machine.roles()[0]["pid"], signal.SIGSTOP)
    wait(lambda: machine.roles()[0]["incarnation"] == 2 and machine.roles()[0]["state"] == "ready", "it is replaced")
    lab.note()


def test_roles_of_a_topology_are_there_when_it_is_up_and_after_a_reboot(lab: Lab, wait: Wait) -> None:
    machine = lab.up(role={"dns": {}, "files": {}}, policy={"hypervisor": "reboot"})
    first = {role["name"]: role for role in machine.roles()}
    assert {name: role["state"] for name, role in first.items()} == {"dns": "ready", "files": "ready"}
    os.kill(lab.rows(machine)["hypervisor"]["pid"], signal.SIGKILL)

    def again() -> bool:
        roles = {role["name"]: role for role in machine.roles()}
        return all(role["state"] == "ready" and role["pid"] != first[name]["pid"] for name, role in roles.items())

    wait(again, "all roles run again")
    assert {role["name"]: role["listens"] for role in machine.roles()} == {
        name: role["listens"] for name, role in first.items()
    }
    assert ask(port_of(first["dns"]), "vm1.m.vm").rcode() == dns.rcode.NOERROR
    lab.note()


def test_with_policy_halt_a_dead_role_stays_dead_until_it_is_added_anew(lab: Lab) -> None:
    machine = lab.up(role={"files": {}}, policy={"role": "halt"})
    lab.kill(machine, "files")
    assert [role["state"] for role in machine.roles()] == ["dead"]
    machine.remove_role("files")
    assert machine.add_role("files")["state"] == "ready"


def test_the_monolith_refuses_roles_and_says_why(lab: Lab) -> None:
    lab.up("monolithic")
    status, _, errors = lab.cli("role", "add", "dns", "--name", "m")
    assert status == 1
    assert "a monolithic hypervisor takes no roles" in errors
    (lab.folder / "t.toml").write_text('name = "t"\narch = "monolithic"\n[role.dns]\n')
    status, _, errors = lab.cli("up", str(lab.folder / "t.toml"))
    assert status == 2
    assert "role.dns: a monolithic hypervisor takes no roles" in errors


def test_a_port_that_is_taken_fails_in_one_line_and_leaves_nothing(lab: Lab) -> None:
    machine = lab.up()
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, errors = lab.cli("role", "add", "files", "--name", "m", "--port", str(port))
        assert (status, out) == (1, b"")
        assert errors.count("\n") == 1
        assert f"cannot listen at {LOOPBACK}:{port}: Address already in use; give another port" in errors
        assert machine.roles() == []
        topology = lab.machine({"name": "t", "role": {"files": {"port": port}}})
        with pytest.raises(MachineError, match="files cannot start: it cannot listen"):
            topology.up()
    assert machine.add_role("files", port=port)["state"] == "ready"
    with pytest.raises(MachineError, match="is there already"):
        machine.add_role("files")


def test_a_limit_is_in_force_as_it_is_told_and_leaves_nothing_when_the_plug_is_pulled(lab: Lab, wait: Wait) -> None:
    machine = lab.up(role={"dns": {"cpu_limit": 0.25}})
    role = machine.roles()[0]
    pid, in_force = role["pid"], role["in_force"]
    assert role["cpu_limit"] == 0.25
    groups = [Path(line) for line in (lab.run / "m" / "cgroups").read_text().splitlines()] if (
        in_force["kind"] == "cgroup") else []
    if in_force["kind"] == "cgroup":
        assert in_force["cores"] == 0.25
        assert f"/{groups[0].name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
        quota = groups[0] / ("cpu.max" if "v2" in in_force["words"] else "cpu.cfs_quota_us")
        assert quota.read_text().split()[0] == "2500"
    else:
        assert (in_force["kind"], in_force["cores"]) == ("priority", None)
        assert (os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)) == (os.SCHED_IDLE, 19)
    os.kill(machine.info()["pid"], signal.SIGKILL)
    wait(lambda: not lab.survivors(), "everything is dead")
    assert lab.cli("down", "--name", "m")[0] == 0
    assert [group for group in groups if group.exists()] == []
