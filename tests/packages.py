"""Other people's programs for tests, from the distribution's packages, without installing anything.

Installed servers would be started at the next boot, and in every host of a lab, which shares the machine's file
system. So apt-get, as any user, only downloads the packages, with the libraries that this machine lacks for them,
and dpkg unpacks them into PLACE.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("nginx", "redis-server", "mosquitto", "wrk", "apache2-utils")
PLACE = Path(__file__).resolve().parent.parent / ".packages"  # stays, for the next run


class NotHere(Exception):
    """The packages cannot be had; the text says why."""


def environment(place: Path = PLACE, packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """The environment in which the packages' programs are found and run; they are fetched once.

    :raises NotHere: there is no apt-get, or it could not download.
    """
    made_for = place / "made-for"  # written last: a half-made folder is made anew
    with _opened(place.parent) as checkout:
        fcntl.flock(checkout, fcntl.LOCK_EX)  # the suite's processes may want it at the same time
        if not made_for.exists() or made_for.read_text() != " ".join(packages):
            shutil.rmtree(place, ignore_errors=True)
            _fetch(place, packages)
            made_for.write_text(" ".join(packages))
    programs = [str(place / folder) for folder in ("usr/sbin", "usr/bin")]
    libraries = sorted({str(path.parent) for path in place.rglob("*.so*")})
    path = os.pathsep.join([*programs, os.environ.get("PATH", os.defpath), "/usr/sbin"])
    return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _fetch(place: Path, packages: tuple[str, ...]) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise NotHere(f"there is no apt-get to download {', '.join(packages)}")
    install = ["install", "--yes", "--download-only", "--no-install-recommends", *packages]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        cache.chmod(0o755)  # root's apt-get downloads as a user of its own
        for part in ("archives/partial", "lists/partial"):
            (cache / part).mkdir(parents=True)
        # It need not wait for another apt-get: of the machine's own files it only reads.
        apt = ["apt-get", "-qq", "-o", "Debug::NoLocking=1", "-o", f"Dir::Cache={cache}"]
        done = subprocess.run([*apt, *install], capture_output=True, text=True, check=False)
        if done.returncode:  # the machine's package lists may be absent, or too old
            apt += ["-o", f"Dir::State::lists={cache}/lists"]
            subprocess.run([*apt, "update"], capture_output=True, check=False)
            done = subprocess.run([*apt, *install], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotHere(f"apt-get could not download: {(done.stderr.strip() or 'no reason').splitlines()[-1]}")
        for package in sorted((cache / "archives").glob("*.deb")):
            subprocess.run(["dpkg", "--extract", package, place], check=True)
