#!/usr/bin/env python3
"""What variants of the server's loop cost, in one process: TCP connections to itself, variants in turn.

    python3 benchmarks/echo_loop.py [CONNECTIONS] [BYTES] [TURNS]

In each turn every variant serves one message on every connection; CPU time of the thread is taken, the clients'
part is not counted. Whatever else the machine does hits all variants alike, so small differences show that are
lost between two runs. `bare` is the least that Python can do: no error handled, nothing counted.
"""

import gc
import os
import select
import socket
import statistics
import sys
import time
from itertools import repeat
from pathlib import Path
from typing import Any

PAYLOAD = Path(__file__).resolve().parent.parent / "payload"
sys.path.insert(0, str(PAYLOAD))


class Connections:
    """As much of echo_connections.Connections as echo_turn asks for."""

    def __init__(self) -> None:
        self.slot, self.special, self.read = 0, {-1}, os.read
        self.attend = self.close = self.careful_read = None
        self.columns = {name: memoryview(bytearray(8)).cast("Q") for name in ("echoes", "bytes")}

    def is_tight(self) -> bool:
        return False


def shipped(size: int) -> Any:
    """The server's own loop, with reads of `size` bytes."""
    source = (PAYLOAD / "echo_turn.py").read_text()
    names: dict[str, Any] = {}
    exec(source.replace("READ_SIZE = 16384", f"READ_SIZE = {size}"), names)
    return names["echo_turn"](Connections())


def bare(events: list[tuple[int, int]]) -> None:
    read, write = os.read, os.write
    for fd, _ in events:
        write(fd, read(fd, 16384))


def reads_then_writes() -> Any:
    """All reads of a turn before all its writes, in loops of C: one kind of system call after the other."""
    read, write, sizes, special = os.read, os.write, repeat(16384), {-1}

    def turn(events: list[tuple[int, int]]) -> None:
        fds = [fd for fd, _ in events]
        if not special.isdisjoint(fds):
            raise AssertionError
        data = list(map(read, fds, sizes))
        lengths = list(map(len, data))
        if not all(data) or list(map(write, fds, data)) != lengths:
            raise AssertionError
        sum(lengths)

    return turn


def into_one_buffer() -> Any:
    """os.readv into one buffer; slices of it are kept by their length."""
    buffer = bytearray(16384)
    whole, buffers, slices = memoryview(buffer), [buffer], {}
    readv, write, special = os.readv, os.write, {-1}

    def turn(events: list[tuple[int, int]]) -> None:
        echoes = total = 0
        for fd, _ in events:
            if fd in special:
                continue
            try:
                size = readv(fd, buffers)
            except BlockingIOError:
                continue
            if not size:
                continue
            if size in slices:
                data = slices[size]
            else:
                data = slices[size] = whole[:size]
            try:
                sent = write(fd, data)
            except BlockingIOError:
                sent = 0
            echoes += 1
            total += size
            if sent != size:
                raise AssertionError

    return turn


def main() -> None:
    given = [int(a) for a in sys.argv[1:4]]
    connections, size, turns = given + [200, 64, 300][len(given) :]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    epoll = select.epoll()
    pairs = []
    for _ in range(connections):
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
        served.setblocking(False)
        epoll.register(served.fileno(), select.EPOLLIN)
        pairs.append((client, served))
    clients = [client.fileno() for client, _ in pairs]
    variants: dict[str, tuple[Any, int]] = {"shipped: reads of 16384, 32 events": (shipped(16384), 32)}
    variants |= {f"reads of {n}": (shipped(n), 32) for n in (2048, 4096, 65536)}
    variants |= {f"{n} events per wait": (shipped(16384), n) for n in (16, 64, 256, 1023)}
    variants |= {"readv into one buffer": (into_one_buffer(), 32), "reads, then writes": (reads_then_writes(), 32)}
    variants |= {"bare": (bare, 32)}
    taken: dict[str, list[float]] = {name: [] for name in variants}
    message = bytes(size)
    gc.disable()
    for n in range(turns):
        names = list(variants)
        for name in names[n % len(names) :] + names[: n % len(names)]:  # nobody is always the first
            turn, batch = variants[name]
            for fd in clients:
                os.write(fd, message)
            done, begun = 0, time.thread_time_ns()
            while done < connections:
                events = epoll.poll(0, batch)
                turn(events)
                done += len(events)
            taken[name].append((time.thread_time_ns() - begun) / connections / 1000)
            for fd in clients:
                os.read(fd, 65536)
    first = next(iter(taken.values()))
    print(f"{connections} connections x {size} bytes, {turns} turns\n")
    print("| variant | us per echo, median | to shipped |\n|---|---|---|")
    for name, times in taken.items():
        ratio = statistics.median(a / b for a, b in zip(times, first, strict=True))
        print(f"| {name} | {statistics.median(times):.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
