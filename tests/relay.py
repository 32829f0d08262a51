"""A TCP relay that makes a network slower: it adds a round-trip time, keeps the order, limits nothing else.

From a test:

    with Relay(("10.77.0.21", 22), rtt=0.1) as relay:
        ...  # connect to ("127.0.0.1", relay.port)
    assert relay.round_trips <= 14

As a program, until it is interrupted or its standard input ends; then it prints what it counted as JSON:

    python3 tests/relay.py 10.77.0.21:22 --rtt 0.1 --listen 127.0.0.1:2222

Every connection waits one `rtt` for its handshake, as it would on the wire: the kernel of the client's side has
answered it already, so the relay begins to read that much later. Bytes then take half of `rtt` each way.

A *round trip* is counted at the client's end: it sends something after something was delivered to it since it
last sent. Nothing that a fast or a slow machine does changes that number, as long as the delay is longer than
the pauses within one burst.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import socket
import sys
import threading
import time
from typing import Any

PIECE = 65536  # bytes read at a time


class Relay:
    """Listens on `listen` and carries every connection to `target`.

    :param target: (address, port).
    :param rtt: seconds that it adds to a round trip, half of it each way.
    :param listen: (address, port); port 0 lets the kernel choose.
    :ivar port: where it listens.
    """

    def __init__(self, target: tuple[str, int], rtt: float, listen: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.target, self.rtt = target, rtt
        self._links: list[_Link] = []
        self._listener = socket.create_server(listen)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many were accepted so far."""
        return len(self._links)

    @property
    def round_trips(self) -> int:
        """Round trips of the connection that had the most, its handshake not counted."""
        return max((link.round_trips for link in self._links), default=0)

    def counted(self) -> dict[str, Any]:
        """Connections, and for each its round trips and the bytes of both directions."""
        each = [
            {"round_trips": one.round_trips, "sent": one.sent, "received": one.received} for one in self._links
        ]
        return {"connections": len(each), "each": each}

    def close(self) -> None:
        """Stop listening and cut what is still open."""
        # shutdown() wakes the thread in accept(); close() alone would leave it there.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self._links:
            link.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            link = _Link(client, self.target, self.rtt)
            self._links.append(link)
            threading.Thread(target=link.run, daemon=True).start()


class _Link:
    """One connection: its two sockets, four threads and counters."""

    def __init__(self, client: socket.socket, target: tuple[str, int], rtt: float) -> None:
        self._client, self._target, self._rtt = client, target, rtt
        self._server: socket.socket | None = None
        self.round_trips = self.sent = self.received = 0
        self._delivered = False  # something reached the client since it last sent
        self._lock = threading.Lock()

    def run(self) -> None:
        """Carry bytes until both directions have ended."""
        time.sleep(self._rtt)  # the client's connect() would return now ...
        try:
            self._server = socket.create_connection(self._target, timeout=30)
        except OSError:
            self._client.close()
            return
        self._server.settimeout(None)
        for end in (self._client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # ... and its acknowledgement reach the server half a round trip later: hold back the first bytes of it.
        up = threading.Thread(
            target=self._carry, args=(self._client, self._server, time.monotonic() + self._rtt / 2), daemon=True
        )
        up.start()
        self._carry(self._server, self._client, time.monotonic() + self._rtt)
        up.join()
        self.close()

    def _carry(self, source: socket.socket, sink: socket.socket, not_before: float) -> None:
        """One direction: a thread reads and notes when each piece is due, this one delivers it then."""
        pieces: queue.Queue[tuple[float, bytes]] = queue.Queue()
        threading.Thread(target=self._read, args=(source, pieces, not_before), daemon=True).start()
        while True:
            due, data = pieces.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                if sink is self._client:
                    with self._lock:
                        self._delivered = True
                        self.received += len(data)
                sink.sendall(data)
            except OSError:
                self.close()
                return

    def _read(self, source: socket.socket, pieces: queue.Queue[tuple[float, bytes]], not_before: float) -> None:
        while True:
            try:
                data = source.recv(PIECE)
            except OSError:
                data = b""
            pieces.put((max(not_before, time.monotonic() + self._rtt / 2), data))
            if not data:
                return
            if source is self._client:
                with self._lock:
                    self.round_trips += self._delivered
                    self._delivered = False
                    self.sent += len(data)

    def close(self) -> None:
        """Cut both ends; threads that wait for them end."""
        for end in (self._client, self._server):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT")
    return host, int(port)


def main() -> None:
    """The program; its first line of output is the port it listens on."""
    parser = argparse.ArgumentParser(description="A TCP relay that adds a round-trip time.")
    parser.add_argument("target", type=_address, metavar="ADDRESS:PORT")
    parser.add_argument("--rtt", type=float, default=0.1, help="seconds to add (0.1)")
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 0), metavar="ADDRESS:PORT")
    options = parser.parse_args()
    with Relay(options.target, options.rtt, options.listen) as relay:
        print(relay.port, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdin.read()
        print(json.dumps(relay.counted()))


if __name__ == "__main__":
    main()
