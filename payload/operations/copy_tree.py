"""``copy_tree``: the files, folders and links of a folder on the controller, below a folder of this host."""

import os

from operations import OperationError, upload
from operations import _files as files
from operations.copy import Content, put
from operations.file import bring


def run(args, context):
    """Brings everything below ``dest`` to what the lists say; removes nothing.

    :param args: ``dest`` (a folder; made when missing); ``files``: list of ``{"path", "checksum", "size"}``, each
        with ``content_b64``, or ``upload`` (a token), or neither, to ask, and ``mode`` where it has its own;
        ``directories``: list of paths; ``links``: list of ``[path, target]``; all paths are relative to ``dest``.
        ``mode`` (of files), ``directory_mode``, ``owner``, ``group``, ``force``, ``follow``, ``backup``,
        ``validate`` as for `operations.copy`; ``src`` is handed back.
    :returns: ``changed``; ``need``: paths of files whose content must be sent; ``done``: what changed, in words.
    """
    dest = files.absolute(args["dest"], "dest")
    common = {key: args[key] for key in ("owner", "group", "backup", "validate", "force") if key in args}
    common["directory_mode"] = args.get("directory_mode")
    need, done, diffs, last = [], [], [], {}
    for entry in args.get("files") or []:
        # A folder at the end of the path is made when missing: that is what the slash says.
        folder, name = os.path.split(_below(dest, entry["path"]))
        wanted = dict(common, dest=folder + "/", basename=name, mode=entry.get("mode", args.get("mode")))
        wanted["follow"] = args.get("follow")
        try:
            last = put(Content(entry), wanted, context)
        finally:
            if entry.get("upload"):
                upload.drop(entry["upload"])
        if last.get("need"):
            need.append(entry["path"])
        elif last["changed"]:
            done.append("%s: %s" % (entry["path"], last["msg"]))
            diffs.append(last.get("diff"))
    below = {key: value for key, value in common.items() if key in ("owner", "group")}
    for path in args.get("directories") or []:
        wanted = dict(below, path=_below(dest, path), state="directory", mode=args.get("directory_mode"))
        _note(bring(wanted, context), path, done, diffs)
    for path, target in args.get("links") or []:
        wanted = dict(below, path=_below(dest, path), state="link", src=target, force=True, follow=False)
        _note(bring(wanted, context), path, done, diffs)
    result = {"changed": bool(done), "dest": os.path.join(dest, ""), "src": args.get("src"), "done": done}
    if need:
        result["need"] = need
    result["msg"] = ", ".join(done) or "everything below %s is already as asked" % dest
    diffs = [diff for diff in diffs if diff]
    if context.diff and diffs:
        result["diff"] = diffs
    return result


def _note(outcome, path, done, diffs):
    if outcome["changed"]:
        done.append("%s: %s" % (path, outcome["msg"]))
        diffs.append(outcome.get("diff"))


def _below(dest, path):
    parts = path.split("/")
    if ".." in parts or path.startswith("/"):
        raise OperationError("%s leads out of %s" % (path, dest))
    return os.path.join(dest, path)
