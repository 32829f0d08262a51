"""The presets against the servers they are for, unchanged from the distribution (tests/packages.py)."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

CLIENT = Path(__file__).resolve().parents[2] / "payload" / "stress_client.py"
CONNECTIONS = 5000


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def nginx(folder, port, certificate=None, ipv6=False):
    tls = f"ssl_certificate {certificate}.crt; ssl_certificate_key {certificate}.key;" if certificate else ""
    more = f"listen [::1]:{port};" if ipv6 else ""
    (folder / "www").mkdir()
    (folder / "www/index.html").write_text("<p>" + "hello " * 100)
    (folder / "nginx.conf").write_text(
        f"user root; daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; "
        "worker_rlimit_nofile 20000; events {worker_connections 12000;} "
        f"http {{access_log off; keepalive_timeout 600; client_body_temp_path {folder}/a; "
        f"proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; "
        f"scgi_temp_path {folder}/e; server {{ "
        f"listen 127.0.0.1:{port} backlog=4096 {'ssl' if tls else ''}; {more} {tls} root {folder}/www; }} }}"
    )
    return ["nginx", "-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]


def redis(folder, port):
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    return [*argv, "--maxclients", "12000", "--tcp-backlog", "4096"]


def mosquitto(folder, port):
    (folder / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    return ["mosquitto", "-c", str(folder / "mosquitto.conf")]


@pytest.fixture
def start(tmp_path, packages):
    """Starts a server and waits until it listens; none survives the test."""
    started = []

    def begin(make, **kwargs):
        port = free_port()
        log = (tmp_path / "log").open("w")
        argv = make(tmp_path, port, **kwargs)
        # The shell's soft limit is 1,024 on Debian; servers raise it no further than the hard one.
        argv = ["sh", "-c", 'ulimit -n 16000 && exec "$@"', "sh", *argv]
        started.append((subprocess.Popen(argv, stdout=log, stderr=log, env=packages), log))
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return port
            assert started[-1][0].poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        raise AssertionError((tmp_path / "log").read_text())

    yield begin
    for process, log in started:
        process.terminate()
        process.wait(10)
        log.close()


def load(port, *options, code=0, host="127.0.0.1"):
    command = [sys.executable, str(CLIENT), host, str(port), "--json", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr[-2000:] + done.stdout[:3000]
    result = json.loads(done.stdout)
    c, e = result["connections"], result["echoes"]
    assert c["requested"] == c["verified"] + c["failed"]
    assert e["sent"] == e["verified"] + e["mismatched"] + e["lost"]
    return result


SERVERS = pytest.mark.parametrize(("preset", "make"), [("http", nginx), ("redis", redis), ("mqtt", mosquitto)])


@SERVERS
def test_5000_connections_each_reply_verified(start, preset, make):
    port = start(make)
    mode = ["--mode", "heartbeat", "--interval", 1.5, "--hold", 1.7, "--workers", 1]
    result = load(port, "--preset", preset, "--connections", CONNECTIONS, *mode)
    assert result["connections"]["verified"] == result["connections"]["peak"] == CONNECTIONS
    assert result["connections"]["failed"] == result["echoes"]["lost"] == result["echoes"]["mismatched"] == 0
    assert result["echoes"]["steady"] > CONNECTIONS


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_http_over_ipv6(start):
    """A Host header has such an address in brackets; without them the reply is 400."""
    port = start(nginx, ipv6=True)
    result = load(port, "--preset", "http", "--connections", 50, "--hold", 0, host="::1")
    assert (result["connections"]["verified"], result["target"]) == (50, f"[::1]:{port}")


@pytest.mark.full
@SERVERS
def test_many_messages_on_their_way_and_connections_made_anew(start, preset, make):
    port = start(make)
    timer = ["--mode", "timer", "--interval", 0.001, "--hold", 0.5]
    result = load(port, "--preset", preset, "--connections", 3, *timer)
    assert result["echoes"]["steady"] > 300
    churn = ["--mode", "churn", "--rate", 500, "--hold", 1]
    result = load(port, "--preset", preset, "--connections", 20, *churn)
    assert result["connections"]["requested"] == 20 + result["churn"]["connects"] > 400


def test_http_over_tls(start, tmp_path):
    for name in ("here", "other"):
        subprocess.run(
            f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=DNS:{name} "
            f"-keyout {tmp_path}/{name}.key -out {tmp_path}/{name}.crt",
            shell=True,
            check=True,
            capture_output=True,
        )
    port = start(nginx, certificate=tmp_path / "here")
    base = ["--preset", "http", "--connections", 200, "--hold", 0.5, "--mode", "heartbeat", "--interval", 0.2]
    checked = ["--tls", "--tls-name", "here", "--tls-ca", tmp_path / "here.crt"]
    result = load(port, *base, *checked)
    assert result["connections"]["verified"] == 200 and result["echoes"]["steady"] > 200
    assert load(port, *base, "--tls-insecure")["connections"]["verified"] == 200
    for wrong in (["--tls"], ["--tls", "--tls-ca", tmp_path / "other.crt"], [*checked, "--tls-name", "there"]):
        result = load(port, *base, *wrong, code=3)
        assert [(row["phase"], row["count"]) for row in result["errors"]] == [("tls", 200)]
        assert "TLS: " in result["errors"][0]["sample"]
