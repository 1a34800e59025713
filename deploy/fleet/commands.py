"""What can be done with groups. Each takes a Group and returns a line to say."""

import json

import yaml

from fleet import hosts

STATE_TIMEOUT_S = 60
# A command of `moebius` bounds its own waiting; beyond that nobody answers.
MARGIN_S = 30


class Refused(Exception):
    """It was not done, and why."""


def state_of(group):
    """(up, prefix): whether it runs, and out of which tree; None: not known."""
    words = hosts.run(group.host, ["state", group.name],
                      timeout_s=STATE_TIMEOUT_S).split(maxsplit=1)
    prefix = words[1].strip()
    return words[0] == "up", None if prefix == "-" else prefix


def _moebius(group, *arguments, prefix=None, timeout_s=STATE_TIMEOUT_S):
    """A command of the group's `moebius` that asks its admin listener."""
    words = ["run", group.name, *arguments, "--admin", group.admin_url]
    key_file = group.key("admin.api_key_file", "")
    if key_file:
        words += ["--api-key-file", key_file]
    return hosts.run(group.host, words, prefix=prefix, timeout_s=timeout_s)


def _start(group):
    arguments = ["start", group.name, group.supervisor]
    if not group.key("journal.dir", ""):
        arguments.append("journal")
    hosts.run(group.host, arguments, yaml.safe_dump(group.config))


def up(group, _):
    running, prefix = state_of(group)
    if running:
        note = ""
        if prefix != group.host.prefix:
            note = f", out of {prefix}; `upgrade` brings {group.host.prefix}"
        return f"is up already{note}"
    _start(group)
    return "is up"


def down(group, options):
    running, prefix = state_of(group)
    if running and not options.now:
        _drain(group, options, prefix)
    hosts.run(group.host, ["kill" if options.now else "stop", group.name],
              prefix=prefix)
    hosts.run(group.host, ["remove", group.name], prefix=prefix)
    return "is down, and nothing of it is left"


def _drain(group, options, prefix=None):
    _moebius(group, "drain", "--timeout", f"{options.timeout:g}",
             prefix=prefix, timeout_s=options.timeout + MARGIN_S)


def drain(group, options):
    _drain(group, options)
    return "is drained"


def undrain(group, _):
    _moebius(group, "undrain")
    return "takes requests"


def upgrade(group, options):
    """Another tree or another configuration in place of what runs. Requests in
    flight are finished first, or, `now`, go on in the new group: what was
    accepted is in its journal. What does not come up gives way to what was."""
    running, old_prefix = state_of(group)
    if not running:
        raise Refused("is not up; `up` starts it")
    new = group.host.prefix
    version = hosts.run(group.host, ["run", group.name, "--version"],
                        prefix=new, timeout_s=STATE_TIMEOUT_S).strip()
    if not options.now:
        try:
            _drain(group, options, old_prefix)
        except hosts.HostFailed as error:
            _moebius(group, "undrain", prefix=old_prefix)
            raise Refused(f"goes on as it was: {error}") from None
    hosts.run(group.host, ["kill" if options.now else "stop", group.name],
              prefix=old_prefix)
    try:
        _start(group)
    except hosts.HostFailed as error:
        hosts.run(group.host, ["stop", group.name], prefix=new)
        hosts.run(group.host, ["back", group.name], prefix=old_prefix)
        raise Refused(f"goes on as it was, out of {old_prefix}: {error}"
                      ) from None
    return f"is up with {version} out of {new}"


def status(group):
    """A row of a table."""
    row = {"group": group.name, "host": group.host.name, "state": "down",
           "layout": "", "running": "", "waiting": "", "version": ""}
    try:
        running, _ = state_of(group)
        if not running:
            return row
        row["state"] = "up, silent"
        answer = json.loads(_moebius(group, "status", "--json"))
        row["state"] = ("draining" if answer.get("draining") else
                        "ready" if answer.get("ready") else "not ready")
        for key in ("layout", "running", "waiting", "version"):
            row[key] = answer.get(key, "")
    except hosts.HostFailed as error:
        row["state"] += f" ({str(error).splitlines()[0]})"
    except json.JSONDecodeError:
        row["state"] += " (what it says is no JSON)"
    return row


def logs(group, options):
    arguments = ["logs", group.name, str(options.lines)]
    if options.follow:
        arguments.append("-f")
    return hosts.follow(group.host, arguments)
