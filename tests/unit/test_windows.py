"""windows-tuning: the port range for a number of connections, and files that Windows' own parsers would take.

There is no Windows here. The .reg file is read by a parser of its grammar; the script is taken apart by a
tokenizer that knows comments, strings, brackets and variables. Neither proves that Windows does what they ask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tcpfleet.cli import Options
from tcpfleet.errors import BadInput
from tcpfleet.windows import PS1, REG, files, plan, windows_tuning
from tests.running import Inv

TCPIP = r"HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Services\Tcpip\Parameters"


@pytest.mark.parametrize(
    ("connections", "start", "number", "addresses"),
    [
        (1, 49151, 16384, 1),  # never fewer than Windows has by itself
        (16384, 49151, 16384, 1),
        (16385, 49150, 16385, 1),
        (64510, 1025, 64510, 1),
        (64511, 1025, 64510, 2),
        (129020, 1025, 64510, 2),
        (129021, 1025, 64510, 3),
        (10**6, 1025, 64510, 16),
    ],
)
def test_plan(connections: int, start: int, number: int, addresses: int) -> None:
    made = plan(connections)
    assert (made.start, made.number, made.addresses) == (start, number, addresses)
    assert made.start + made.number - 1 == 65534
    assert made.number >= 255  # netsh takes no fewer


# ---- the .reg file


def parse_reg(content: bytes) -> dict[str, dict[str, Any]]:
    """Key -> value name -> value of a REGEDIT5 file; raises AssertionError where the grammar ends."""
    assert content.startswith(b"\xff\xfe"), "no BOM of UTF-16LE"
    text = content[2:].decode("utf-16-le")
    assert text.endswith("\r\n") and "\n" not in text.replace("\r\n", "") and "\r" not in text.replace("\r\n", "")
    lines = text.split("\r\n")
    assert lines[0] == "Windows Registry Editor Version 5.00"
    assert lines[1] == "", "an empty line follows the first"
    found: dict[str, dict[str, Any]] = {}
    key = None
    for line in lines[2:]:
        if not line or line.startswith(";"):
            continue
        if match := re.fullmatch(r"\[(-?HKEY_[A-Z_]+(?:\\[^\\\[\]]+)+)\]", line):
            key = match.group(1)
            assert key not in found, f"{key} is there twice"
            found[key] = {}
            continue
        match = re.fullmatch(
            r'(@|"(?:[^"\\]|\\["\\])+")=(?:dword:([0-9a-f]{8})|"((?:[^"\\]|\\["\\])*)"|(-))', line
        )
        assert match and key, f"not a line of a .reg file: {line!r}"
        name = match.group(1).strip('"')
        assert name not in found[key], f"{name} is there twice"
        found[key][name] = int(match.group(2), 16) if match.group(2) else match.group(3) or None
    return found


def test_the_registry_file_has_the_articles_values() -> None:
    assert parse_reg(files(plan())[REG]) == {TCPIP: {"MaxUserPort": 65534, "TcpTimedWaitDelay": 30}}


@pytest.mark.parametrize(
    "broken", ["[HKEY_X\\a\r\n", '"a"=dword:1\r\n', '"a=dword:00000001\r\n', "a=1\r\n", '[HKEY_X\\a]\n"a"=-\r\n']
)
def test_the_parser_refuses_what_is_no_registry_file(broken: str) -> None:
    text = "Windows Registry Editor Version 5.00\r\n\r\n[HKEY_Y\\b]\r\n" + broken
    with pytest.raises(AssertionError):
        parse_reg(b"\xff\xfe" + text.encode("utf-16-le"))


# ---- the PowerShell script


class Token(NamedTuple):
    """A piece of a script; kinds: comment, string (without variables), open, close, variable, other."""

    kind: str
    text: str
    line: int


VARIABLE = re.compile(r"\$(?:\{([^}]+)\}|((?:env:)?\w+|[?^$_]))", re.IGNORECASE)
PAIRS = {"(": ")", "{": "}", "[": "]", "@(": ")", "@{": "}", "$(": ")"}


def tokens(script: str) -> Iterator[Token]:
    """Takes a script apart; variables within double quotes come as tokens of their own.

    :raises AssertionError: at an end inside a comment or string, or a bracket that closes another one.
    """
    stack: list[tuple[str, int]] = []
    at, end = 0, len(script)
    inside_string = [False]  # one entry per `$(` within a string, and the script itself
    while at < end:
        line = script.count("\n", 0, at) + 1
        rest = script[at:]
        if inside_string[-1]:
            if rest[0] == "`" or rest.startswith('""'):
                at += 2
            elif rest[0] == '"':
                inside_string[-1] = False
                at += 1
            elif rest.startswith("$("):
                stack.append(("$(", line))
                inside_string.append(False)
                at += 2
                yield Token("open", "$(", line)
            elif match := VARIABLE.match(rest):
                yield Token("variable", match.group(1) or match.group(2), line)
                # `$Name:` would be read as a scope or drive: it is written `${Name}:`
                assert match.group(1) or not rest[match.end() :].startswith(":"), (
                    f"line {line}: ${match.group(2)}:"
                )
                at += match.end()
            else:
                at += 1
            continue
        if rest.startswith("<#"):
            close = rest.find("#>")
            assert close > 0, f"line {line}: a comment without end"
            yield Token("comment", rest[: close + 2], line)
            at += close + 2
        elif rest[0] == "#":
            text = rest.split("\n", 1)[0]
            yield Token("comment", text, line)
            at += len(text)
        elif rest[0] == "'":
            match = re.match(r"'((?:[^']|'')*)'", rest)
            assert match and "\n" not in match.group(), f"line {line}: a string without end"
            yield Token("string", match.group(1), line)
            at += match.end()
        elif rest[0] == '"':
            inside_string[-1] = True
            at += 1
        elif opening := next((one for one in ("@(", "@{", "$(", "(", "{", "[") if rest.startswith(one)), None):
            stack.append((opening, line))
            yield Token("open", opening, line)
            at += len(opening)
        elif rest[0] in ")}]":
            assert stack and PAIRS[stack[-1][0]] == rest[0], f"line {line}: {rest[0]} closes {stack[-1:]}"
            opening, _ = stack.pop()
            if opening == "$(" and len(inside_string) > 1:
                inside_string.pop()
            yield Token("close", rest[0], line)
            at += 1
        elif match := VARIABLE.match(rest):
            yield Token("variable", match.group(1) or match.group(2), line)
            at += match.end()
        else:
            match = re.match(r"[\w-]+|\s+|.", rest)
            assert match
            if match.group().strip():
                yield Token("other", match.group(), line)
            at += match.end()
    assert not stack, f"{stack[-1][0]} of line {stack[-1][1]} is never closed"
    assert inside_string == [False], "a string without end"


AUTOMATIC = {
    "_", "null", "true", "false", "matches", "lastexitcode", "pscmdlet", "whatifpreference",
    "erroractionpreference", "env:programdata",
}  # fmt: skip


def script(connections: int = 64510) -> str:
    content = files(plan(connections))[PS1]
    text = content.decode("ascii")
    assert text.endswith("\r\n") and "\n" not in text.replace("\r\n", "") and "\t" not in text
    return text.replace("\r\n", "\n")


@pytest.mark.parametrize("connections", [1, 64510, 10**6])
def test_the_script_is_well_formed(connections: int) -> None:
    found = list(tokens(script(connections)))
    code = [token for token in found if token.kind != "comment"]
    assert [token.text for token in code[:2]] == ["[", "CmdletBinding"]
    assert "param" in [token.text for token in code[:12]], "param comes first, or it is no parameter block"
    assert unassigned(code) == [] and unknown_commands(code) == []


def unassigned(code: list[Token]) -> list[str]:
    """Variables that are used before anything gives them a value."""
    assigned, found = set(AUTOMATIC), []
    for position, token in enumerate(code):
        if token.kind != "variable":
            continue
        name = token.text.lower()
        before = code[position - 1].text if position else ""
        after = code[position + 1].text if position + 1 < len(code) else ""
        # an assignment, a foreach, or a parameter: `[type] $Name` or `, $Name` before `,`, `)` or `=`
        if after in ("=", "in") or (before in ("]", ",") and after in (",", ")", "=")):
            assigned.add(name)
        if name not in assigned:
            found.append(f"line {token.line}: ${token.text}")
    return found


CMDLETS = {
    "Set-StrictMode", "Join-Path", "ForEach-Object", "Get-ItemProperty", "Remove-ItemProperty", "New-ItemProperty",
    "Out-Null", "New-Object", "Test-Path", "Get-Content", "ConvertFrom-Json", "ConvertTo-Json", "Set-Content",
    "Sort-Object", "Remove-Item",
}  # fmt: skip


def unknown_commands(code: list[Token]) -> list[str]:
    """Words of the form Verb-Noun that are neither defined here nor PowerShell's."""
    words = [token for token in code if token.kind == "other"]
    defined = {after.text for before, after in pairwise(words) if before.text == "function"}
    verbs = [token for token in words if re.fullmatch("[A-Z][A-Za-z]+-[A-Z][A-Za-z]+", token.text)]
    return [f"line {token.line}: {token.text}" for token in verbs if token.text not in CMDLETS | defined]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("$Ports = Get-DynamicPort", "$Port = Get-DynamicPort"),
        ("$Now = Get-DynamicPort", "$Now = Get-DynamicPorts"),
        ("num=${Number}:", "num=${Nummer}:"),
        ("foreach ($Name in ($TargetValues", "foreach ($Name in ($TargetVales"),
        ("function Set-Value", "function Write-Value"),
    ],
)
def test_a_misspelt_name_is_found(right: str, wrong: str) -> None:
    text = script()
    assert text.count(right) == 1
    code = [token for token in tokens(text.replace(right, wrong)) if token.kind != "comment"]
    assert unassigned(code) + unknown_commands(code)


