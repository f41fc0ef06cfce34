"""Scheduling a get: whom to ask for which chunk, when to ask somebody else, when to give up.

Pure: what happened goes into `Scheduler.step`, what to do comes out, time is an argument. It must
not know trio, the exchange or files; `transfer.download` drives it on real streams, tests drive it
on paper. `Story` keeps what was decided and why.
"""

from .core import Scheduler
from .story import Step, Story, What
from .vocabulary import (
    Answer,
    Ask,
    Came,
    Cancel,
    Decision,
    Event,
    Failed,
    Fault,
    Finished,
    Found,
    GiveUp,
    HereFailed,
    LookUp,
    Lost,
    Moved,
    PeerJoined,
    PeerLeft,
    Policy,
    ReadHere,
    Score,
    Scores,
    Stopped,
    Tally,
    Verified,
    Why,
)

__all__ = [
    "Answer",
    "Ask",
    "Came",
    "Cancel",
    "Decision",
    "Event",
    "Failed",
    "Fault",
    "Finished",
    "Found",
    "GiveUp",
    "HereFailed",
    "LookUp",
    "Lost",
    "Moved",
    "PeerJoined",
    "PeerLeft",
    "Policy",
    "ReadHere",
    "Scheduler",
    "Score",
    "Scores",
    "Step",
    "Stopped",
    "Story",
    "Tally",
    "Verified",
    "What",
    "Why",
]
