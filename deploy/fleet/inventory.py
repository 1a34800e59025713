"""The file that lists hosts and groups. Values only: nothing here runs anything.

    hosts:
      here: {address: local}
      big:  {address: big.example, user: moebius, prefix: /opt/moebius}
    groups:
      chat:
        host: big
        config: chat.yaml            # beside this file
        set: {http.port: 8000, admin.port: 8001}

Every error names file, line and key.
"""

import dataclasses
import difflib
import os
import re

import yaml

MAX_FILE_BYTES = 1 << 20
MAX_GROUPS = 1000
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\Z")
SUPERVISORS = ("auto", "systemd", "launcher")


class InventoryError(Exception):
    """What is wrong with a file, with its place."""


@dataclasses.dataclass(frozen=True)
class Host:
    name: str
    address: str = "local"     # "local": this machine, without ssh
    user: str = ""             # "": ssh's own choice
    port: int = 22
    ssh_options: tuple = ()    # words for ssh
    prefix: str = "/usr"       # where the install tree lies there
    state_dir: str = ""        # "": $XDG_STATE_HOME/moebius


@dataclasses.dataclass(frozen=True)
class Group:
    name: str
    host: Host
    config: dict               # sections of keys, `set` applied
    supervisor: str = "auto"

    def key(self, name, default):
        """A key of the configuration: "admin.port"."""
        section, _, key = name.partition(".")
        return self.config.get(section, {}).get(key, default)

    @property
    def admin_url(self):
        host = str(self.key("admin.host", "127.0.0.1"))
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{self.key('admin.port', 8001)}"


# What a section may have: key -> (type, what is allowed in words).
HOST_KEYS = {
    "address": (str, "a name that ssh knows, or 'local'"),
    "user": (str, "a user's name"),
    "port": (int, "a port of ssh"),
    "ssh_options": (list, "a list of words for ssh"),
    "prefix": (str, "the absolute path of an install tree"),
    "state_dir": (str, "an absolute path"),
}
GROUP_KEYS = {
    "host": (str, "the name of a host of this file"),
    "config": (str, "the path of a configuration, below this file's folder"),
    "set": (dict, "keys of the configuration, as SECTION.KEY: VALUE"),
    "supervisor": (str, "one of " + ", ".join(SUPERVISORS)),
}
FILE_KEYS = {
    "hosts": (dict, "hosts by name"),
    "groups": (dict, "groups by name"),
}


