"""What is done to the lines and the nodes, and what must come of it.

A scenario raises `WrongOutcome` when a transfer does not end as it must, and tells its figures
otherwise. Figures are never judged here: they are this machine's, at this moment.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..testnet import MESHNODE
from . import lying_node
from .lab import Ended, Lab, check_whole, damage_since, require, segments
from .line import Line

MB = 1_000_000
THIN = Line(rtt=0.01, jitter=0.002, rate=8 * MB)
"""Lines so thin that they decide how long a transfer takes, not the machine."""
_PART_WAY = 0.3
"""Of the content's size has passed when something happens."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a transfer cost. Bytes of stored chunks; seconds as the node measured them."""

    seconds: float
    size: int
    wasted: int
    """Bytes that came or went for nothing."""
    retries: int
    hedges: int = 0
    moved: int = 0
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A content that is in the mesh before the scenarios begin."""

    file: Path
    link: str


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    play: Callable[[Lab, Stage], Figures]
    against: str = ""
    """Name of the scenario whose seconds are its measure."""
    quick: bool = False
    """Part of `--quick`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What all scenarios find."""

    single: Kept
    """One copy, on the first holder."""
    replicated: Kept
    """A copy on every holder."""


# --- one transfer -----------------------------------------------------------------------------


def _get(
    lab: Lab, kept: Kept, then: Callable[[], None] | None = None, at: float = _PART_WAY
) -> Figures:
    """A get that must succeed whatever `then` does to the mesh part of the way."""
    copy = lab.destination()
    ended = lab.run("get", kept.link, "-o", copy, at=at, then=then)
    return _figures(lab, kept, copy, ended)


def _figures(lab: Lab, kept: Kept, copy: Path, ended: Ended) -> Figures:
    require(ended.code == 0, f"exit code {ended.code}: {_error(ended)}")
    check_whole(kept.file, copy)
    copy.unlink()
    trace = lab.why(kept.link)
    require(trace["outcome"] == "done", f"the trace says {trace['outcome']}")
    report = ended.document
    return Figures(
        report["seconds"],
        report["size"],
        _wasted(trace),
        report["retries"],
        report["hedges"],
        report["moved"],
    )


def _wasted(trace: dict[str, Any]) -> int:
    return sum(peer["wasted"] for peer in trace["peers"])


def _error(ended: Ended) -> str:
    return str(ended.document.get("error", {}).get("message", "") or ended.message)


# --- gets over lines ----------------------------------------------------------------------------


def _over(line: Line, *, peers: int = 4, **settings: object) -> Callable[[Lab, Stage], Figures]:
    def play(lab: Lab, stage: Stage) -> Figures:
        lab.proxy.set_line(line)
        lab.fresh_client(**settings)
        return _get(lab, stage.single if peers == 1 else stage.replicated)

    return play


def _one_slow(lab: Lab, stage: Stage) -> Figures:
    lab.proxy.set_line(THIN)
    lab.proxy.set_line(Line(rtt=THIN.rtt, jitter=THIN.jitter, rate=THIN.rate / 10), [1])
    lab.fresh_client()
    return _get(lab, stage.replicated)


def _while_thin(happening: Callable[[Lab], None]) -> Callable[[Lab, Stage], Figures]:
    """A get over thin lines to which something happens part of the way."""

    def play(lab: Lab, stage: Stage) -> Figures:
        lab.proxy.set_line(THIN)
        lab.fresh_client()
        return _get(lab, stage.replicated, lambda: happening(lab))

    return play


def _kill_all_but_one(lab: Lab) -> None:
    for node in lab.holders[1:]:
        node.kill()


def _random_cuts(lab: Lab, stage: Stage) -> Figures:
    lab.proxy.set_line(THIN)
    lab.fresh_client()
    lab.proxy.set_line(Line(rtt=THIN.rtt, jitter=THIN.jitter, rate=THIN.rate, cuts=0.3))
    before = lab.proxy.cuts()

    def cut_at_least_once() -> None:
        while lab.proxy.cut(chance=0.3) == 0:
            pass

    told = _get(lab, stage.replicated, cut_at_least_once)
    return _with_remark(told, f"{lab.proxy.cuts() - before} cuts in the whole mesh")


# --- holders with false bytes -------------------------------------------------------------------


def _damaged_store(lab: Lab, stage: Stage) -> Figures:
    victim = lab.holders[2]
    before = segments(victim)
    file = lab.make_file()
    kept = Kept(file, lab.keep(file, 4))
    damage_since(victim, before, lab.rng)
    lab.proxy.set_line(THIN)
    lab.fresh_client()
    told = _get(lab, kept)
    status = victim.status()
    require(status is not None, "the node with the damaged disk is gone")
    trace = lab.why(kept.link)
    asked = [part for part in trace["peers"] if part["peer"] == victim.peer_id]
    require(bool(asked), "nobody asked the node with the damaged disk")
    file.unlink()
    return told


def _liar(lab: Lab, stage: Stage) -> Figures:
    liar = lab.holders[3]
    honest = liar.command
    liar.kill()
    liar.command = (*MESHNODE[:1], lying_node.__file__)
    try:
        liar.start()
        liar.wait_ready(len(lab.holders) - 1)
        lab.proxy.set_line(THIN)
        lab.fresh_client()
        (liar.home / lying_node.LIES).touch()
        told = _get(lab, stage.replicated)
        parts = lab.why(stage.replicated.link)["peers"]
        lies = sum(part["corrupt"] for part in parts if part["peer"] == liar.peer_id)
        believed = sum(part["bytes"] for part in parts if part["peer"] == liar.peer_id)
        require(lies > 0, "the liar told no lie, or nobody asked it")
        require(believed == 0, f"{believed} false bytes counted as true")
        return _with_remark(told, f"{lies} false chunks")
    finally:
        (liar.home / lying_node.LIES).unlink(missing_ok=True)  # honest again
        liar.command = honest


# --- what is broken off -------------------------------------------------------------------------


def _killed_and_resumed(lab: Lab, stage: Stage) -> Figures:
    lab.proxy.set_line(THIN)
    lab.fresh_client()
    kept, copy = stage.replicated, lab.destination()
    cut = lab.run("get", kept.link, "-o", copy, at=0.6, then=lab.client.kill)
    require(cut.code != 0, "a get whose node was killed says it succeeded")
    require(not copy.exists(), "a half file has the name of the whole")
    lab.client.reap(5)
    lab.start_client()
    told = _figures(lab, kept, copy, lab.run("get", kept.link, "-o", copy))
    came = sum(peer["bytes"] for peer in lab.why(kept.link)["peers"])
    require(came < 0.8 * told.size, f"{came} of {told.size} bytes were fetched again")
    return _with_remark(told, f"second get: {1 - came / told.size:.0%} was there")


def _all_silent_then_back(lab: Lab, stage: Stage) -> Figures:
    lab.proxy.set_line(THIN)
    lab.fresh_client(peer_response_timeout_secs=1, chunk_timeout_secs=3, retry_failed_chunks=1)
    kept, copy = stage.replicated, lab.destination()
    everybody = range(len(lab.holders))
    ended = lab.run(
        "get", kept.link, "-o", copy, at=_PART_WAY, then=lambda: lab.proxy.silence(everybody)
    )
    require(ended.code != 0, "a get nobody answered says it succeeded")
    require(bool(_error(ended)), "a get that failed gives no reason")
    require(not copy.exists(), "a half file has the name of the whole")
    lab.heal()
    lab.proxy.set_line(THIN)
    lab.client.wait_ready(len(lab.holders))
    told = _figures(lab, kept, copy, lab.run("get", kept.link, "-o", copy))
    return _with_remark(told, f"gave up with {ended.code} after {ended.seconds:.0f} s")


# --- puts ---------------------------------------------------------------------------------------


def _put(lab: Lab, then: Callable[[], None] | None) -> Figures:
    """A put of new content that must end with all its copies, and can be got without the putter."""
    file = lab.make_file()
    ended = lab.run("put", "--replication", "3", file, at=_PART_WAY, then=then)
    require(ended.code == 0, f"exit code {ended.code}: {_error(ended)}")
    (report,) = ended.document["sources"]
    require(report["outcome"] == "stored", f"outcome {report['outcome']}")
    require(report["copies"] == 3, f"{report['copies']} copies")
    trace = lab.why(report["link"])
    lab.heal()
    lab.fresh_client()
    _get(lab, Kept(file, report["link"]))
    file.unlink()
    confirming = sum(p["busy"] for p in trace["phases"] if p["name"] == "confirming")
    told = Figures(report["seconds"], 2 * report["size"], _wasted(trace), report["retries"])
    return _with_remark(told, f"{confirming:.1f} s to read copies back")


def _put_plain(lab: Lab, stage: Stage) -> Figures:
    lab.proxy.set_line(THIN)
    lab.fresh_client()
    return _put(lab, None)


def _put_while_one_freezes(lab: Lab, stage: Stage) -> Figures:
    lab.proxy.set_line(THIN)
    lab.fresh_client()
    return _put(lab, lambda: lab.proxy.freeze([1]))


def _put_while_one_is_stopped(lab: Lab, stage: Stage) -> Figures:
    lab.proxy.set_line(THIN)
    lab.fresh_client()
    return _put(lab, lambda: lab.holders[1].signal(signal.SIGSTOP))


def _with_remark(told: Figures, remark: str) -> Figures:
    return Figures(
        told.seconds, told.size, told.wasted, told.retries, told.hedges, told.moved, remark
    )


_PLAIN = "get, 4 peers"
_BY_ONE = "get, 4 peers, RTT 50 ms, 1 in flight"
_THIN_GET = "get, 4 thin lines"
_THIN_PUT = "put, 3 copies, thin lines"

SCENARIOS = (
    Scenario("get, 1 peer", _over(Line(), peers=1), _PLAIN),
    Scenario(_PLAIN, _over(Line()), quick=True),
    Scenario("get, 4 peers, RTT 1 ms", _over(Line(rtt=0.001)), _PLAIN),
    Scenario(_BY_ONE, _over(Line(rtt=0.05), max_concurrent_retrievals=1), _PLAIN),
    Scenario(
        "get, 4 peers, RTT 50 ms, 8 in flight",
        _over(Line(rtt=0.05), max_concurrent_retrievals=8),
        _BY_ONE,
    ),
    Scenario("get, 4 peers, RTT 200 ms", _over(Line(rtt=0.2, jitter=0.02)), _PLAIN),
    Scenario(
        'get, 4 peers, RTT 200 ms, "auto"',
        _over(Line(rtt=0.2, jitter=0.02), max_concurrent_retrievals="auto"),
        _PLAIN,
    ),
    Scenario(_THIN_GET, _over(THIN), quick=True),
    Scenario("  one is 10x slower", _one_slow, _THIN_GET, quick=True),
    Scenario(
        "  one line freezes", _while_thin(lambda lab: lab.proxy.freeze([1])), _THIN_GET, quick=True
    ),
    Scenario("  one line falls silent", _while_thin(lambda lab: lab.proxy.silence([1])), _THIN_GET),
    Scenario(
        "  one node is stopped (SIGSTOP)",
        _while_thin(lambda lab: lab.holders[1].signal(signal.SIGSTOP)),
        _THIN_GET,
    ),
    Scenario("  one disk is damaged", _damaged_store, _THIN_GET),
    Scenario("  one node lies", _liar, _THIN_GET),
    Scenario("  three of four are killed", _while_thin(_kill_all_but_one), _THIN_GET),
    Scenario("  30 % of connections cut, each second", _random_cuts, _THIN_GET, quick=True),
    Scenario("  get killed -9, and again", _killed_and_resumed, _THIN_GET, quick=True),
    Scenario("  all fall silent, and are back", _all_silent_then_back, _THIN_GET),
    Scenario(_THIN_PUT, _put_plain),
    Scenario("  one target freezes", _put_while_one_freezes, _THIN_PUT, quick=True),
    Scenario("  one target is stopped (SIGSTOP)", _put_while_one_is_stopped, _THIN_PUT),
)
"""In the order in which they are played; a measure comes before what is measured by it, or is the
plain run, which is played whatever was chosen."""
