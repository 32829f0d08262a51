"""``ping``: proves that the host answers and that Python runs there. Changes nothing."""

from operations import OperationError


def run(args, context):
    """Returns ``ping``: the text of ``data``, default ``pong``. As in Ansible, the text ``crash`` is a failure."""
    data = args.get("data", "pong")
    if data == "crash":
        raise OperationError("boom")
    return {"changed": False, "ping": data, "msg": "the host answers"}
