"""A device that is none: its memory is the processor's, and its copies are made at bad moments.

What ``offload.CudaStreams`` says must be so is so, and nothing else: a queue keeps its order,
and an event is over when somebody has waited for it. ``late`` makes each copy as
late as that allows, ``early`` as soon as it was asked for and nothing asked for before holds it up.
A wait that is missing, or a buffer that is used again too soon, gives other bits with one of the
two.
"""

from __future__ import annotations

from collections import deque

ORDERS = ("late", "early")


class Event:
    """Over when its queue has come to it."""

    def __init__(self, queue):
        self.queue = queue
        self.is_over = False


class Queues:
    """Streams whose copies are made at bad moments; ``deaf`` names calls that do nothing."""

    def __init__(self, order, deaf=()):
        self.order = order
        self.deaf = deaf
        self.queues = {"own": deque(), "down": deque(), "up": deque()}
        self.copied = {"own": 0, "down": 0, "up": 0}
        self.synchronized = 0

    def record(self, queue):
        event = Event(queue)
        self._ask(queue, "event", event)
        return event

    def wait(self, queue, event):
        if ("wait", queue) in self.deaf:
            return
        if queue == "own":  # what follows on it is the program itself
            self._finish(event)
        else:
            self._ask(queue, "wait", event)

    def copy(self, queue, pairs):
        for pair in pairs:
            self._ask(queue, "copy", pair)
        self.copied[queue] += len(pairs)

    def synchronize(self, event):
        self.synchronized += 1
        if "synchronize" not in self.deaf:
            self._finish(event)

    def work(self, function):
        """Ask the device for work of its own, which it does when somebody waits for it."""
        self._ask("own", "work", function)

    def _ask(self, queue, kind, what):
        self.queues[queue].append((kind, what))
        if self.order == "early":
            while self._go_on("up") or self._go_on("down"):
                pass

    def _go_on(self, name):
        """Do what a queue can do without waiting; return whether there was anything."""
        queue, moved = self.queues[name], False
        while queue and not (queue[0][0] == "wait" and not queue[0][1].is_over):
            self._do(name)
            moved = True
        return moved

    def _finish(self, event):
        while not event.is_over:
            self._do(event.queue)

    def _do(self, name):
        kind, what = self.queues[name].popleft()
        if kind == "wait":
            self._finish(what)
        elif kind == "event":
            what.is_over = True
        elif kind == "work":
            what()
        else:
            target, source = what
            target.copy_(source)
