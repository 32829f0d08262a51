"""``lineinfile``: one line in a text file, there or not there, found by itself, by a text or by a pattern.

Patterns work on bytes and line by line, a line being what ends in a newline; the last match counts unless
``firstmatch`` says otherwise. What is no part of the line asked for stays as it is, byte for byte.
"""

import io
import os
import re

from operations import OperationError
from operations import _files as files


def run(args, context):
    """Sees to one line of the file ``path``.

    :param args: ``path``; ``state`` present|absent; ``line``; ``regexp`` or ``search_string`` (the line to
        replace, or the lines to remove); ``backrefs`` (``line`` holds groups of ``regexp``; without a match
        nothing happens); ``insertafter`` (pattern, EOF, BOF) or ``insertbefore`` (pattern, BOF): where a line that
        matched nothing goes, default the end; ``firstmatch``; ``create`` (the file, and folders above it);
        ``mode``, ``owner``, ``group``, ``backup``, ``validate``.
    :returns: ``backup``: path of the copy made, else ""; ``found``: for state=absent, how many lines went.
    """
    path = files.absolute(args["path"])
    if os.path.isdir(path):
        raise OperationError("path %s is a directory" % path, rc=256)
    present = (args.get("state") or "present") == "present"
    _check(args, present)
    before = files.read_bytes(path)
    result = {"backup": ""}
    if present:
        if before is None and not args.get("create"):
            raise OperationError("%s does not exist; create: true would make it" % path, rc=257)
        if before is None and not context.check:
            files.make_folders(os.path.dirname(path))
        after, why = _present(io.BytesIO(before or b"").readlines(), args)
        # A file that only becomes there by a line stays away when no line is added (backrefs).
        if before is None and not after:
            return dict(result, changed=False, msg=why)
    else:
        if before is None:
            return {"changed": False, "msg": "file not present", "found": 0, "backup": ""}
        after, result["found"] = _absent(io.BytesIO(before).readlines(), args)
        why = "%d line(s) removed" % result["found"] if result["found"] else "no line to remove"
    done, fields = files.edit(path, before, after, args, context)
    result.update(fields)
    result.update(changed=before != after or bool(done), msg=", ".join([why, *done]))
    return result


def _check(args, present):
    for one, other in (("insertbefore", "insertafter"), ("regexp", "search_string")):
        if args.get(one) is not None and args.get(other) is not None:
            raise OperationError("%s and %s exclude each other" % (one, other))
    if args.get("backrefs") and args.get("search_string") is not None:
        raise OperationError("backrefs and search_string exclude each other")
    if present and args.get("backrefs") and args.get("regexp") is None:
        raise OperationError("regexp is required with backrefs=true")
    if present and args.get("line") is None:
        raise OperationError("line is required with state=present")
    if not present and all(args.get(key) is None for key in ("line", "regexp", "search_string")):
        raise OperationError("one of line, search_string, or regexp is required with state=absent")


def _pattern(text, name):
    try:
        return re.compile(text.encode("utf-8", "surrogateescape"))
    except re.error as error:
        raise OperationError("%s is no valid regular expression: %s: %s" % (name, error, text))


def _bare(line):
    return line.rstrip(b"\r\n")


def _finder(args):
    """``line -> match or None`` for regexp or search_string; None when neither is given."""
    if args.get("regexp") is not None:
        return _pattern(args["regexp"], "regexp").search
    if args.get("search_string") is not None:
        text = args["search_string"].encode("utf-8", "surrogateescape")
        return lambda line: True if text in line else None
    return None


def _absent(lines, args):
    """(content without the lines meant, how many they were)."""
    find = _finder(args)
    if find is None:
        wanted = args["line"].encode("utf-8", "surrogateescape")
        kept = [line for line in lines if _bare(line) != wanted]
    else:
        kept = [line for line in lines if not find(line)]
    return b"".join(kept), len(lines) - len(kept)


def _present(lines, args):
    """(content with the line, sentence)."""
    wanted = args["line"].encode("utf-8", "surrogateescape")
    first = bool(args.get("firstmatch"))
    place, match = None, None
    find = _finder(args)
    if find is not None:
        hits = [(number, hit) for number, hit in ((n, find(line)) for n, line in enumerate(lines)) if hit]
        if hits:
            place, match = hits[0 if first else -1]
    after, before = args.get("insertafter"), args.get("insertbefore")
    anchor = None
    if match is None:
        place, anchor = _look_around(lines, wanted, after, before, first)
    if place is not None:
        return _replace(lines, place, _expand(match, wanted) if match and args.get("backrefs") else wanted)
    if args.get("backrefs"):
        return b"".join(lines), "regexp matches no line, so backrefs leaves the file alone"
    if "BOF" in (before, after):
        return b"".join([wanted + b"\n", *lines]), "line added"
    if anchor is None:
        anchor = len(lines)
        if lines and lines[-1][-1:] not in (b"\n", b"\r"):
            lines[-1] += b"\n"
    elif after:
        following = lines[min(anchor, len(lines) - 1)]
        if _bare(following) == wanted:
            return b"".join(lines), "the line is there already"
        if anchor == len(lines) and not following.endswith(b"\n"):
            lines[-1] += b"\n"
    lines.insert(anchor, wanted + b"\n")
    return b"".join(lines), "line added"


def _look_around(lines, wanted, after, before, first):
    """(number of the line that is the one wanted, number to insert at), each None when there is none."""
    pattern = None
    if after not in (None, "", "BOF", "EOF"):
        pattern = _pattern(after, "insertafter")
    elif before not in (None, "", "BOF"):
        pattern = _pattern(before, "insertbefore")
    place, anchor = None, None
    for number, line in enumerate(lines):
        if _bare(line) == wanted:
            place = number
        elif pattern is not None and pattern.search(line):
            anchor = number + 1 if after else number
            if first:
                break
    return place, anchor


def _expand(match, wanted):
    try:
        return match.expand(wanted)
    except (re.error, IndexError) as error:
        raise OperationError("line has a back reference that regexp does not fill: %s" % error)


def _replace(lines, place, new):
    if not new.endswith(b"\n"):
        new += b"\n"
    if lines[place] == new:
        return b"".join(lines), "the line is there already"
    lines[place] = new
    return b"".join(lines), "line replaced"
