"""Facts about processors, memory and mounts, from the texts of /proc: what in them is pure."""

import re


def processor_facts(text):
    """processor, processor_count (sockets), processor_cores (of one), processor_threads_per_core, processor_vcpus
    from the text of /proc/cpuinfo; names and shapes are Ansible's."""
    listed, sockets, cores = [], {}, {}
    count = 0
    for block in text.strip().split("\n\n"):
        fields = dict(re.findall(r"^([^:\n]+?)\s*:[ \t]*(.*)$", block, re.MULTILINE))
        if "processor" not in fields:
            continue
        count += 1
        for key in ("processor", "vendor_id", "model name"):
            if fields.get(key):
                listed.append(fields[key])
        if "physical id" in fields:
            sockets[fields["physical id"]] = int(fields.get("cpu cores", 1))
        if "core id" in fields:
            cores[fields["core id"]] = int(fields.get("siblings", 1))
    if not count:
        return {}
    per_socket = next(iter(sockets.values()), 1)
    threads = max(1, next(iter(cores.values()), 1) // per_socket)
    return {
        "processor": listed,
        "processor_count": len(sockets) or count,
        "processor_cores": per_socket,
        "processor_threads_per_core": threads,
        "processor_vcpus": threads * (len(sockets) or count) * per_socket,
    }


def memory_facts(text):
    """memtotal_mb, memfree_mb, swaptotal_mb, swapfree_mb, memavailable_mb and memory_mb (all MiB) from the text of
    /proc/meminfo."""
    sizes = {name: int(kib) // 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    names = (
        ("memtotal_mb", "MemTotal"),
        ("memfree_mb", "MemFree"),
        ("swaptotal_mb", "SwapTotal"),
        ("swapfree_mb", "SwapFree"),
    )
    facts = {fact: sizes[key] for fact, key in names if key in sizes}
    if "MemTotal" not in sizes:
        return facts
    if "MemAvailable" in sizes:
        facts["memavailable_mb"] = sizes["MemAvailable"]
    total, free = sizes["MemTotal"], sizes.get("MemFree", 0)
    reclaimable = free + sizes.get("Cached", 0) + sizes.get("Buffers", 0)
    swap, swap_free = sizes.get("SwapTotal", 0), sizes.get("SwapFree", 0)
    facts["memory_mb"] = {
        "real": {"total": total, "used": total - free, "free": free},
        "nocache": {"free": reclaimable, "used": total - reclaimable},
        "swap": {
            "total": swap,
            "free": swap_free,
            "used": swap - swap_free,
            "cached": sizes.get("SwapCached", 0),
        },
    }
    return facts


def mount_lines(text):
    """``[{"device", "mount", "fstype", "options", "dump", "passno"}]`` of real file systems, from /proc/mounts.

    As in Ansible a file system is real when its device is a path, or something like ``host:/folder``.
    """
    found = []
    for line in text.splitlines():
        fields = [re.sub(r"\\(\d{3})", lambda match: chr(int(match.group(1), 8)), word) for word in line.split()]
        if len(fields) < 6 or fields[2] == "none" or not (fields[0].startswith("/") or ":/" in fields[0]):
            continue
        found.append(
            {
                "device": fields[0],
                "mount": fields[1],
                "fstype": fields[2],
                "options": fields[3],
                "dump": int(fields[4]),
                "passno": int(fields[5]),
            }
        )
    return found


def words_of_cmdline(text):
    """The kernel's command line as a dict: ``name=value`` words, and True for words alone."""
    words = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        words[name] = value if equals else True
    return words