def test_the_script_sets_the_range_and_asks_before_every_change() -> None:
    text = script(30000)
    assert "$WantedStart = 35535\n" in text and "$WantedNumber = 30000\n" in text
    assert "'MaxUserPort' = 65534; 'TcpTimedWaitDelay' = 30" in text
    assert "netsh.exe int ipv4 set dynamicport tcp" in text and "netsh.exe int ipv4 show dynamicport tcp" in text
    assert "SupportsShouldProcess = $true" in text and "[switch] $Undo" in text
    body = text[text.index("\nif ($Undo) {") :]
    changing = [
        "Set-Content", "Set-DynamicPort $Target", "Set-Value $Name", "Remove-Item -LiteralPath",
    ]  # fmt: skip
    for command in changing:
        assert body.count(command) == 1
        block = body[: body.index(command)].rsplit("\n", 2)[-2]
        assert "ShouldProcess" in block, f"{command} comes without a question: {block}"
    assert "need 4 addresses" in script(200000) and "addresses on this machine" not in text


def test_the_default_is_the_range_that_the_registry_value_ends() -> None:
    assert "netsh int ipv4 set dynamicport tcp start=1025 num=64510" in files(plan())[REG].decode("utf-16")


@pytest.mark.parametrize(
    "broken",
    ["if ($true) { 'a'", "'a", '"a', '"$(1"', "( ]", "<# a", "}", '"$a: b"', '$x = "a $( "b" ) c'],
)
def test_the_tokenizer_refuses_what_is_broken(broken: str) -> None:
    with pytest.raises(AssertionError):
        list(tokens(broken))


