"""Who the workers are: an unprivileged user, once the listener is bound."""

import grp
import os
import pwd
from typing import NamedTuple, Optional

from daemon import DaemonError

Identity = NamedTuple("Identity", [("name", str), ("uid", int), ("gid", int)])
Identity.__doc__ = """A user and the group to run with."""


def find(text: str) -> Optional[Identity]:
    """Return the Identity that USER or USER:GROUP names, None where this process already has it.

    Names and numbers are understood. Raises DaemonError where there is no such user or group, or where this
    process may not become it.
    """
    user, colon, group = text.partition(":")
    if not user:  # such as an empty variable in a script: root by default is not what was meant
        raise DaemonError("%r names no user" % text)
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise DaemonError("there is no user %s" % user)
    gid = entry.pw_gid
    if colon:
        try:
            gid = (grp.getgrgid(int(group)) if group.isdecimal() else grp.getgrnam(group)).gr_gid
        except KeyError:
            raise DaemonError("there is no group %s" % group)
    if (os.geteuid(), os.getegid()) == (entry.pw_uid, gid):
        return None
    if os.geteuid() != 0:
        raise DaemonError("only root can run workers as user %s" % entry.pw_name)
    return Identity(entry.pw_name, entry.pw_uid, gid)


def become(identity: Identity) -> None:
    """Be that user from now on, for good: groups first, since only root may change them."""
    os.initgroups(identity.name, identity.gid)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
