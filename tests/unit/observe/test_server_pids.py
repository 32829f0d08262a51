"""Which processes are the server of a port."""

import os
import socket
import subprocess

import pytest


def test_whoever_listens_on_the_port_is_the_server_where_no_pid_file_names_it(tmp_path):
    from operations import observe

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        port = listener.getsockname()[1]
        assert observe.listener_pids(port) == [os.getpid()]
        look = observe.Look({"port": port, "pid_file": None}, lambda: False)
        assert look.processes() == [os.getpid()]
        # Another server's pid file does not make it the server of this port.
        sleeper = subprocess.Popen(["sleep", "30"])
        (tmp_path / "pid").write_text(f"{sleeper.pid}\n")
        look = observe.Look({"port": port, "pid_file": str(tmp_path / "pid")}, lambda: False)
        assert look.processes() == [os.getpid()]
        sleeper.kill()
        sleeper.wait()
        free = other.getsockname()[1]
    assert observe.listener_pids(free) == []
    look = observe.Look({"port": free, "pid_file": None}, lambda: False)
    with pytest.raises(LookupError, match="no pid file"):
        look.processes()