class _File:
    """A file with the lines of its keys."""

    def __init__(self, path):
        self.path = path
        self.lines = {}  # ("hosts", "big", "port") -> line
        self.value = self._read()

    def error(self, keys, text):
        keys = tuple(keys)
        at = keys
        while at and at not in self.lines:
            at = at[:-1]
        line = self.lines.get(at, 1)
        where = f" key '{'.'.join(map(str, keys))}':" if keys else ""
        return InventoryError(f"{self.path}:{line}:{where} {text}")

    def _read(self):
        try:
            with open(self.path, encoding="utf-8") as file:
                text = file.read(MAX_FILE_BYTES + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise InventoryError(f"{self.path}: {error}") from None
        if len(text) > MAX_FILE_BYTES:
            raise InventoryError(f"{self.path}: longer than "
                                 f"{MAX_FILE_BYTES} bytes")
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            if node is None:
                return {}
            self._note(node, ())
            return yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise InventoryError(
                f"{self.path}:{line}: {error.problem or error.context}"
            ) from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise InventoryError(f"{self.path}: {error}") from None

    def _note(self, node, keys):
        if not isinstance(node, yaml.MappingNode):
            return
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # safe_load refuses it
            path = (*keys, key_node.value)
            if path in self.lines:
                raise InventoryError(
                    f"{self.path}:{key_node.start_mark.line + 1}: key "
                    f"'{'.'.join(map(str, path))}': it is there twice")
            self.lines[path] = key_node.start_mark.line + 1
            self._note(value_node, path)

    def check(self, keys, section, allowed):
        """A mapping of known keys with values of their types."""
        if not isinstance(section, dict):
            raise self.error(keys, "allowed is a mapping of keys")
        for key, value in section.items():
            here = (*keys, key)
            if key not in allowed:
                near = difflib.get_close_matches(str(key), allowed, 1)
                hint = f" (did you mean '{near[0]}'?)" if near else ""
                raise self.error(here, f"is unknown{hint}; there are "
                                       + ", ".join(allowed))
            kind, words = allowed[key]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise self.error(here, f"allowed is {words}, not {value!r}")


def load(path):
    """The groups of a file, by name."""
    file = _File(path)
    file.check((), file.value, FILE_KEYS)
    hosts = {name: _host(file, name, section or {})
             for name, section in file.value.get("hosts", {}).items()}
    sections = file.value.get("groups", {})
    if not sections:
        raise file.error(("groups",), "there is no group")
    if len(sections) > MAX_GROUPS:
        raise file.error(("groups",), f"more than {MAX_GROUPS} groups")
    groups = {name: _group(file, name, section, hosts)
              for name, section in sections.items()}
    _check_ports(file, groups)
    return groups


def _check_name(file, keys):
    if not isinstance(keys[-1], str) or not NAME.match(keys[-1]):
        raise file.error(keys, "allowed is a name of up to 32 small letters, "
                               "digits and '-'")


def _host(file, name, section):
    keys = ("hosts", name)
    _check_name(file, keys)
    file.check(keys, section, HOST_KEYS)
    for key in ("prefix", "state_dir"):
        if key in section and not os.path.isabs(section[key]):
            raise file.error((*keys, key), f"allowed is {HOST_KEYS[key][1]}, "
                                           f"not {section[key]!r}")
    for key in ("address", "user"):
        # ssh would take it for an option.
        if section.get(key, "").startswith("-"):
            raise file.error((*keys, key), f"allowed is {HOST_KEYS[key][1]}")
    if not 0 < section.get("port", 22) < 65536:
        raise file.error((*keys, "port"), "allowed is a port from 1 to 65535")
    options = section.get("ssh_options", [])
    if not all(isinstance(word, str) for word in options):
        raise file.error((*keys, "ssh_options"), "allowed is a list of words")
    return Host(name=name, **{**section, "ssh_options": tuple(options)})


def _group(file, name, section, hosts):
    keys = ("groups", name)
    _check_name(file, keys)
    file.check(keys, section, GROUP_KEYS)
    for key in ("host", "config"):
        if key not in section:
            raise file.error(keys, f"lacks the key '{key}', "
                                   f"{GROUP_KEYS[key][1]}")
    host = hosts.get(section["host"])
    if host is None:
        raise file.error((*keys, "host"),
                         f"there is no host {section['host']!r}; there are "
                         + (", ".join(hosts) or "none"))
    supervisor = section.get("supervisor", "auto")
    if supervisor not in SUPERVISORS:
        raise file.error((*keys, "supervisor"),
                         f"allowed is {GROUP_KEYS['supervisor'][1]}, not "
                         f"{supervisor!r}")
    path = os.path.join(os.path.dirname(file.path), section["config"])
    config = _config(path)
    for key, value in section.get("set", {}).items():
        part, dot, rest = str(key).partition(".")
        if not dot or isinstance(value, (dict, list)):
            raise file.error((*keys, "set", key),
                             "allowed is SECTION.KEY: VALUE")
        config.setdefault(part, {})[rest] = value
    group = Group(name, host, config, supervisor)
    for key in ("http.port", "admin.port"):
        port = group.key(key, 1)
        if not isinstance(port, int) or not 0 < port < 65536:
            raise file.error(keys, f"{key} must be a port from 1 to 65535, not "
                                   f"{port!r}: whoever comes back has to find "
                                   "the group there")
    return group


def _config(path):
    """A configuration as `moebius serve` has it: sections of keys. Its keys are
    checked by `moebius serve` itself."""
    config = _File(path)
    if not isinstance(config.value, dict):
        raise config.error((), "allowed are sections of keys")
    for name, section in config.value.items():
        if section is not None and not isinstance(section, dict):
            raise config.error((name,), "allowed is a section of keys")
    return {name: dict(section or {})
            for name, section in config.value.items()}


def _check_ports(file, groups):
    """No two groups of a host listen at one port."""
    taken = {}
    for name, group in groups.items():
        for key, default in (("http.port", 8000), ("admin.port", 8001)):
            place = (group.host.address, group.key(key, default))
            if place in taken:
                raise file.error(("groups", name),
                                 f"{key} {place[1]} is that of group "
                                 f"'{taken[place]}' on the same host; `set` "
                                 "gives it another")
            taken[place] = name
