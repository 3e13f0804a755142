"""One request of the owner: its items, handed out to the workers."""

import time
from collections import deque

from srft_ray.verify.replies import MAX_REPLIES
from srft_ray.verify.worker_process import FORBIDDEN, Outcome, WorkerProcess
from srft_ray.verify.worker_set import WorkerSet

CHECK_INTERVAL_S = 0.05  # between two counts of the processes that the items in hand have started


class Request:
    """Which items wait, and which are with a worker."""

    def __init__(self, workers: WorkerSet, questions: list[bytes]) -> None:
        self.workers = workers
        self.questions = questions
        self.waiting = deque(range(len(questions)))
        self.idle = list(workers.workers)
        self.busy: list[WorkerProcess] = []
        self.crashed = set[int]()
        self.replies: list[bytes] = []  # that the owner does not have yet

    def run(self) -> None:
        """Send the owner a reply per question. What fails under one item decides that item and no other."""
        next_check = time.monotonic() + CHECK_INTERVAL_S
        while self.waiting or self.busy:
            self.hand_out()
            until = min(worker.deadline for worker in self.busy)
            readable = self.workers.wait(self.busy, min(until, next_check))
            # The owner asks nothing while it waits: readable means that it closed the connection.
            if self.workers.owner.has_spoken(readable):
                raise EOFError("the owner closed the connection")
            self.collect(readable)
            if time.monotonic() >= next_check:
                self.limit_processes()
                self.send_replies()
                next_check = time.monotonic() + CHECK_INTERVAL_S
        self.send_replies()

    def hand_out(self) -> None:
        """Give every idle worker an item."""
        while self.waiting and self.idle:
            worker = self.idle.pop()
            index = self.waiting.popleft()
            if not worker.is_ready():
                self.workers.replace(worker)
            try:
                worker.start(index, self.questions[index])
            except OSError:  # it was stopped while it was idle
                self.workers.replace(worker)
                worker.start(index, self.questions[index])
            self.busy.append(worker)

    def collect(self, readable: set[int]) -> None:
        """Take the replies that are there, and the verdicts on items whose time is up."""
        for worker in list(self.busy):
            outcome = worker.outcome(worker.replies.fileno() in readable)
            if outcome is not None:
                self.finish(worker, outcome)

    def limit_processes(self) -> None:
        """End the items that started too many, and what was detached if that is too many."""
        for worker in list(self.busy):
            if worker.has_too_many_processes():
                worker.kill()
                self.finish(worker, FORBIDDEN)
        self.workers.limit_orphans()

    def finish(self, worker: WorkerProcess, outcome: Outcome) -> None:
        """The worker is free again; the owner has the reply, or the item a second try."""
        self.busy.remove(worker)
        self.idle.append(worker)
        self.workers.kill_orphans()
        # The worker may have been killed from outside.
        if outcome.crashed and worker.index not in self.crashed:
            self.crashed.add(worker.index)
            self.waiting.appendleft(worker.index)
            return
        self.replies.append(b"%d " % worker.index + outcome.reply)
        if len(self.replies) == MAX_REPLIES:
            self.send_replies()

    def send_replies(self) -> None:
        if self.replies:
            self.workers.owner.send(b"\n".join(self.replies))
        self.replies = []
