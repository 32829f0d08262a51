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

    Everything it needs is in its closure: a look-up in an object per event would cost as much as the rest. What an
    echo does not need (an end, an error, a slow reader) is told apart after the fact, so that an echo does not pay
    for it.
    """
    read, write, slot = connections.read, os.write, connections.slot
    special, attend, close = connections.special, connections.attend, connections.close
    echo_cell, byte_cell = connections.columns["echoes"], connections.columns["bytes"]
    careful_read: Any = connections.careful_read

    def turn(events: List[Tuple[int, int]]) -> None:
        total, others = 0, 0  # bytes echoed; events that were no echo
        data: Any = None  # None outside of a connection's read and write: tells which of them has failed
        take = careful_read if connections.is_tight() else read
        for fd, event in events:
            if fd in special:
                attend(fd, event)
                others += 1
                continue
            try:
                data = take(fd, READ_SIZE)
                sent = write(fd, data)  # at the end of input nothing, which does nothing
            except BlockingIOError:
                if data is None:
                    others += 1
                    continue
                sent = 0
            except OSError as e:
                close(fd, e)
                others += 1
                data = None
                continue
            size = len(data)
            if not size:
                close(fd)
                others += 1
            elif sent != size:
                connections.keep(fd, Busy(data[sent:]))
                take = careful_read if connections.is_tight() else take
            total += size
            data = None
        if total:
            echo_cell[slot] += len(events) - others
            byte_cell[slot] += total

    return turn
