"""Which file has the last word on a kernel setting: the order of sysctl.d at boot, and of ``sysctl --system``.

At boot systemd-sysctl(8) reads the files of FOLDERS, of equal names only the one in the first folder, sorted by
name whatever their folder; the last assignment of a key wins, and a pattern sets only keys that no line names.
``sysctl --system`` (procps) reads them in the same order, and then /etc/sysctl.conf, which therefore wins; hosts
without systemd do that at boot.

Lines that neither would take (no ``=``, empty key) are passed over, as both do.
"""

import fnmatch
import os

FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
LAST = "/etc/sysctl.conf"


def path_of(key):
    """A key with slashes between its parts: whichever of ``.`` and ``/`` comes first separates (sysctl.d(5)).

    >>> path_of("net.ipv4.conf.eth0/1.forwarding")
    'net/ipv4/conf/eth0.1/forwarding'
    """
    first = next((char for char in key if char in "./"), "/")
    return key.translate({ord("."): "/", ord("/"): "."}) if first == "." else key


def files(root="/"):
    """Paths of the files that count, in the order in which they are read, without /etc/sysctl.conf."""
    found = {}
    for folder in FOLDERS:
        try:
            names = os.listdir(_below(root, folder))
        except OSError:
            continue
        for name in names:
            if name.endswith(".conf"):
                found.setdefault(name, os.path.join(folder, name))
    return [found[name] for name in sorted(found, key=os.fsencode)]


def lines(path, root="/"):
    """(line number, key with slashes, value or None) of each assignment; None: the key is taken out of patterns.

    A file that cannot be read, or leads to /dev/null, has none.
    """
    try:
        with open(_below(root, path), "rb") as source:
            text = source.read().decode("utf-8", "surrogateescape")
    except OSError:
        return
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if not bare or bare[0] in "#;":
            continue
        key, equals, value = bare.partition("=")
        key = key.strip()
        if not equals and not key.startswith("-"):
            continue
        key = key.lstrip("-").strip()
        if key:
            yield number, path_of(key), value.strip() if equals else None


def at_boot(keys, root="/"):
    """What systemd-sysctl sets at boot.

    :param keys: names of keys, in any notation.
    :returns: key -> ``{"value", "file", "line"}``; keys that no file sets are left out.
    """
    return _last_words(files(root), keys, root, True)


def by_system(keys, root="/"):
    """What ``sysctl --system`` of procps 4 sets; as `at_boot`."""
    every = [path for path in files(root) if not _same_file(path, LAST, root)]
    return _last_words([*every, LAST], keys, root, False)


def _last_words(paths, keys, root, takes_away):
    """:param takes_away: a line without a value takes an earlier one for the same key away."""
    said = {}
    for path in paths:
        for number, key, value in lines(path, root):
            before = said.pop(key, None)  # a key takes its place anew
            said[key] = {"value": value, "file": path, "line": number}
            if value is None and before is not None and not takes_away:
                said[key] = before
    answer = {}
    for key in keys:
        wanted = path_of(key)
        if wanted in said:
            hits = [said[wanted]]
        else:
            hits = [what for pattern, what in said.items() if _is_pattern(pattern) and _matches(wanted, pattern)]
        hits = [what for what in hits if what["value"] is not None]
        if hits:
            answer[key] = hits[-1]
    return answer


def _is_pattern(key):
    return any(char in key for char in "*?[")


def _matches(key, pattern):
    """As glob(7) on paths: a star does not cross a slash."""
    parts, patterns = key.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _same_file(path, other, root):
    try:
        return os.path.samefile(_below(root, path), _below(root, other))
    except OSError:
        return False


def _below(root, path):
    return os.path.join(root, path.lstrip("/"))
