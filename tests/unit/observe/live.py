"""Run by test_observe_live under every interpreter: opens loopback sockets in known states, observes, prints JSON.

Usage: live.py PAYLOAD_DIR COUNT. Some descriptors are moved beyond 1,024, where select() gives up.
"""

import json
import os
import resource
import socket
import sys
import tempfile
import time

sys.path.insert(0, sys.argv[1])
from operations import OperationError, observe

FIN_WAIT_2 = 5  # include/net/tcp_states.h
# Addresses of loopback that nothing else uses: a load test on 127.0.0.1 may hold all of its ports.
HERE, THERE = "127.83.7.1", "127.83.7.2"


class Context:
    check = diff = False

    def progress(self, data):
        pass

    def stopping(self):
        return False


def unused_port():
    """A port that no socket has at either end, not even one at rest from an earlier run; below 1024 for root.

    A load test beside this one uses every port above, and its sockets would be counted.
    """
    if os.geteuid() != 0:
        return 0
    with open("/proc/net/tcp") as file:
        sockets = file.read()
    return next(port for port in range(540, 1023) if f":{port:04X} " not in sockets)


def connect(listener):
    """A client socket connected to `listener`."""
    client = socket.socket()
    client.bind((THERE, 0))
    client.connect(listener.getsockname())
    return client


def pairs(listener, count):
    """`count` connections over loopback: [(client, server)]."""
    found = []
    for _ in range(count):
        client = connect(listener)
        found.append((client, listener.accept()[0]))
    return found


def main():
    count = int(sys.argv[2])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    filler = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    listener = socket.socket()
    listener.bind((HERE, unused_port()))
    listener.listen(7)
    port = listener.getsockname()[1]
    held = pairs(listener, count)
    closed_by_client, closed_by_both = held[0], held[1]
    closed_by_client[0].shutdown(socket.SHUT_WR)  # FIN-WAIT-2 there, CLOSE-WAIT at the server
    while closed_by_client[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != bytes([FIN_WAIT_2]):
        time.sleep(0.001)  # the other end's ACK may take a moment
    closed_by_both[0].close()
    closed_by_both[1].close()  # TIME-WAIT at the client
    queued = [connect(listener) for _ in range(3)]
    folder = tempfile.mkdtemp()
    pid_file, log_file = os.path.join(folder, "pid"), os.path.join(folder, "log")
    with open(pid_file, "w") as file:
        file.write(f"{os.getpid()}\n")
    with open(log_file, "w") as file:
        file.write("".join(f"line {number}\n" for number in range(100)))
    args = {"port": port, "pid_file": pid_file, "log_file": log_file, "log_lines": 5}
    args.update(lsof_seconds=2, lsof_lines=3, server_program="/nonexistent/echo_server.py")
    args["sysctls"] = ["net.core.somaxconn", "net.no.such", "../../etc/passwd"]
    results = {"port": port, "pid": os.getpid(), "fds": len(os.listdir("/proc/self/fd")) - 1}
    for source in ("netlink", "ss", "proc"):
        partial = {"sections": ["states", "listeners"], "socket_sources": [source]}
        results[source] = observe.run(dict(args, **partial), Context())["observation"]
    full = socket.socket()
    full.bind((HERE, 0))
    full.listen(0)
    offered = [socket.socket() for _ in range(4)]
    for client in offered:
        client.setblocking(False)
        client.connect_ex(full.getsockname())
    asked = {"port": full.getsockname()[1], "sections": ["listener_drops"]}
    results["listener_drops"] = observe.run(asked, Context())["observation"]["listener_drops"]
    for client in [full, *offered]:
        client.close()
    results["whole"] = observe.run(args, Context())
    os.environ["PATH"] = "/nonexistent"
    results["no_tools"] = observe.run(dict(args, socket_sources=["ss", "proc"]), Context())["observation"]
    results["refused"] = []
    for wrong in ({"port": 0}, {"port": 1, "sections": ["x"]}, {"port": 1, "what": 1}, {"port": True}):
        try:
            observe.run(wrong, Context())
        except OperationError as error:
            results["refused"].append(error.msg)
    for name in (pid_file, log_file):
        os.unlink(name)
    os.rmdir(folder)
    for one in [listener] + queued + [end for pair in held for end in pair]:
        one.close()
    for fd in filler:
        os.close(fd)
    json.dump(results, sys.stdout)


main()
