"""Checkpoints that cannot be loaded, or compute what is no number; and a worker
that does not come back."""

import contextlib
import json
import os
import shutil
import signal
import struct
import tempfile
import threading
import time

from bench import RETRY_S, WAIT_S, Wrong, check
from case import Case
from group import Group, GroupFailed, MODEL

WEIGHTS = "model.safetensors"


@contextlib.contextmanager
def copied():
    """A copy of the checkpoint, to be spoilt."""
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "verse-moe")
        shutil.copytree(MODEL, model)
        yield model


def await_reason(group, why):
    """Waits until /ready says 503 for this reason."""
    deadline, pause = time.monotonic() + WAIT_S, threading.Event()
    while True:
        answer = group.get("/ready")
        if answer.status == 503 and why in answer.json().get("reason", ""):
            return answer.json()["reason"]
        if time.monotonic() > deadline:
            raise Wrong(f"/ready: {answer.status} {answer.body!r}")
        pause.wait(RETRY_S)


def cannot_load(trial):
    """A group that has never served ends, with the worker's reason."""
    del trial
    with copied() as model:
        path = os.path.join(model, WEIGHTS)
        os.truncate(path, os.path.getsize(path) // 2)
        try:
            Group(["--model", model])
            raise Wrong("a group serves half of a checkpoint")
        except GroupFailed as failure:
            check("cut off" in str(failure), str(failure))


def cannot_load_any_more(trial):
    """The same later: the group goes on, and the worker's own words are
    heard."""
    rank = trial.seed % 2
    with copied() as model, Group(["--model", model, "--set",
                                   "faults.enabled=true"]) as group:
        worker = group.status()["workers"][rank]
        group.post("/admin/faults", {"arm": [f"vault.kept@{rank}=error"]},
                   admin=True)
        os.unlink(os.path.join(model, WEIGHTS))
        os.kill(worker["pid"], signal.SIGKILL)
        why = await_reason(group, WEIGHTS)
        check("cannot be opened" in why and "signal" not in why, why)
        check(group.get("/health").status == 200, "the coordinator is gone")


def comes_back_no_more(trial):
    """A worker that nobody waits for: it is noticed all the same."""
    rank = trial.seed % 2
    with Group(["--set", "faults.enabled=true"]) as group:
        worker = group.status()["workers"][rank]
        group.post("/admin/faults", {"arm": [f"worker.adopt@{rank}=crash*100"]},
                   admin=True)
        os.kill(worker["pid"], signal.SIGKILL)
        await_reason(group, "processes in a row")


def not_finite(trial):
    """A weight that is no number: answered, counted, and nobody dies."""
    del trial
    with copied() as model:
        with open(os.path.join(model, WEIGHTS), "r+b") as file:
            size, = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
            file.seek(8 + size + header["model.norm.weight"]["data_offsets"][0])
            file.write(b"\xc0\x7f")  # NaN in BF16
        with Group(["--model", model]) as group:
            group.complete({"prompt": "And", "max_tokens": 4})
            status = group.status()
            check(status["nonfinite_logits"]["rows"] == 4, str(status))
            check([w["incarnation"] for w in status["workers"]] == [1, 1],
                  "a worker has died")


# ---- the rows ---------------------------------------------------------------


def checkpoints():
    yield Case("checkpoint cut off", "HJ", cannot_load, no_group=True)
    yield Case("checkpoint gone, and a worker with its memory", "HJ",
               cannot_load_any_more, no_group=True)
    yield Case("idle worker comes back no more", "HJ", comes_back_no_more,
               no_group=True)
    yield Case("weights that are not finite", "HJ", not_finite, no_group=True)
