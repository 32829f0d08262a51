"""Which processes are the server of a port: whoever listens on it, also where a pid file names another server."""

import subprocess
import sys
from pathlib import Path

PAYLOAD = Path(__file__).resolve().parents[3] / "payload"
# In a process of its own: `operations` is the name of a package of tests here, too.
SCRIPT = """
import os, socket, subprocess, sys
sys.path.insert(0, sys.argv[1])
import observe_netlink, observe_processes
from operations import observe

def refused(*_, **__):
    raise OSError(1, "refused")

def look(port, pid_file=None):
    return observe.Look({"port": port, "pid_file": pid_file}, lambda: False).processes()

with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
    port, free = listener.getsockname()[1], other.getsockname()[1]
    seen = observe_processes.listening(port)
    assert len(seen) == 1 and observe_processes.holders(seen) == [os.getpid()]
    asked, observe_netlink.listeners = observe_netlink.listeners, refused
    assert observe_processes.listening(port) == seen  # from /proc/net/tcp
    observe_netlink.listeners = asked
    assert look(port) == [os.getpid()]
    sleeper = subprocess.Popen(["sleep", "30"])
    with open(sys.argv[2], "w") as target:
        target.write("%d\\n" % sleeper.pid)
    assert look(port, sys.argv[2]) == [os.getpid()]  # another server's pid file
assert observe_processes.listening(free) == set() and observe_processes.holders(set()) == []
assert look(free, sys.argv[2]) == [sleeper.pid]
sleeper.kill()
sleeper.wait()
try:
    look(free)
except LookupError as problem:
    assert "no pid file" in str(problem)
else:
    raise AssertionError("there is no server")
"""


def test_the_server_is_whoever_listens_on_the_port(tmp_path):
    argv = [sys.executable, "-B", "-c", SCRIPT, str(PAYLOAD), str(tmp_path / "pid")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
