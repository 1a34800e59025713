"""The command line of `moebius-group`, and of deploy/bin/up, down, ..."""

import argparse
import json
import os
import sys

from fleet import commands, hosts, inventory

HELP = {
    "up": "Start groups. Comes back when they serve.",
    "down": "Finish what is in flight, stop groups, and leave nothing of them.",
    "drain": "Finish what is in flight and refuse new requests.",
    "undrain": "Take requests again.",
    "status": "How groups are.",
    "logs": "What a group has said.",
    "upgrade": "Replace groups, one after the other, by what the file says now: "
               "another tree (prefix) or another configuration. No accepted "
               "request is lost; a group that does not come up in the new way "
               "goes on in the old one, and the ones behind it are left alone.",
}
EXIT_FAILED, EXIT_USAGE = 1, 2


def _parser(called):
    epilog = ("FILE lists hosts and groups; docs/deploy.md describes it. Exit "
              "codes: 0 all done, 1 something failed, 2 wrong words or file.")
    if called in HELP:
        parser = argparse.ArgumentParser(called, description=HELP[called],
                                         epilog=epilog)
        _add_arguments(parser, called)
        parser.set_defaults(command=called)
        return parser
    parser = argparse.ArgumentParser(
        "moebius-group", epilog=epilog,
        description="Groups of Moebius on one host or several.")
    below = parser.add_subparsers(dest="command", required=True,
                                  metavar="COMMAND")
    for name, text in HELP.items():
        _add_arguments(below.add_parser(name, help=text.split(". ")[0],
                                        description=text, epilog=epilog), name)
    return parser


def _add_arguments(parser, name):
    parser.add_argument("file", metavar="FILE", help="hosts and groups (YAML)")
    one = name == "logs"
    parser.add_argument("groups", metavar="GROUP", nargs=1 if one else "*",
                        help="which group" if one else
                        "which of its groups; without any, all")
    if name in ("down", "drain", "upgrade"):
        parser.add_argument("--timeout", type=float, default=600, metavar="S",
                            help="seconds for what is in flight [default 600]")
    if name == "down":
        parser.add_argument("--now", action="store_true",
                            help="do not wait for it: it is lost")
    if name == "upgrade":
        parser.add_argument("--now", action="store_true",
                            help="do not wait for it: clients that come back "
                            "(Last-Event-ID, Idempotency-Key) get the rest "
                            "from the new group")
    if name == "status":
        parser.add_argument("--json", action="store_true",
                            help="a JSON array, an object a group")
    if name == "logs":
        parser.add_argument("-n", "--lines", type=int, default=100,
                            metavar="N", help="the last N lines [default 100]")
        parser.add_argument("-f", "--follow", action="store_true",
                            help="and what comes")


def _chosen(groups, names):
    for name in names:
        if name not in groups:
            raise inventory.InventoryError(
                f"there is no group '{name}'; there are " + ", ".join(groups))
    return [groups[name] for name in names or groups]


def _show(rows, as_json):
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = [list(rows[0])] + [[str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        print("  ".join(word.ljust(width)
                        for word, width in zip(row, widths)).rstrip())


def _each(command, groups, options):
    """One group after the other: with an upgrade that is what keeps the others
    serving. Stops at the first of an upgrade that fails."""
    code = 0
    for group in groups:
        try:
            said = getattr(commands, command)(group, options)
            print(f"{group.name}: {said}", flush=True)
        except (hosts.HostFailed, commands.Refused) as error:
            print(f"{group.name}: {error}", file=sys.stderr, flush=True)
            code = EXIT_FAILED
            if command == "upgrade":
                break
    return code


def main(arguments):
    called = os.path.basename(arguments[0])
    options = _parser(called).parse_args(arguments[1:])
    try:
        groups = _chosen(inventory.load(options.file), options.groups)
    except inventory.InventoryError as error:
        print(f"moebius-group: {error}", file=sys.stderr)
        return EXIT_USAGE
    if options.command == "status":
        rows = [commands.status(group) for group in groups]
        _show(rows, options.json)
        return 0 if all(row["state"] == "ready" for row in rows) else 1
    if options.command == "logs":
        return commands.logs(groups[0], options)
    return _each(options.command, groups, options)
