"""``ping``: proves that the host answers and that Python runs there. Changes nothing."""


def run(args, context):
    """Returns ``ping``: the text of ``data``, or ``pong``."""
    return {"changed": False, "ping": args.get("data") or "pong", "msg": "the host answers"}
