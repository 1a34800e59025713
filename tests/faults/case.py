"""A row of the fault matrix."""

from bench import Bench

# What every case shows: no request lost, tokens once and in order, ranks agree
# on weights, tables and pages, service goes on in time, nothing left behind,
# and the tokens of a quiet run.
ALL = "ABCDGHO"
IMPATIENT = ("workers.step_timeout_ms=500", "workers.stall_timeout_ms=3000",
             "layout.prepare_timeout_ms=1000", "layout.switch_timeout_ms=2000")
NUM_LAYERS = 4  # of the model


class Case:
    """A row of the table.

    name        as --case takes it
    invariants  letters that the case puts to the test
    run         function(trial, **arguments) -> ms or None
    workers, settings   of the group; equal ones share it
    own_group   a fresh group for every run; `settings` may be a function of
                the seed
    no_group    the case makes what it needs
    seeds       at most so many, for cases that are long
    bench       what makes the group, and may raise Skipped
    """

    def __init__(self, name, invariants, run, workers=2, settings=(),
                 own_group=False, no_group=False, seeds=None,
                 bench=Bench, **arguments):
        self.name, self.invariants, self.run = name, invariants, run
        self.workers, self.settings = workers, settings
        self.own_group, self.no_group = own_group, no_group
        self.seeds, self.bench = seeds, bench
        self.arguments = arguments

    def settings_of(self, seed):
        return (self.settings(seed) if callable(self.settings)
                else tuple(self.settings))

    def group_key(self):
        return (self.no_group, self.own_group, self.bench.__name__,
                self.workers, self.settings_of(0))

    def __call__(self, trial):
        return self.run(trial, **self.arguments)
