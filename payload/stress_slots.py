"""Clients of one run on one host take turns: as many workers connect at a time as the host has processors.

In: a folder that the clients share, and how many slots it has. More workers than processors would only take turns
on them, each with a few connections on its way: a connect then costs half as much again. A slot is a lock on a
file (flock), so one that dies gives its slot back.
"""

import fcntl
import os


class Slots:
    """`most` slots that are shared by all who name the same folder."""

    def __init__(self, folder: str, most: int) -> None:
        self._paths = [os.path.join(folder, "slot-{}".format(number)) for number in range(most)]
        self._held = []  # type: List[int]  # descriptors

    def take(self) -> bool:
        """Take one more slot, if there is one."""
        for path in self._paths:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # EWOULDBLOCK: somebody's, or one of ours (each descriptor is its own owner)
                os.close(fd)
                continue
            self._held.append(fd)
            return True
        return False

    def keep(self, count: int) -> None:
        """Give back all but `count` of the slots that are held."""
        while len(self._held) > count:
            os.close(self._held.pop())

    @property
    def held(self) -> int:
        """How many slots are held."""
        return len(self._held)
