"""`clean`: leaves nothing of tcpfleet on the hosts. The work is done there by payload/operations/clean.py.

In: hosts, and the users whose things are there (the login, root or whom the inventory says to become, `--user`).
Out: an Answer with what was stopped and removed. Each of them is asked first whether something of theirs could
still be rolled back: then nothing of that host is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tcpfleet import rollback
from tcpfleet.cli import Answer, Options
from tcpfleet.deploy import DEFAULTS, place
from tcpfleet.errors import HostFailed, worst
from tcpfleet.fleet import Outcome, exit_codes

if TYPE_CHECKING:
    from tcpfleet.link import Become, Session
    from tcpfleet.secret import Secret


def clean(options: Options, user: str) -> Answer:
    """Ends and removes what is on every host; exit 2 for those where something has to be rolled back first."""
    hosts = options.select()

    def work(session: Session) -> dict[str, Any]:
        return clean_host(session, options.sudo_password, user, check=options.check)

    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(work, on_outcome=lambda outcome: _say(options, outcome))
    codes = exit_codes(outcomes)
    if any(
        entry["status"] == "failed" for one in outcomes.values() for entry in (one.value or {}).get("entries", ())
    ):
        codes.append(HostFailed.exit_code)
    told = {
        name: {"status": one.status} | (one.value if one.value is not None else {"error": one.error})
        for name, one in outcomes.items()
    }
    return Answer({"hosts": told}, worst(codes), options.sum_up(outcomes))


def clean_host(session: Session, password: Secret | None, user: str, *, check: bool) -> dict[str, Any]:
    """All identities of one host; the one with most rights takes the server, and comes last.

    :returns: ``changed``, ``entries``, ``notes`` on what was not looked at.
    :raises HostFailed: something has to be rolled back first, or could not be removed.
    """
    server = {name.removeprefix("server_"): place(session, name) for name in DEFAULTS}
    notes: list[str] = []
    parts: dict[int, Become | None] = {}
    for become, is_implied in rollback.identities(session, password, user):
        # Everybody is asked about the server's paths: whose run has made them is in that one's journal alone.
        looked = session.call("clean", {"server": server}, check=True, become=become)
        if looked.get("waiting"):
            raise HostFailed(f"{looked.get('msg')}. First: inv rollback --hosts {session.host.name} --all")
        if not looked.get("failed"):
            parts.setdefault(looked["uid"], become)
        elif is_implied:
            notes.append(f"what root may have here was not looked at: {looked.get('msg')}")
        else:
            raise HostFailed(str(looked.get("msg")))
    entries: list[dict[str, Any]] = []
    users = sorted(parts, key=lambda uid: uid == 0)
    for uid in users:
        args = {"server": server if uid == users[-1] else None}
        done = session.call("clean", args, check=check, become=parts[uid])
        if done.get("failed"):
            raise HostFailed(str(done.get("msg")))
        entries += done["entries"]
    changed = any(entry["status"] not in ("left", "failed") for entry in entries)
    return {"changed": changed, "entries": entries, "notes": notes}


def _say(options: Options, outcome: Outcome[dict[str, Any]]) -> None:
    name, done = outcome.host.name, outcome.value
    if done is None:
        options.say(f"{name}: {outcome.status}: {outcome.error}")
        return
    for note in done["notes"]:
        options.say(f"{name}: note: {note}")
    for entry in done["entries"]:
        words = f"{entry['status'].replace('-', ' ')} {entry['what']}"
        options.say(f"{name}: {words}" + (f" ({entry['msg']})" if entry["msg"] else ""))
    if not done["entries"]:
        options.say(f"{name}: nothing of tcpfleet is here")
