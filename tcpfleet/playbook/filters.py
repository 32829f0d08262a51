"""The filters that Ansible adds to Jinja2, as far as this subset has them; they mean what Ansible means."""

from __future__ import annotations

import base64
import datetime
import functools
import glob
import hashlib
import json
import os.path
import re
import shlex
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml
from jinja2 import Environment, Undefined, UndefinedError, pass_environment

from tcpfleet.playbook import filters_math

# Ansible's own, so that to_uuid gives the same.
_UUID_NAMESPACE = uuid.UUID("361E6D51-FAEC-444A-9079-341386DA8E2E")
_MERGES = ("replace", "keep", "append", "prepend", "append_rp", "prepend_rp")
_COMMENTS: Mapping[str, Mapping[str, str]] = {
    "plain": {"decoration": "# "},
    "erlang": {"decoration": "% "},
    "c": {"decoration": "// "},
    "cblock": {"beginning": "/*", "decoration": " * ", "end": " */"},
    "xml": {"beginning": "<!--", "decoration": " - ", "end": "-->"},
}
_URL_PARTS = ("scheme", "netloc", "path", "query", "fragment", "username", "password", "hostname", "port")

# ---- one value


def _bool(value: Any) -> bool:
    word = value.lower() if isinstance(value, str) else str(value).lower() if isinstance(value, int) else value
    if word in ("yes", "on", "true", "1"):
        return True
    if word in ("no", "off", "false", "0"):
        return False
    return bool(word == 1)


def _ternary(value: Any, true_val: Any, false_val: Any, none_val: Any = None) -> Any:
    if isinstance(value, Undefined):
        _refuse(value)
    if value is None and none_val is not None:
        return none_val
    return true_val if bool(value) else false_val


def _mandatory(value: Any, msg: str | None = None) -> Any:
    if isinstance(value, Undefined):
        raise UndefinedError(msg or f"the mandatory variable '{value._undefined_name}' is not defined")
    return value


def _type_debug(value: Any) -> str:
    for kind in (bool, str, int, float, dict, list):
        if isinstance(value, kind):
            return kind.__name__
    return "dict" if isinstance(value, Mapping) else type(value).__name__


# ---- text


def _flags(ignorecase: bool, multiline: bool) -> int:
    return (re.IGNORECASE if ignorecase else 0) | (re.MULTILINE if multiline else 0)


def _regex_replace(
    value: Any = "",
    pattern: str = "",
    replacement: str = "",
    ignorecase: bool = False,
    multiline: bool = False,
    count: int = 0,
    mandatory_count: int = 0,
) -> str:
    text, found = re.subn(pattern, replacement, str(value), count=count, flags=_flags(ignorecase, multiline))
    if mandatory_count and mandatory_count != found:
        raise ValueError(
            f"{pattern!r} should match {mandatory_count} times and matches {found} times in {value!r}"
        )
    return text


def _regex_findall(value: Any, regex: str, multiline: bool = False, ignorecase: bool = False) -> list[Any]:
    return re.findall(regex, str(value), _flags(ignorecase, multiline))


def _regex_search(value: Any, regex: str, *groups: str, ignorecase: bool = False, multiline: bool = False) -> Any:
    keys: list[int | str] = []
    for group in groups:
        named, numbered = re.match(r"\\g<(\S+)>", group), re.match(r"\\(\d+)", group)
        if named is None and numbered is None:
            raise ValueError(rf"regex_search takes groups as \1 or \g<name>, not {group!r}")
        keys.append(named[1] if named else int(numbered[1]) if numbered else 0)
    found = re.search(regex, str(value), _flags(ignorecase, multiline))
    if found is None:
        return None
    return [found.group(key) for key in keys] if keys else found.group()


def _regex_escape(value: Any, re_type: str = "python") -> str:
    if re_type == "python":
        return re.escape(str(value))
    if re_type == "posix_basic":
        return re.sub(r"([].[^$*\\])", r"\\\1", str(value))
    raise ValueError(f"regex_escape: re_type is python or posix_basic, not {re_type!r}")


def _quote(value: Any) -> str:
    return shlex.quote("" if value is None else str(value))


def _comment(text: str, style: str = "plain", **options: Any) -> str:
    if style not in _COMMENTS:
        raise ValueError(f"comment: style is one of {', '.join(_COMMENTS)}, not {style!r}")
    lead = str(options.get("decoration", _COMMENTS[style]["decoration"])).rstrip()
    given: dict[str, Any] = {"newline": "\n", "beginning": "", "prefix": lead, "prefix_count": 1, "decoration": ""}
    given |= {"postfix": lead, "postfix_count": 1, "end": ""}
    given |= {**_COMMENTS[style], **options}
    newline, decoration = given["newline"], given["decoration"]
    begin = given["beginning"] + newline if given["beginning"] else ""
    prefix = (
        given["prefix"] if given["prefix"] == newline else given["prefix"] + newline if given["prefix"] else ""
    )
    body = decoration + text.replace(newline, newline + decoration)
    body = body.replace(decoration + newline, decoration.rstrip() + newline)
    postfix = (newline + given["postfix"]) * int(given["postfix_count"])
    end = newline + given["end"] if given["end"] else ""
    return str(begin + prefix * int(given["prefix_count"]) + body + postfix + end)


