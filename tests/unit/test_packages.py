"""Where other people's programs cannot be had, tests that need them are skipped with the reason."""

from pathlib import Path

import pytest

from tests.packages import NotHere, environment

SAID = "echo 'W: a warning' >&2; echo 'E: Unable to fetch some archives' >&2; exit 100"


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({}, "there is no apt-get to download one, two"),
        ({"dpkg": "", "apt-get": SAID}, "apt-get could not download: E: Unable to fetch some archives"),
        ({"dpkg": "", "apt-get": "exit 1"}, "apt-get could not download: no reason"),
    ],
)
def test_what_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], reason: str
) -> None:
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotHere, match=reason):
        environment(tmp_path / "place", ("one", "two"))


def test_they_are_fetched_once_and_anew_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt-get leaves a package for each name it was given, dpkg unpacks it as a program of that name."""
    scripts = {
        "apt-get": "echo $* >>$LOG; for word; do case $word in Dir::Cache=*) cache=${word#*=};; esac; done\n"
        'for word; do case $word in one|two) : >"$cache/archives/$word.deb";; esac; done',
        "dpkg": 'name=${2##*/}; mkdir -p "$3/usr/bin"; : >"$3/usr/bin/${name%.deb}"',
    }
    for name, does in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    place = tmp_path / "place"
    for packages, runs in ((("one",), 1), (("one",), 1), (("two",), 2)):
        assert environment(place, packages)["PATH"].startswith(f"{place}/usr/sbin:{place}/usr/bin:{tmp_path}")
        assert [path.name for path in (place / "usr/bin").iterdir()] == list(packages)
        assert len((tmp_path / "log").read_text().splitlines()) == runs
