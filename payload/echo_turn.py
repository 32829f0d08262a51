"""Mode echo: what comes in goes out again, byte for byte.

`echo_turn` makes the function that serves what one epoll_wait has reported: the hot path of the server.
"""

import os
from typing import TYPE_CHECKING, Any, Callable, List, Tuple

from echo_connection import Busy

if TYPE_CHECKING:
    from echo_connections import Connections

READ_SIZE = 16384  # bytes per read, so also per slow reader; see benchmarks/server.md for what other sizes gave


def echo_turn(connections: "Connections") -> Callable[[List[Tuple[int, int]]], None]:
    """Return the function that serves a list of (descriptor, events).

    Everything it needs is in its closure: a look-up in an object per event would cost as much as the rest.
    """
    read, write, slot = connections.read, os.write, connections.slot
    special, attend, close = connections.special, connections.attend, connections.close
    echo_cell, byte_cell = connections.columns["echoes"], connections.columns["bytes"]
    careful_read: Any = connections.careful_read

    def turn(events: List[Tuple[int, int]]) -> None:
        echoes = total = 0
        take = careful_read if connections.is_tight() else read
        for fd, event in events:
            if fd in special:
                attend(fd, event)
                continue
            try:
                data = take(fd, READ_SIZE)
            except BlockingIOError:
                continue
            except OSError as e:
                close(fd, e)
                continue
            if not data:
                close(fd)
                continue
            try:
                sent = write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as e:
                close(fd, e)
                continue
            echoes += 1
            total += len(data)
            if sent != len(data):
                connections.keep(fd, Busy(data[sent:]))
                take = careful_read if connections.is_tight() else take
        if echoes:
            echo_cell[slot] += echoes
            byte_cell[slot] += total

    return turn
