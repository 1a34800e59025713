"""Switches beneath requests, and what of their answers must not change."""

import itertools
import threading

STEPS_BETWEEN_SWITCHES = 10


def comparable(answer):
    """An answer without what names this one request."""
    return {key: value for key, value in answer.items()
            if key not in ("id", "created")}


class Switcher:
    """Switches through the layouts, over and over, as often as the steps
    allow."""

    def __init__(self, group, layouts=("tp", "ep"),
                 steps=STEPS_BETWEEN_SWITCHES):
        self.group = group
        self.layouts = layouts
        self.steps = steps
        self.stop = threading.Event()
        self.boundaries = []
        self.failure = None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            for layout in itertools.cycle(self.layouts):
                if self.stop.is_set():
                    return
                report = self.group.switch(layout)
                if not report["done"]:
                    raise AssertionError(f"no switch: {report}")
                self.boundaries.append(report["boundary"])
                while not self.stop.is_set():
                    status = self.group.status()
                    if status["last_step"] >= (report["boundary"]
                                               + self.steps):
                        break
        except Exception as failure:  # shown by the test's thread
            self.failure = failure

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        if self.failure is not None:
            raise self.failure
