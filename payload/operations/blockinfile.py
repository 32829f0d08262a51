"""``blockinfile``: a block of lines between two marker lines in a text file, there or not there."""

import os
import re

from operations import OperationError
from operations import _files as files


def run(args, context):
    """Sees to the block of ``path``.

    :param args: ``path``; ``state`` present|absent; ``block`` (empty: as absent); ``marker`` (with ``{mark}``,
        which becomes ``marker_begin`` and ``marker_end``); ``insertafter`` (pattern, EOF) or ``insertbefore``
        (pattern, BOF): where a new block goes, after or before the last match, default the end;
        ``append_newline`` / ``prepend_newline`` (an empty line after / before the block); ``create``; ``mode``,
        ``owner``, ``group``, ``backup``, ``validate``.
    """
    path = files.absolute(args["path"])
    if os.path.isdir(path):
        raise OperationError("path %s is a directory" % path, rc=256)
    if args.get("insertafter") is not None and args.get("insertbefore") is not None:
        raise OperationError("insertafter and insertbefore exclude each other")
    present = (args.get("state") or "present") == "present"
    before = files.read_bytes(path)
    if before is None:
        if not args.get("create"):
            raise OperationError("path %s does not exist; create: true would make it" % path, rc=257)
        if not present:
            return {"changed": False, "msg": "file %s not present" % path}
        if not context.check:
            files.make_folders(os.path.dirname(path))
    block = _block(args) if present else []
    after = _place(before or b"", block, present, args)
    done, result = files.edit(path, before, after, args, context)
    result.pop("backup", None)
    if before == after:
        why = "the block is as asked" if block else "there is no such block"
    elif before is None:
        why = "File created"
    else:
        why = "Block inserted" if block else "Block removed"
    result.update(changed=before != after or bool(done), msg=", ".join([why, *done]))
    return result


def _markers(args):
    marker = args.get("marker", "# {mark} ANSIBLE MANAGED BLOCK")
    words = (args.get("marker_begin", "BEGIN"), args.get("marker_end", "END"))
    return [marker.replace("{mark}", word).encode("utf-8", "surrogateescape") + b"\n" for word in words]


def _block(args):
    """The lines of the block with its markers; none when the block is empty."""
    text = (args.get("block") or "").encode("utf-8", "surrogateescape")
    if not text:
        return []
    if not text.endswith(b"\n"):
        text += b"\n"
    begin, end = _markers(args)
    return [begin, *text.splitlines(True), end]


def _place(content, block, present, args):
    """The content with this block where the old one was, or where a new one goes."""
    lines = content.splitlines(True)
    begin, end = _markers(args)
    first = max((number for number, line in enumerate(lines) if line == begin), default=None)
    last = max((number for number, line in enumerate(lines) if line == end), default=None)
    if first is None or last is None:
        place = _new_place(content, lines, args)
    else:
        place, stop = min(first, last), max(first, last)
        del lines[place : stop + 1]
    # As in Ansible, also where no block comes: what is before the place ends with a newline.
    if place > 0 and not lines[place - 1].endswith(b"\n"):
        lines[place - 1] += b"\n"
    if args.get("prepend_newline") and present and place > 0 and lines[place - 1] != b"\n":
        lines.insert(place, b"\n")
        place += 1
    lines[place:place] = block
    follows = place + len(block)
    if args.get("append_newline") and present and follows < len(lines) and lines[follows] != b"\n":
        lines.insert(follows, b"\n")
    return b"".join(lines)


def _new_place(content, lines, args):
    """Number of the line before which a new block goes."""
    after, before = args.get("insertafter"), args.get("insertbefore")
    if after is None and before == "BOF":
        return 0
    text = after if after is not None else before
    if text is None or (after is not None and after == "EOF"):
        return len(lines)
    try:
        pattern = re.compile(text.encode("utf-8", "surrogateescape"))
    except re.error as error:
        raise OperationError("'%s' is no valid regular expression: %s" % (text, error))
    if pattern.flags & re.MULTILINE:
        # Such a pattern may span lines, so it is searched in the whole, and its first match counts.
        match = pattern.search(content)
        found = None
        if match is not None:
            found = content.count(b"\n", 0, match.end() if after is not None else match.start())
    else:
        found = max((number for number, line in enumerate(lines) if pattern.search(line)), default=None)
    if found is None:
        return len(lines)
    return min(found + 1, len(lines)) if after is not None else found
