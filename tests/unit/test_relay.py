"""The relay that the tests of long ways rely on: order, delay, round trips."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relay import Relay

RELAY = Path(__file__).resolve().parent.parent / "relay.py"


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that echoes until it is told the end, then ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(client: socket.socket) -> None:
            with client:
                while data := client.recv(65536):
                    client.sendall(data)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


def read(client: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = client.recv(count - len(parts))
        assert part
        parts += part
    return bytes(parts)


def test_each_question_and_answer_takes_the_added_time(echo: tuple[str, int]) -> None:
    with Relay(echo, 0.05) as relay, socket.create_connection(("127.0.0.1", relay.port)) as client:
        begun = time.monotonic()
        for number in range(4):
            client.sendall(b"%d" % number)
            assert client.recv(10) == b"%d" % number
        # One for the handshake, four for the questions; the counter has not seen what follows the last answer.
        assert time.monotonic() - begun >= 0.25
        assert relay.round_trips == 3 and relay.connections == 1


def test_what_is_sent_without_waiting_costs_one_round_trip(echo: tuple[str, int]) -> None:
    with Relay(echo, 0.1) as relay, socket.create_connection(("127.0.0.1", relay.port)) as client:
        for number in range(50):
            client.sendall(b"%2d" % number)
        assert read(client, 100) == b"".join(b"%2d" % number for number in range(50))
        client.sendall(b"again")
        assert read(client, 5) == b"again"
        assert relay.round_trips == 1


def test_order_and_ends_are_kept(echo: tuple[str, int]) -> None:
    sent = bytes(range(256)) * 4096 * 4  # 4 MiB
    with Relay(echo, 0.01) as relay, socket.create_connection(("127.0.0.1", relay.port)) as client:
        threading.Thread(
            target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)), daemon=True
        ).start()
        assert read(client, len(sent)) == sent
        assert client.recv(1) == b""
        assert relay.counted()["each"][0]["received"] == len(sent)


def test_a_target_that_refuses_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()
    with Relay(nobody, 0.01) as relay, socket.create_connection(("127.0.0.1", relay.port)) as client:
        assert client.recv(1) == b""


def test_as_a_program(echo: tuple[str, int]) -> None:
    process = subprocess.Popen(
        [sys.executable, RELAY, f"127.0.0.1:{echo[1]}", "--rtt", "0.01"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    with socket.create_connection(("127.0.0.1", int(process.stdout.readline()))) as client:
        client.sendall(b"hello")
        assert read(client, 5) == b"hello"
    counted, _ = process.communicate(timeout=10)
    assert json.loads(counted)["connections"] == 1 and process.returncode == 0
