"""Reading ``[role.NAME]`` of a topology document. :mod:`vmbus_emu.topology.file` calls this; nobody else needs to."""

from __future__ import annotations

from vmbus_emu.topology import data as data
from vmbus_emu.topology.data import RoleSpec
from vmbus_emu.topology.table import Report, Table, describe, suggest

KEYS = ("cpu_limit", "port")


def read_roles(report: Report, top: Table, arch: str) -> dict[str, RoleSpec]:
    """The roles that are asked for; what is wrong with them is told to ``report``."""
    outer = Table(report, top.at("role"), top.values.get("role", {}), None)
    roles = {}
    for name, value in outer.values.items():
        if name not in data.ROLES:
            outer.error(str(name), "is no role", suggest(name, data.ROLES))
            continue
        if arch == "monolithic":
            outer.error(name, data.NO_ROLES, 'remove the table, or take arch = "microkernel"')
            continue
        table = Table(report, outer.at(name), value, KEYS)
        roles[name] = RoleSpec(_cpu_limit(table), _port(table))
    return roles


def _cpu_limit(table: Table) -> float | None:
    if "cpu_limit" not in table:
        return None
    limit = data.parse_cpu_limit(table.values["cpu_limit"])
    if limit is None:
        table.error("cpu_limit", f"is {describe(table.values['cpu_limit'])}",
                    f"give a number of cores from {data.MIN_CPU_LIMIT:g} to {data.MAX_CPU_LIMIT:g}, such as 0.5")
    return limit


def _port(table: Table) -> int:
    port = table.values.get("port", 0)
    if isinstance(port, int) and not isinstance(port, bool) and 0 <= port < 1 << 16:
        return port
    table.error("port", f"is {describe(port)}", "give a number from 0 (one that is free) to 65535")
    return 0
