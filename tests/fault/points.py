"""Where a trainer can be told to die: seams of the code, by name. No line of this runs in a trainer that people start.

A process of the tests wraps the seam before the trainer begins (`arm`) and kills itself with SIGKILL at the n-th
passage. The table fails loudly when a seam has moved.
"""

import functools
import importlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

Side = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class Point:
    """One place in the code.

    Attributes:
        owner: `module:Class`.
        method: of that class.
        side: whether death comes before the call or after it.
        most: the latest passage that is sure to come soon: many per record, some per commit, one per start.
        thread: only passages in the thread of this name count; empty: all.
    """

    owner: str
    method: str
    side: Side
    most: int = 1
    thread: str = ""


POINTS: Final = {
    # one record
    "step-not-begun": Point("supsup_online.learner:OnlineLearner", "step", "before", most=30),
    "step-done": Point("supsup_online.learner:OnlineLearner", "step", "after", most=30),
    "in-the-step": Point("supsup_online.learner:OnlineLearner", "_train", "before", most=30),
    "decided": Point("supsup_online.learner:OnlineLearner", "_act", "after", most=2),
    "position-moved": Point("daemon.checkpoint:Checkpointer", "advance", "after", most=30),
    "handed-over": Point("daemon.training:TrainingThread", "offer", "after", most=30),
    "fetched": Point("daemon.source_process:SourceProcess", "poll", "after", most=4),
    # records out
    "dead-letter-sent": Point("daemon.apply:Applier", "_dead_letter", "after", most=1),
    "side-record-sent": Point("daemon.side_topics:SideTopics", "send", "after", most=2),
    "side-topics-not-awaited": Point("daemon.side_topics:SideTopics", "wait", "before", most=3),
    "side-topics-awaited": Point("daemon.side_topics:SideTopics", "wait", "after", most=3),
    "answer-not-sent": Point("daemon.answers:Answers", "send", "before", most=2),
    "answer-sent": Point("daemon.answers:Answers", "send", "after", most=2),
    "answers-not-awaited": Point("daemon.answers:Answers", "wait", "before", most=3),
    "answers-awaited": Point("daemon.answers:Answers", "wait", "after", most=3),
    # the commit
    "masks-synced": Point("supsup_online.learner:OnlineLearner", "sync", "after", most=4),
    "commit-planned": Point("daemon.checkpoint:Checkpointer", "_plan", "after", most=3),
    "commit-not-sent": Point("daemon.redis_store:RedisStore", "commit", "before", most=3),
    "commit-on-its-way": Point(
        "redis.connection:Connection", "send_packed_command", "after", thread="training", most=5
    ),
    "commit-written": Point("redis.commands.core:Script", "__call__", "after", thread="training", most=3),
    "commit-answered": Point("daemon.redis_store:RedisStore", "commit", "after", most=3),
    "commit-done": Point("daemon.checkpoint:Checkpointer", "commit", "after", most=3),
    "group-not-told": Point("daemon.source_process:SourceProcess", "tell_group", "before", most=3),
    "group-told": Point("daemon.source_process:SourceProcess", "tell_group", "after", most=3),
    # the start
    "bank-opened": Point("daemon.redis_store:RedisStore", "open", "after"),
    "lease-taken": Point("daemon.lease:Lease", "acquire", "after"),
    "term-begun": Point("daemon.redis_store:RedisStore", "begin", "after"),
    "bank-loading": Point("daemon.redis_store:RedisStore", "_hot_states", "before"),
    "bank-loaded": Point("daemon.redis_store:RedisStore", "load", "after"),
    "bank-restored": Point("supsup_online.learner:OnlineLearner", "restore", "after"),
    # the group
    "group-held": Point("daemon.source_process:SourceProcess", "hold", "after"),
    "logs-known": Point("daemon.source_process:SourceProcess", "logs", "after"),
    "partition-taken-up": Point("daemon.checkpoint:Checkpointer", "assign", "after"),
    "partitions-settled": Point("daemon.apply:Applier", "settle", "after"),
    "partitions-placed": Point("daemon.source_process:SourceProcess", "place", "after"),
    # the lease
    "lease-not-renewed": Point("daemon.lease:Lease", "renew", "before", most=3),
    "lease-renewed": Point("daemon.lease:Lease", "renew", "after", most=3),
}


def seam(point: Point) -> tuple[type, Callable[..., Any]]:
    """The class and the method of a point as they are now.

    Raises:
        LookupError: there is no such method any more: correct the table.
    """
    module, _, name = point.owner.partition(":")
    owner = getattr(importlib.import_module(module), name, None)
    method = getattr(owner, point.method, None)
    if not isinstance(owner, type) or method is None:
        raise LookupError(f"there is no {point.owner}.{point.method}: correct POINTS in tests/fault/points.py")
    return owner, method


def arm(name: str, passage: int) -> None:
    """Have this process die at the `passage`-th (from 1) of what the point names."""
    point = POINTS[name]
    owner, method = seam(point)
    left = passage

    @functools.wraps(method)
    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        counts = not point.thread or threading.current_thread().name == point.thread
        left -= counts
        last = counts and left == 0
        if last and point.side == "before":
            _die()
        result = method(*arguments, **options)
        if last:
            _die()
        return result

    setattr(owner, point.method, deadly)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