def _b64encode(value: Any, encoding: str = "utf-8", urlsafe: bool = False) -> str:
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    return encode(str(value).encode(encoding, "surrogateescape")).decode("ascii")


def _b64decode(value: Any, encoding: str = "utf-8", urlsafe: bool = False) -> str:
    decode = base64.urlsafe_b64decode if urlsafe else base64.b64decode
    return decode(str(value)).decode(encoding, "surrogateescape")


def _hash(value: Any, hashtype: str = "sha1") -> str:
    digest = hashlib.new(hashtype)
    digest.update(str(value).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _to_uuid(value: Any, namespace: Any = _UUID_NAMESPACE) -> str:
    return str(uuid.uuid5(namespace if isinstance(namespace, uuid.UUID) else uuid.UUID(namespace), str(value)))


def _urlsplit(value: str, query: str = "") -> Any:
    parts = urllib.parse.urlsplit(value)
    found = {name: getattr(parts, name) for name in _URL_PARTS}
    if query and query not in found:
        raise ValueError(f"urlsplit: there is no part {query!r}; there are: {', '.join(_URL_PARTS)}")
    return found[query] if query else found


# ---- time


def _to_datetime(value: str, format: str = "%Y-%m-%d %H:%M:%S") -> datetime.datetime:
    return datetime.datetime.strptime(value, format)


def _strftime(string_format: str, second: Any = None, utc: bool = False) -> str:
    return time.strftime(
        string_format, (time.gmtime if utc else time.localtime)(None if second is None else float(second))
    )


# ---- JSON and YAML


def _plain(value: Any) -> Any:
    """Without the string subclasses that know their place: what serialisers are sure to take."""
    if isinstance(value, Undefined):
        _refuse(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_plain(one) for one in value]
    return value


def _json_date(value: Any) -> str:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _to_json(value: Any, **options: Any) -> str:
    options.pop("vault_to_text", None)
    options.pop("preprocess_unsafe", None)
    return json.dumps(_plain(value), **{"default": _json_date, **options})


def _to_nice_json(value: Any, indent: int = 4, sort_keys: bool = True, **options: Any) -> str:
    return _to_json(value, **{**options, "indent": indent, "sort_keys": sort_keys, "separators": (",", ": ")})


def _to_yaml(value: Any, default_flow_style: bool | None = None, **options: Any) -> str:
    options.pop("allow_unicode", None)
    text = yaml.dump(
        _plain(value),
        Dumper=yaml.SafeDumper,
        allow_unicode=True,
        default_flow_style=default_flow_style,
        **options,
    )
    return str(text).removesuffix("...\n")  # which PyYAML puts after a lone word


def _to_nice_yaml(value: Any, indent: int = 4, default_flow_style: bool = False, **options: Any) -> str:
    return _to_yaml(value, default_flow_style, indent=indent, **options)


def _from_yaml(value: Any) -> Any:
    return yaml.safe_load(value) if isinstance(value, str) else value


def _from_yaml_all(value: Any) -> Any:
    return list(yaml.safe_load_all(value)) if isinstance(value, str) else [] if value is None else value


# ---- lists and dicts


def _combine(*layers: Any, recursive: bool = False, list_merge: str = "replace") -> dict[Any, Any]:
    if list_merge not in _MERGES:
        raise ValueError(f"combine: list_merge is one of {', '.join(_MERGES)}, not {list_merge!r}")
    flat = _flatten(layers, levels=1)
    for one in flat:
        if not isinstance(one, Mapping):
            raise TypeError(f"combine takes dicts, not {_type_debug(one)}")
    result: dict[Any, Any] = {}
    for mapping in reversed(flat):  # strongest first, as in Ansible: it decides the order of the keys
        result = _merged(mapping, result, recursive, list_merge)
    return result


def _merged(low: Mapping[Any, Any], high: Mapping[Any, Any], recursive: bool, list_merge: str) -> dict[Any, Any]:
    """`high` over `low`."""
    result = dict(low)
    for key, value in high.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merged(below, value, recursive, list_merge) if recursive else value
        elif isinstance(below, list) and isinstance(value, list):
            kept = [one for one in below if one not in value] if list_merge.endswith("_rp") else below
            how = list_merge.removesuffix("_rp")
            value = {"replace": value, "keep": below, "append": kept + value, "prepend": value + kept}[how]
        result[key] = value
    return result


def _dict2items(value: Any, key_name: str = "key", value_name: str = "value") -> list[dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"dict2items takes a dict, not {_type_debug(value)}")
    return [{key_name: key, value_name: one} for key, one in value.items()]


def _items2dict(value: Any, key_name: str = "key", value_name: str = "value") -> dict[Any, Any]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"items2dict takes a list, not {_type_debug(value)}")
    try:
        return {one[key_name]: one[value_name] for one in value}
    except (KeyError, TypeError):
        raise TypeError(f"items2dict takes a list of dicts with {key_name!r} and {value_name!r}") from None


