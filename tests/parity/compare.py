"""What two runs of the same playbook have to agree on: the recap, each task's status, and the results' fields.

Every field that Ansible's result has, ours must have with the same value, but for those listed here; ours may say
more. A difference is a sentence; an empty list is parity.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tests.parity.programs import COLUMNS, Run, Step

# Fields that differ by nature (times, paths of temporary files, what Ansible was called with) or hold prose.
LEFT_OUT = frozenset(
    (
        *(
            "action",
            "ansible_facts",
            "atime",
            "ctime",
            "mtime",
            "birthtime",
            "inode",
            "dev",
            "version",
            "block_size",
        ),
        *(
            "blocks",
            "delta",
            "start",
            "end",
            "elapsed",
            "deprecations",
            "diff",
            "exception",
            "invocation",
            "md5sum",
        ),
        *("failed_when_suppressed_exception", "module_stdout", "module_stderr", "msg", "src", "warnings"),
        # the sentence of Ansible's own that goes with each state of a result
        *("skip_reason", "skipped_reason", "reason", "evaluated_to"),
        # stat: what it runs lsattr and file for, at every call; docs/ansible.md says that ours does not
        *("attr_flags", "attributes", "charset", "mimetype"),
    )
)
# Of a unit's many properties, those that say what state it is in; the rest is process numbers and times.
UNIT_STATUS = ("ActiveState", "Description", "FragmentPath", "LoadState", "SubState", "UnitFileState")
# What a failed result has to say: a module of Ansible's adds more or less of what it knows about the file.
OF_FAILURES = frozenset(
    (
        "action",
        "changed",
        "failed",
        "failed_when_result",
        "rc",
        "stdout",
        "stdout_lines",
        "stderr",
        "stderr_lines",
        "cmd",
        "attempts",
        "results",
        "item",
        "ansible_loop_var",
        "assertion",
        "msg",
    )
)
# Fields whose value differs but whose presence means something.
PRESENT = frozenset(("backup_file",))


def recaps(ours: Run, theirs: Run, hosts: Iterable[str] | None = None) -> list[str]:
    """The seven columns, for every host."""
    found = []
    for name in sorted({*ours.recap, *theirs.recap} if hosts is None else set(hosts)):
        mine, other = ours.recap.get(name), theirs.recap.get(name)
        if mine is None or other is None:
            # Ansible's recap leaves out a host that no task was for.
            if any((mine or other or {}).values()):
                found.append(f"recap of {name}: ours {mine}, Ansible {other}")
            continue
        for column in COLUMNS:
            if mine[column] != other[column]:
                found.append(f"recap of {name}: {column}: ours {mine[column]}, Ansible {other[column]}")
    return found


def steps(ours: Run, theirs: Run, own_words: Collection[str] = ()) -> list[str]:
    """Each host's tasks in order: name, status and result fields.

    :param own_words: tasks whose stdout is not compared.
    """
    found = []
    for host in sorted({step.host for step in [*ours.steps, *theirs.steps]}):
        mine = [step for step in ours.steps if step.host == host]
        other = [step for step in theirs.steps if step.host == host]
        titles, others = [_title(step) for step in mine], [_title(step) for step in other]
        if titles != others:
            found += [f"{host}: tasks: {line}" for line in _first_difference(titles, others)]
        # Compared by name as far as they go, so that one step too many does not hide the rest.
        waiting = list(mine)
        for step in other:
            match = next((one for one in waiting if _title(one) == _title(step)), None)
            if match is None:
                continue
            waiting.remove(match)
            place = f"{host}: {step.task}"
            if match.status != step.status:
                why = match.result.get("msg") if match.status == "failed" else step.result.get("msg")
                found.append(f"{place}: status: ours {match.status}, Ansible {step.status} ({why})")
            else:
                lines = results(match.result, step.result)
                spared = step.task in own_words
                found += [f"{place}: {line}" for line in lines if not (spared and line.startswith("stdout"))]
    return found


def results(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> list[str]:
    """The fields of two results, nested ones as ``stat.mode`` and ``results[2].rc``."""
    found = []
    module = str(theirs.get("action", "")).rsplit(".", 1)[-1]
    if "censored" in theirs:  # under no_log only the flags are for anyone to see
        theirs = {key: value for key, value in theirs.items() if key in ("changed", "failed", "skipped")}
    elif (
        module == "file"
        and theirs.get("state") not in ("absent", ours.get("state"))
        and ours.get("state") == "absent"
    ):
        # check mode: Ansible describes what is still there, ours what would be
        theirs = {key: value for key, value in theirs.items() if key in ("changed", "path")}
    elif theirs.get("failed") and module not in ("stat", "command", "shell"):
        theirs = {key: value for key, value in theirs.items() if key in OF_FAILURES}
    speaks = module == "fail" or (module == "debug" and not theirs.get("failed"))
    for key, value in sorted(theirs.items()):
        if key.startswith("_ansible_") or (key in LEFT_OUT and not (key == "msg" and speaks)):
            if key == "ansible_facts" and module == "set_fact":
                found += _values(ours.get(key), value, "ansible_facts")
            continue
        where = f"{path}.{key}" if path else key
        if key in ("changed", "failed", "skipped") and not value and not ours.get(key):
            continue  # a flag that is not there is false
        if key not in ours:
            found.append(f"{where}: missing, Ansible {value!r}")
        elif key not in PRESENT:
            found += _values(ours[key], value, where)
    return found


def _values(ours: Any, theirs: Any, where: str) -> list[str]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        if where.endswith("status") and "ActiveState" in theirs:
            return [
                line for key in UNIT_STATUS for line in _values(ours.get(key), theirs.get(key), f"{where}.{key}")
            ]
        last = where.rsplit(".", 1)[-1]
        if last == "stat" or last.startswith("results[") or {"changed", "failed"} <= theirs.keys():
            return results(ours, theirs, where)
        missing = [f"{where}.{key}: missing, Ansible {theirs[key]!r}" for key in theirs if key not in ours]
        more = [f"{where}.{key}: ours {ours[key]!r}, Ansible has none" for key in ours if key not in theirs]
        both = [
            line for key in theirs if key in ours for line in _values(ours[key], theirs[key], f"{where}.{key}")
        ]
        return missing + more + both
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for number, (one, other) in pairs for line in _values(one, other, f"{where}[{number}]")]
    if type(ours) is type(theirs) and ours == theirs:
        return []
    return [f"{where}: ours {ours!r}, Ansible {theirs!r}"]


def grouped(lines: Iterable[str]) -> list[str]:
    """Lines that begin with a pass in brackets, each once with all its passes and without numbers of loop items.

    >>> grouped(["[check] a: results[0].rc: x", "[check] a: results[1].rc: x", "[first] a: results[0].rc: x"])
    ['[check, first] a: results[*].rc: x']
    """
    passes: dict[str, list[str]] = {}
    for line in lines:
        name, _, rest = line.removeprefix("[").partition("] ")
        seen = passes.setdefault(re.sub(r"results\[\d+\]", "results[*]", rest), [])
        if name not in seen:
            seen.append(name)
    return [f"[{', '.join(names)}] {rest}" for rest, names in passes.items()]


def _title(step: Step) -> str:
    """The task's name as both write it: Ansible puts a role or nothing before it, handlers are named alike."""
    return f"{step.play} / {step.task}"


def _first_difference(mine: list[str], other: list[str]) -> list[str]:
    for number, (one, two) in enumerate(zip(mine, other, strict=False)):
        if one != two:
            return [f"number {number + 1}: ours '{one}', Ansible '{two}' (then {mine[number + 1 : number + 3]})"]
    longer, whose = (mine, "ours") if len(mine) > len(other) else (other, "Ansible")
    return [f"{whose} has more: {longer[min(len(mine), len(other)) :]}"]