def test_the_tokenizer_sees_variables_within_strings() -> None:
    code = "\"a `$no $yes ${Also}: $($deep['x']) \"\" \" + '$no' # $no\n<# $no #> $env:Temp"
    assert [one.text for one in tokens(code) if one.kind == "variable"] == ["yes", "Also", "deep", "env:Temp"]


# ---- the task


def test_files_are_overwritten_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new/folder"
    answer = windows_tuning(Options({}), str(out), "200k", force=False)
    assert sorted(path.name for path in out.iterdir()) == [PS1, REG]
    assert answer.data["windows"]["addresses"] == 4 and "4 source addresses" in capsys.readouterr().out
    (out / REG).unlink()
    (out / PS1).write_text("mine")
    with pytest.raises(BadInput, match=rf"{PS1} already.*--force"):
        windows_tuning(Options({}), str(out), "", force=False)
    assert [path.name for path in out.iterdir()] == [PS1] and (out / PS1).read_text() == "mine"
    windows_tuning(Options({}), str(out), "", force=True)
    assert (out / PS1).read_bytes() == files(plan())[PS1] and (out / REG).read_bytes() == files(plan())[REG]


@pytest.mark.parametrize("wrong", ["0", "-3", "many", "1.5", "nan"])
def test_a_bad_number_is_named(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--connections"):
        windows_tuning(Options({}), str(tmp_path / "out"), wrong, force=False)
    assert not (tmp_path / "out").exists()


def test_the_task_from_the_command_line(inv: Inv, tmp_path: Path) -> None:
    data = inv.json("windows-tuning", "--out", str(tmp_path), "--connections", "20000")
    assert data["files"] == [str(tmp_path / REG), str(tmp_path / PS1)] and data["exit_code"] == 0
    assert data["windows"]["start"] == 45535
    again = inv("windows-tuning", "--out", str(tmp_path), "--json", code=1)
    assert "--force" in json.loads(again.stdout)["error"]
    (tmp_path / "file").write_text("")
    assert "not a folder" in inv("windows-tuning", "--out", str(tmp_path / "file"), code=1).stderr
