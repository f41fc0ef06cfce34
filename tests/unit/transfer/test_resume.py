"""A get that was broken off goes on where it stopped, and believes nothing unchecked."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from meshnode.errors import DestinationError, TransferError
from meshnode.node.content import Link
from meshnode.node.transfer import GetOptions, GetReport, Partial, Progress
from meshnode.node.transfer import part as part_module
from meshnode.node.transfer.part import Tagger
from trio.testing import MockClock

SIZE = 1_600_000


async def _put(mesh, path: Path) -> Link:
    while len(mesh.peers) < 3:
        mesh.add(f"zone{len(mesh.peers)}", rate=2e5)
    report = await mesh.putter().put([path])
    link = report.sources[0].link
    assert link is not None
    return link


def _leftovers(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if ".meshnode-" in path.name)


async def _break_off(mesh, link: Link, out: Path, at: int = SIZE // 3) -> tuple[Path, Path]:
    """Begin a get, cancel it when `at` bytes are there; returns its part and its journal."""

    def watch(event: object) -> None:
        if isinstance(event, Progress) and event.bytes_done >= at:
            scope.cancel()

    with trio.CancelScope() as scope:
        await mesh.getter().get(link, out, progress=watch)
    assert scope.cancelled_caught
    assert not out.exists()
    part, journal = _leftovers(out.parent)
    mesh.exchange.started.clear()
    return part, journal


async def _get(mesh, link: Link, out: Path) -> GetReport:
    report = await mesh.getter().get(link, out)
    assert isinstance(report, GetReport)
    assert _leftovers(out.parent) == []
    return report


async def test_a_second_get_moves_only_what_is_missing(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    await _break_off(mesh, link, tmp_path / "out")
    events = []
    report = await mesh.getter().get(link, tmp_path / "out", progress=events.append)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert SIZE // 4 < report.bytes_kept < SIZE
    assert sum(report.bytes_from_peers.values()) < SIZE - report.bytes_kept + 100_000
    partial = next(event for event in events if isinstance(event, Partial))
    assert (partial.bytes_kept, partial.total_bytes) == (report.bytes_kept, SIZE)
    assert [e for e in events if isinstance(e, Progress)][-1].bytes_done == SIZE
    assert _leftovers(tmp_path) == []


async def test_a_get_can_be_broken_off_again_and_again(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    kept = []
    for share in (4, 3, 2):
        part, _ = await _break_off(mesh, link, tmp_path / "out", SIZE // share)
        kept.append(part.name)
    assert len(set(kept)) == 1
    report = await _get(mesh, link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert report.bytes_kept >= SIZE // 2


async def test_an_error_says_what_is_kept_and_the_rest_is_enough_later(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    for peer in mesh.peers.values():
        peer.die_after_gets = len(peer.gets) + 6
    with pytest.raises(TransferError) as caught:
        await mesh.getter().get(link, tmp_path / "out")
    assert f"of {SIZE} bytes are kept in {tmp_path}" in caught.value.hint
    for peer in mesh.peers.values():
        peer.down, peer.die_after_gets = False, None
    report = await _get(mesh, link, tmp_path / "out")
    assert report.bytes_kept > 0
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


async def test_what_was_damaged_meanwhile_is_fetched_again(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    part, _ = await _break_off(mesh, link, tmp_path / "out")
    whole = (await mesh.getter().get(link, tmp_path / "other")).chunks
    data = bytearray(part.read_bytes())
    data[10] ^= 1
    part.write_bytes(data)
    mesh.exchange.started.clear()
    report = await _get(mesh, link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert report.bytes_kept > 0
    assert 0 < len(set(mesh.exchange.started)) < whole


@pytest.mark.parametrize("left", [0, 1, 100_000])
async def test_a_part_that_was_cut_short_is_completed(
    mesh, make_file, tmp_path, autojump_clock: MockClock, left: int
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    part, _ = await _break_off(mesh, link, tmp_path / "out")
    os.truncate(part, left)
    await _get(mesh, link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def _append_garbage(journal: bytes) -> bytes:
    return journal + b"\xff" * 100


def _tear(journal: bytes) -> bytes:
    return journal[:-5]


def _other_key(journal: bytes) -> bytes:
    return journal[:50] + bytes([journal[50] ^ 1]) + journal[51:]


@pytest.mark.parametrize(
    ("harm", "some_is_kept"),
    [
        (_append_garbage, True),
        (_tear, True),
        (_other_key, False),
        (lambda _: b"", False),
        (lambda _: b"x" * 10_000, False),
        (lambda journal: journal[:20], False),
    ],
)
async def test_a_journal_that_is_torn_or_foreign_is_believed_as_far_as_it_is_sound(
    mesh,
    make_file,
    tmp_path,
    autojump_clock: MockClock,
    harm: Callable[[bytes], bytes],
    some_is_kept: bool,
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    _, journal = await _break_off(mesh, link, tmp_path / "out")
    journal.write_bytes(harm(journal.read_bytes()))
    report = await _get(mesh, link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert (report.bytes_kept > 0) == some_is_kept


async def test_a_part_without_a_journal_is_not_taken_over(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    part, journal = await _break_off(mesh, link, tmp_path / "out")
    journal.unlink()
    part.write_bytes(b"foreign" * 1000)
    report = await _get(mesh, link, tmp_path / "out")
    assert report.bytes_kept == 0
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


async def test_a_symlink_in_the_place_of_the_part_is_removed_and_not_followed(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    part, _ = await _break_off(mesh, link, tmp_path / "out")
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    part.unlink()
    part.symlink_to(precious)
    await _get(mesh, link, tmp_path / "out")
    assert precious.read_bytes() == b"mine"
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


async def test_forged_bytes_with_fitting_tags_are_found_out_and_fetched_again(
    mesh, make_file, tmp_path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is no proof: the digest of the whole file is."""
    monkeypatch.setattr(Tagger, "tag", lambda *_: bytes(16))
    path = make_file(SIZE)
    link = await _put(mesh, path)
    part, _ = await _break_off(mesh, link, tmp_path / "out")
    forged = bytearray(part.read_bytes())
    forged[5] ^= 1
    part.write_bytes(forged)
    events = []
    report = await mesh.getter().get(link, tmp_path / "out", progress=events.append)
    assert report.bytes_kept == 0
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert [e for e in events if isinstance(e, Progress)][-1].bytes_done == SIZE
    assert _leftovers(tmp_path) == []


