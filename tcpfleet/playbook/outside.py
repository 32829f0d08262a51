"""What Ansible has and this subset has not, each with what to use instead: so that an error can say so."""

from __future__ import annotations

from collections.abc import Mapping

# Keys of plays that are not supported -> what to do instead.
PLAY_KEYS: Mapping[str, str] = {
    "roles": "put the role's tasks into a file and use import_tasks, its defaults into vars_files",
    "vars_prompt": "give the variables with -e",
    "connection": "set ansible_connection in the inventory",
    "remote_user": "set ansible_user in the inventory",
    "user": "set ansible_user in the inventory",
    "port": "set ansible_port in the inventory",
    "max_fail_percentage": "use any_errors_fatal, or serial with smaller batches",
    "force_handlers": "handlers that are pending when a host fails are kept and run in the next successful run",
    "module_defaults": "write the arguments out, or share them with a YAML anchor",
    "collections": "write modules with their full names",
    "throttle": "use serial, or --forks",
    "order": "hosts keep the inventory's order",
    "gather_timeout": "gathering takes one round trip; the connection has its own time limits",
    "fact_path": "local facts are not gathered; use a command and register",
    "become_exe": "set ansible_become_exe in the inventory",
    "become_flags": "sudo is run with fixed flags; use become_user",
    "ignore_unreachable": "an unreachable host drops out, the others go on",
    "debugger": "run with --check --diff, or look at results with debug",
    "diff": "use --diff",
    "timeout": "use the module's own time limit, or `timeout SECONDS` before a command",
    "validate_argspec": "use assert",
}

# Keys of tasks (and blocks), beside those of PLAY_KEYS that tasks may say in Ansible too.
TASK_KEYS: Mapping[str, str] = {
    **{
        key: PLAY_KEYS[key]
        for key in (
            "connection", "remote_user", "port", "module_defaults", "collections", "throttle", "become_exe",
            "become_flags", "ignore_unreachable", "debugger", "diff", "timeout",
        )
    },
    "delegate_to": "put the task into a play of its own whose hosts are that host",
    "delegate_facts": "put the task into a play of its own whose hosts are that host",
    "local_action": "put the task into a play of its own on a host with ansible_connection: local",
    "action": "write the module's name as the key of the task",
    "async": "start it as a systemd unit, then wait_for, or until with retries",
    "poll": "start it as a systemd unit, then wait_for, or until with retries",
    "with_items": "use loop; `| flatten(1)` for nested lists",
    "with_list": "use loop",
    "with_dict": "use loop with `| dict2items`",
    "with_together": "use loop with `| zip(..)`",
    "with_nested": "use loop with `| product(..)`",
    "with_cartesian": "use loop with `| product(..)`",
    "with_subelements": "use loop with `| subelements(..)`",
    "with_sequence": "use loop with `range(..)`",
    "with_indexed_items": "use loop with loop_control.index_var",
    "with_flattened": "use loop with `| flatten`",
    "with_random_choice": "use `| random`",
    "with_fileglob": "use loop with the names, or with lookup('pipe', 'ls ..').splitlines()",
    "with_lines": "use loop with lookup('pipe', ..).splitlines()",
    "with_first_found": "use a condition, or a file name with a variable in it",
    "with_file": "use loop and lookup('file', item)",
    "with_env": "use lookup('env', ..)",
    "with_inventory_hostnames": "use loop with groups[..]",
    "with_varnames": "use loop with the names",
}  # fmt: skip

# Modules and statements that playbooks often use and that are not here -> what to use instead.
MODULES: Mapping[str, str] = {
    "include_tasks": "use import_tasks, whose `when` applies to each imported task",
    "include": "use import_tasks or import_playbook",
    "include_role": "put the role's tasks into a file and use import_tasks",
    "import_role": "put the role's tasks into a file and use import_tasks",
    "include_vars": "use the play's vars_files, whose names may have variables in them",
    "add_host": "name the host in the inventory",
    "group_by": "use `when`, or groups of the inventory",
    "service": "use systemd_service",
    "sysvinit": "use systemd_service",
    "service_facts": "use systemd_service, or command: systemctl is-active",
    "package": "use command with the package manager, changed_when and creates",
    "apt": "use command: apt-get, with environment and changed_when",
    "apt_repository": "use copy or template for the file in /etc/apt/sources.list.d",
    "yum": "use command: yum, with changed_when",
    "dnf": "use command: dnf, with changed_when",
    "pip": "use command: pip, with changed_when",
    "user": "use command: useradd, with creates or changed_when",
    "group": "use command: groupadd, with changed_when",
    "authorized_key": "use lineinfile",
    "cron": "use copy for a file in /etc/cron.d",
    "replace": "use lineinfile, blockinfile or template",
    "assemble": "use template",
    "get_url": "use command: curl, with creates",
    "uri": "use command: curl, with register and until",
    "unarchive": "use copy and command: tar, with creates",
    "synchronize": "use copy",
    "ansible.posix.synchronize": "use copy",
    "git": "use command: git, with creates or changed_when",
    "script": "use copy and command",
    "raw": "use shell",
    "expect": "use command with stdin",
    "find": "use shell: find, with register",
    "tempfile": "use command: mktemp, with register",
    "hostname": "use command: hostnamectl, with changed_when",
    "mount": "use template for a systemd mount unit, and systemd_service",
    "ansible.posix.mount": "use template for a systemd mount unit, and systemd_service",
    "modprobe": "use command: modprobe, with changed_when",
    "community.general.modprobe": "use command: modprobe, with changed_when",
    "iptables": "use command: iptables, with changed_when",
    "firewalld": "use command: firewall-cmd, with changed_when",
    "pause": "use wait_for with timeout",
    "reboot": "use shell to reboot, then wait_for in a play of its own",
    "wait_for_connection": "a play that follows connects again",
    "async_status": "use wait_for, or until with retries",
    "set_stats": "use set_fact, or --json of the run",
    "validate_argument_spec": "use assert",
    "known_hosts": "use lineinfile",
    "ini_file": "use lineinfile or template",
    "community.general.ini_file": "use lineinfile or template",
    "import_playbook": "it stands in the list of plays, not among tasks",
}  # fmt: skip


def module_advice(name: str) -> str | None:
    """What to use instead of a module that is not here; None when it is none that is known."""
    if name in MODULES:
        return MODULES[name]
    prefix, _, short = name.rpartition(".")
    return MODULES.get(short) if prefix in ("ansible.builtin", "ansible.legacy") else None


STRATEGIES: Mapping[str, str] = {
    "free": "hosts do not wait for each other here anyway, unless a task asks for it: leave strategy out",
    "host_pinned": "hosts do not wait for each other here anyway, unless a task asks for it: leave strategy out",
    "debug": "there is no debugger: run with --check --diff",
}
