"""playbooks/tune.yml as a pyinfra deploy: the same files from the same templates, the same values.

Run by `inv bench playbook`; by hand: ``pyinfra HOSTS benchmarks/tune_pyinfra.py -y``.
"""

from pathlib import Path

import yaml
from pyinfra import host
from pyinfra.facts.server import Command
from pyinfra.operations import files, server, systemd

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "templates"
UNIT_FOLDER = "/etc/systemd/system/tcpfleet-echo.service.d"

profile = yaml.safe_load((ROOT / "playbooks/profiles/article.yml").read_text(encoding="utf-8"))
wanted = {entry["name"]: entry["value"] for entry in profile["sysctl_profile"]}
nofile = profile["nofile_profile"]["value"]

# All keys in one question, as one who cares for speed would ask: what can be written, and what is in force.
paths = " ".join(f"/proc/sys/{key.replace('.', '/')}" for key in wanted)
look = f"for key in {paths}; do [ ! -w $key ] || grep -H . $key; done; true"
in_force = dict(line.split(":", 1) for line in (host.get_fact(Command, look) or "").splitlines())
in_force = {path.removeprefix("/proc/sys/").replace("/", "."): value for path, value in in_force.items()}


def asked_of(entry: dict) -> str:
    """The profile's value; of an entry to `raise` the higher of both, number by number."""
    value, now = str(entry["value"]), in_force.get(entry["name"])
    if now is None or not entry.get("raise"):
        return value
    return " ".join(str(max(int(old), int(new))) for old, new in zip(now.split(), value.split(), strict=True))


asked = {entry["name"]: asked_of(entry) for entry in profile["sysctl_profile"]}
granted = int(
    host.get_fact(
        Command,
        f"""wanted={nofile}; most=$(cat /proc/sys/fs/nr_open); [ "$wanted" -le "$most" ] || wanted=$most; """
        """if prlimit --nofile="$wanted:$wanted" true 2>/dev/null; then echo "$wanted"; """
        """else hard=$(ulimit -Hn); if [ "$hard" = unlimited ] || [ "$hard" -gt "$wanted" ]; then """
        """hard=$wanted; fi; echo "$hard"; fi""",
    )
)
values = {
    **profile,
    "profile_name": "article",
    "sysctl_own": {},
    "sysctl_asked": asked,
    "sysctl_settable": list(in_force),
    "sysctl_left_alone": [],
    "nofile_wanted": nofile,
    "nofile_soft": granted,
    "nofile_hard": granted,
}
owned = {"user": "root", "group": "root"}
as_ansible = {"jinja_env_kwargs": {"trim_blocks": True}}  # so that the files come out the same

files.template(
    name="Write the sysctl file",
    src=str(TEMPLATES / "sysctl.conf.j2"),
    dest="/etc/sysctl.d/99-tcpfleet.conf",
    mode="644",
    **owned,
    **as_ansible,
    **values,
)
for key in in_force:
    server.sysctl(name=f"Set {key} in the running kernel", key=key, value=asked[key], _ignore_errors=True)
files.template(
    name="Write the limits of logins",
    src=str(TEMPLATES / "limits.conf.j2"),
    dest="/etc/security/limits.d/99-tcpfleet.conf",
    mode="644",
    **owned,
    **as_ansible,
    **values,
)
files.directory(name="Make room for the limit of the server's unit", path=UNIT_FOLDER, mode="755", **owned)
unit = files.template(
    name="Write the limit of the server's unit",
    src=str(TEMPLATES / "nofile.service.conf.j2"),
    dest=f"{UNIT_FOLDER}/nofile.conf",
    mode="644",
    **owned,
    **as_ansible,
    **values,
)
systemd.daemon_reload(name="Read unit files again", _if=unit.did_change)