def _flatten(value: Iterable[Any], levels: int | None = None, skip_nulls: bool = True) -> list[Any]:
    flat: list[Any] = []
    for one in value:
        if skip_nulls and (one is None or (isinstance(one, str) and one in ("None", "null"))):
            continue
        if isinstance(one, (list, tuple)) and (levels is None or levels >= 1):
            flat.extend(_flatten(one, None if levels is None else int(levels) - 1, skip_nulls))
        else:
            flat.append(one)
    return flat


@pass_environment
def _extract(environment: Environment, item: Any, container: Any, morekeys: Any = None) -> Any:
    keys = [item] if morekeys is None else [item, *morekeys] if isinstance(morekeys, list) else [item, morekeys]
    for key in keys:
        container = environment.getitem(container, key)
    return container


def _subelements(value: Any, subelements: Any, skip_missing: bool = False) -> list[list[Any]]:
    if not isinstance(value, (list, Mapping)):
        raise TypeError(f"subelements takes a list of dicts or a dict of dicts, not {_type_debug(value)}")
    path = subelements.split(".") if isinstance(subelements, str) else list(subelements)
    found: list[list[Any]] = []
    for element in value.values() if isinstance(value, Mapping) else value:
        inner = element
        for key in path:
            if not isinstance(inner, Mapping):
                raise TypeError(f"subelements: {key!r} should be a key of a dict, not of {inner!r}")
            if key not in inner and not skip_missing:
                raise KeyError(f"subelements: {element!r} has no key {key!r}")
            inner = inner.get(key, [])
            if inner == []:
                break
        if not isinstance(inner, list):
            raise TypeError(f"subelements: {'.'.join(path)} is no list in {element!r}")
        found.extend([element, one] for one in inner)
    return found


# ---- paths


def _path_join(value: Any) -> str:
    return os.path.join(value) if isinstance(value, str) else os.path.join(*value)


def _refuse(value: Undefined) -> None:
    raise UndefinedError(str(value._undefined_message))


def _strict(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes no undefined value, whichever argument it is."""

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        for one in (*args, *options.values()):
            if isinstance(one, Undefined):
                _refuse(one)
        return function(*args, **options)

    return checked


# These see undefined values: it is what they are about, or they leave one of their arguments unused.
_LENIENT: Mapping[str, Callable[..., Any]] = {
    "mandatory": _mandatory,
    "ternary": _ternary,
    "type_debug": _type_debug,
}
_STRICT: Mapping[str, Callable[..., Any]] = {
    **filters_math.FILTERS,
    "b64decode": _b64decode,
    "b64encode": _b64encode,
    "basename": lambda value: os.path.basename(value),
    "bool": _bool,
    "checksum": _hash,
    "combine": _combine,
    "comment": _comment,
    "commonpath": lambda paths: os.path.commonpath(paths),
    "dict2items": _dict2items,
    "dirname": lambda value: os.path.dirname(value),
    "expanduser": lambda value: os.path.expanduser(value),
    "expandvars": lambda value: os.path.expandvars(value),
    "extract": _extract,
    "fileglob": lambda pattern: [one for one in glob.glob(pattern) if os.path.isfile(one)],
    "flatten": _flatten,
    "from_json": lambda value, **options: json.loads(value, **options),
    "from_yaml": _from_yaml,
    "from_yaml_all": _from_yaml_all,
    "hash": _hash,
    "items2dict": _items2dict,
    "md5": lambda value: _hash(value, "md5"),
    "normpath": lambda value: os.path.normpath(value),
    "path_join": _path_join,
    "quote": _quote,
    "realpath": lambda value: os.path.realpath(value),
    "regex_escape": _regex_escape,
    "regex_findall": _regex_findall,
    "regex_replace": _regex_replace,
    "regex_search": _regex_search,
    "relpath": lambda value, start=os.curdir: os.path.relpath(value, start),
    "sha1": _hash,
    "split": lambda value, *args, **options: value.split(*args, **options),
    "splitext": lambda value: list(os.path.splitext(value)),
    "strftime": _strftime,
    "subelements": _subelements,
    "to_datetime": _to_datetime,
    "to_json": _to_json,
    "to_nice_json": _to_nice_json,
    "to_nice_yaml": _to_nice_yaml,
    "to_uuid": _to_uuid,
    "to_yaml": _to_yaml,
    "urldecode": urllib.parse.unquote_plus,
    "urlsplit": _urlsplit,
}
FILTERS: Mapping[str, Callable[..., Any]] = {
    **_LENIENT,
    **{name: _strict(function) for name, function in _STRICT.items()},
}
