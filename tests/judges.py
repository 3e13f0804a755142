"""A verifier of one's own that behaves as it is told, and the verdicts that must come of it."""

from srft_ray.verify import Item, Verdict

USER_FILE = """
from __future__ import annotations
import ctypes, os, signal, subprocess, sys, time
from dataclasses import dataclass
from srft_ray.verify import Verdict
@dataclass
class Config:  # with deferred annotations, works in registered modules only
    limit: int = 3
def forever():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass
ACTS = {
    "good": lambda: 1.0, "bad": lambda: False, "partial": lambda: 0.25, "nan": lambda: float("nan"),
    "text": lambda: "1.0", "none": lambda: None, "raise": lambda: 1 / 0, "exit": lambda: os._exit(0),
    "sys_exit": lambda: sys.exit(0), "segfault": lambda: ctypes.string_at(0),
    "memory": lambda: len(bytearray(10**9)),
    "slow": lambda: time.sleep(0.3) or 1.0,
    "hang": forever,
    "own": lambda: Verdict("no_answer", 0.5, 7), "given": lambda: Verdict("given", 1.0, None),
    "who": lambda: Verdict("match", 1.0, NAME.setdefault("mine", os.urandom(8).hex())),
    "sleeper": lambda: sleeper(),
    "heavy": lambda: Verdict("match", 1.0, ",".join(m for m in ("ray", "torch", "vllm") if m in sys.modules)),
}
NAME = {}  # of the process: pids repeat in namespaces
def sleeper():
    subprocess.Popen(["sleep", "60.718"]); forever()
def score(response, reference, metadata):
    return ACTS[response]()
def two(response, reference):
    return response == reference
def one(response):
    return 1.0
number = 3
"""
EXPECTED = {
    "good": Verdict("match", 1.0, None),
    "bad": Verdict("mismatch", 0.0, None),
    "own": Verdict("no_answer", 0.5, "7"),
    "partial": Verdict("mismatch", 0.25, None),
    "hang": Verdict("timeout", 0.0, None),
    **{
        act: Verdict("error", 0.0, None)
        for act in (
            "nan",
            "text",
            "none",
            "raise",
            "exit",
            "sys_exit",
            "segfault",
            "memory",
            "given",
            "unknown act",
        )
    },
}


def item(response: str, reference: str = "", metadata: dict | None = None) -> Item:
    return Item(response, reference, metadata or {})