async def test_a_second_get_of_the_same_at_the_same_time_is_refused_and_harms_nothing(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)

    async def first() -> None:
        await mesh.getter().get(link, tmp_path / "out")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.sleep(0.4)
        with pytest.raises(DestinationError, match="Another get"):
            await mesh.getter().get(link, tmp_path / "out")
        await mesh.getter().get(link, tmp_path / "elsewhere")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert _leftovers(tmp_path) == []


async def test_at_most_one_part_is_kept_for_a_destination(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    one = await _put(mesh, make_file(SIZE, "one", seed=1))
    other = await _put(mesh, make_file(SIZE, "other", seed=2))
    part, _ = await _break_off(mesh, one, tmp_path / "out")
    await _break_off(mesh, one, tmp_path / "out")
    later, _ = await _break_off(mesh, other, tmp_path / "out")
    assert later != part
    assert not part.exists()


async def test_a_part_in_use_is_not_removed_by_a_get_of_another_link(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    one = await _put(mesh, make_file(SIZE, "one", seed=1))
    other = await _put(mesh, make_file(SIZE, "other", seed=2))

    async def first() -> None:
        await mesh.getter().get(one, tmp_path / "out", GetOptions(force=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.sleep(0.4)
        await mesh.getter().get(other, tmp_path / "out", GetOptions(force=True))
    assert (tmp_path / "out").stat().st_size == SIZE
    assert _leftovers(tmp_path) == []


async def test_a_folder_goes_on_where_it_stopped_and_holds_nothing_foreign(
    mesh, tmp_path, autojump_clock: MockClock
) -> None:
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    rng = random.Random(2)
    for number in range(12):
        (root / "a" / f"{number:02d}").write_bytes(rng.randbytes(130_000))
        (root / "a" / f"{number:02d}").chmod(0o400)
    for number in range(40):
        (root / "a" / "b" / f"{number:02d}").write_bytes(rng.randbytes(500))
    (root / "zeros").write_bytes(bytes(700_000))
    (root / "link").symlink_to("a/00")
    (root / "a").chmod(0o555)
    link = await _put(mesh, root)
    part, _ = await _break_off(mesh, link, tmp_path / "out", 800_000)
    (part / "foreign").write_text("!")
    (part / "a" / "foreign").symlink_to("/etc/passwd")
    report = await _get(mesh, link, tmp_path / "out")
    assert report.bytes_kept > 0
    for path in sorted(root.rglob("*")):
        copy = tmp_path / "out" / path.relative_to(root)
        assert copy.is_symlink() == path.is_symlink()
        if path.is_file():
            assert copy.read_bytes() == path.read_bytes()
            assert copy.stat().st_mode == path.stat().st_mode
    assert not (tmp_path / "out" / "foreign").exists()
    assert not os.path.lexists(tmp_path / "out" / "a" / "foreign")


async def test_a_part_of_another_user_or_kind_is_not_taken_over(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(SIZE)
    link = await _put(mesh, path)
    part, _ = await _break_off(mesh, link, tmp_path / "out")
    part.unlink()
    part.mkdir()
    (part / "x").write_text("x")
    report = await _get(mesh, link, tmp_path / "out")
    assert report.bytes_kept == 0
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


_KILLED = """
import os, signal, sys
from pathlib import Path
from blake3 import blake3
from meshnode.node.content import ChunkRef, Codec
from meshnode.node.transfer.destination import Staging
from meshnode.node.transfer.plan import GetPlan, TargetFile, Write

data = bytes(range(256)) * 4096
piece = 65536
count = len(data) // piece
file = TargetFile(b"", len(data), blake3(data).digest(), 0o644, 1, count)
writes = [[Write(0, n, n * piece, 0, piece)] for n in range(count)]
refs = [ChunkRef(bytes(32), None, Codec.RAW, piece, piece)] * count
plan = GetPlan(False, [file], [], [], refs, writes, len(data))
staging = Staging(plan, Path(sys.argv[1]), force=False, durable=True)
claimed = staging.prepare()
kept = [n for n in claimed if staging.recheck(n)]
todo = [n for n in range(count) if n not in kept]
for n in todo[: 5 if len(sys.argv) == 2 else None]:
    staging.write(n, data[n * piece :][:piece])
if len(sys.argv) == 2:
    os.kill(os.getpid(), signal.SIGKILL)
staging.finish(); staging.flush(); staging.commit()
print(len(kept))
"""


def test_a_killed_get_leaves_what_the_next_one_goes_on_from(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", _KILLED, out], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not out.exists()
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, out, "finish"], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["10"]
    assert out.read_bytes() == bytes(range(256)) * 4096
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_names_of_parts_fit_whatever_the_name_of_the_destination(tmp_path: Path) -> None:
    for name in ("x", "n" * 255, "ä" * 127):
        part = part_module.part_name(tmp_path / name, b"a")
        assert len(os.fsencode(part.name + ".journal")) <= 255
        assert part != part_module.part_name(tmp_path / name, b"b")
        assert part == part_module.part_name(tmp_path / name, b"a")
