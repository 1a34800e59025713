"""The cases of the fault matrix. Each is a function of a Trial that makes one
thing go wrong, checks what must hold, and returns how long streams stood still
in ms (None: nothing that could stand still). They are in the files *_cases.py.

To add one: write the function, and a row at the end of its file.
"""

from checkpoint_cases import checkpoints
from coordinator_cases import coordinators
from front_cases import fronts, process_tests
from journal_cases import journals
from message_cases import links, messages
from network_cases import networks
from worker_cases import between, deaths, lasting, no_more, still_stands


def table(kill_seconds=60, message_seconds=30, cut_seconds=30):
    """All cases."""
    cases = [*deaths(), *between(), *no_more(), *still_stands(), *checkpoints(),
             *coordinators(kill_seconds), *journals(), *fronts(),
             *process_tests(), *messages(message_seconds), *links(cut_seconds),
             *networks(cut_seconds),
             *lasting(kill_seconds)]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    return cases
