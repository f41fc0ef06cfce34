from __future__ import annotations

import os
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from meshnode.errors import EXIT_PARTIAL, EXIT_REFUSED
from meshnode.node.content import DirectoryManifest, FileManifest
from meshnode.node.store import MemoryStore
from meshnode.node.transfer import FileDone, Finished, Progress, PutOptions, Started, StreamSource
from trio.testing import MockClock


def _fill(root: Path, files: int, size: int = 1000) -> None:
    rng = random.Random(9)
    for number in range(files):
        path = root / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(size)))


async def test_every_chunk_and_the_manifest_have_all_copies_on_distinct_nodes(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for zone in ("default", "b", "c", "d"):
        mesh.add(zone)
    report = await mesh.putter().put([make_file(1_000_000)])
    source = report.sources[0]
    assert (report.outcome, report.exit_code) == ("stored", 0)
    assert source.copies == source.wanted_copies == 3
    assert source.link.digest in source.placements
    for digest, peers in source.placements.items():
        assert len(set(peers)) == 2
        assert (await mesh.store.has([digest])) == [True]
        for peer in peers:
            assert (await mesh.peers[peer].store.has([digest])) == [True]
    assert source.receipts == 2 * source.chunks
    assert source.sampled > 0
    assert source.survives_nodes == 2
    assert source.survives_zones == 2
    assert {digest for digest, _ in mesh.dht.announced} == set(source.placements)
    assert source.link.digest in mesh.dht.manifests


async def test_too_few_nodes_make_it_weak_and_the_report_says_how_weak(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.add()
    report = await mesh.putter().put([make_file(200_000)])
    assert (report.outcome, report.exit_code) == ("weak", EXIT_PARTIAL)
    assert report.sources[0].copies == 2
    assert report.sources[0].survives_nodes == 1
    assert report.sources[0].survives_zones == 0


async def test_alone_it_is_weak_at_once_and_safe_here(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    report = await mesh.putter().put([make_file(300_000)])
    assert report.outcome == "weak"
    assert report.sources[0].copies == 1
    assert trio.current_time() - began < 1
    assert all(await mesh.store.has(list(report.sources[0].placements)))


async def test_a_member_that_comes_while_a_put_runs_gets_the_copies_that_are_missing(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.add(rate=1e6)

    async def arrive() -> None:
        await trio.sleep(0.3)
        mesh.add()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(arrive)
        report = await mesh.putter().put([make_file(3_000_000)])
    assert (report.outcome, report.sources[0].copies) == ("stored", 3)


async def test_one_copy_wanted_needs_no_peer(mesh, make_file, autojump_clock: MockClock) -> None:
    report = await mesh.putter().put([make_file(300_000)], PutOptions(replication=1))
    assert report.outcome == "stored"


@pytest.mark.parametrize(
    "fault",
    [{"down": True}, {"frozen": True}, {"refuses_puts": "quota"}, {"refuses_puts": "busy"}],
    ids=["down", "frozen", "full", "busy"],
)
async def test_a_failing_peer_is_replaced_by_the_next_candidate(
    mesh, make_file, autojump_clock: MockClock, fault: dict[str, object]
) -> None:
    for zone in "abc":
        mesh.add(zone)
    bad = mesh.add("d", **fault)
    began = trio.current_time()
    report = await mesh.putter().put([make_file(2_000_000)])
    assert report.outcome == "stored"
    assert bad.id not in report.sources[0].peers
    assert report.sources[0].retries > 0
    assert trio.current_time() - began < 60


async def test_a_dead_member_does_not_cost_every_chunk_all_its_rounds(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.add("a")
    mesh.add("b", down=True)
    began = trio.current_time()
    report = await mesh.putter().put([make_file(6_000_000)])
    assert report.outcome == "weak"
    assert report.sources[0].copies == 2
    assert trio.current_time() - began < 30


async def test_a_peer_that_recovers_within_the_rounds_gets_its_copies(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.add("a")
    mesh.add("b", fails_next=2)
    report = await mesh.putter().put([make_file(300_000)])
    assert report.outcome == "stored"


async def test_a_peer_that_keeps_nothing_is_found_out_and_replaced(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    liar = mesh.add("a", forgetful=True)
    for zone in "bc":
        mesh.add(zone)
    report = await mesh.putter().put([make_file(300_000)])
    assert report.outcome == "stored"
    assert liar.id not in report.sources[0].peers
    for digest, peers in report.sources[0].placements.items():
        assert len(peers) == 2
        for peer in peers:
            assert (await mesh.peers[peer].store.has([digest])) == [True]


async def test_a_liar_without_replacement_leaves_it_weak(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.add("a", corrupting=True)
    mesh.add("b")
    report = await mesh.putter().put([make_file(300_000)])
    assert report.outcome == "weak"
    assert report.sources[0].copies == 2


async def test_the_same_file_again_stores_nothing_new(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        mesh.add()
    path = make_file(500_000)
    first = (await mesh.putter().put([path])).sources[0]
    again = (await mesh.putter().put([path])).sources[0]
    assert again.link == first.link
    assert (first.new_chunks, again.new_chunks) == (first.chunks, 0)
    assert again.outcome == "stored"


async def test_new_chunks_of_all_windows_are_counted(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add(rate=1e6)
    source = (await mesh.putter().put([make_file(30_000_000)])).sources[0]
    assert source.new_chunks == source.chunks


async def test_a_folder_comes_with_everything_in_it(
    mesh, tmp_path, autojump_clock: MockClock
) -> None:
    root = tmp_path / "tree"
    _fill(root, 200)
    (root / "big").write_bytes(random.Random(1).randbytes(1_000_000))
    (root / "empty").write_bytes(b"")
    (root / "hollow").mkdir()
    (root / "link").symlink_to("big")
    (root / "big").chmod(0o640)
    report = await mesh.putter().put([root], PutOptions(replication=1))
    source = report.sources[0]
    assert (source.kind, source.files, source.outcome) == ("folder", 202, "stored")
    manifest = await mesh.putter_getter().open(source.link)
    assert isinstance(manifest, DirectoryManifest)
    kinds = {entry.path: entry.kind for entry in manifest.entries}
    assert kinds[b"hollow"] == "dir"
    assert kinds[b"link"] == "symlink"
    big = next(entry for entry in manifest.entries if entry.path == b"big")
    assert (big.mode, big.size) == (0o640, 1_000_000)
    # 200 small files share a few packs.
    assert source.chunks < 30


async def test_thousands_of_small_files_need_few_thread_hops(
    mesh, tmp_path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "many"
    for folder in range(20):
        (root / str(folder)).mkdir(parents=True)
        for number in range(100):
            (root / str(folder) / str(number)).write_bytes(b"%d/%d" % (folder, number))
    hops = 0
    real = trio.to_thread.run_sync

    async def counting(*args: object, **kwargs: object) -> object:
        nonlocal hops
        hops += 1
        return await real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(trio.to_thread, "run_sync", counting)
    report = await mesh.putter().put([root], PutOptions(replication=1))
    assert report.sources[0].files == 2000
    assert hops < 40


async def test_unreadable_and_special_files_are_left_out_and_named(
    mesh, tmp_path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "good").write_bytes(b"good")
    (tmp_path / "t" / "secret").write_bytes(b"x")
    os.mkfifo(tmp_path / "t" / "pipe")
    real = os.open

    def deny(path, *args, **kwargs):  # root reads everything: let the kernel's no be pretended
        if os.fsencode(path).endswith(b"secret"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", deny)
    events = []
    report = await mesh.putter().put([tmp_path / "t"], PutOptions(replication=1), events.append)
    source = report.sources[0]
    assert (report.outcome, report.exit_code) == ("partial", EXIT_PARTIAL)
    assert {(f.path, f.reason) for f in source.failures} == {
        (b"secret", "permission denied"),
        (b"pipe", "is a named pipe"),
    }
    assert source.files == 1
    assert {event.path for event in events if isinstance(event, FileDone)} == {"secret", "pipe"}


async def test_several_sources_get_a_link_each_and_one_bad_one_spoils_none(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    sources = [make_file(100, f"f{n}", seed=n) for n in range(6)]
    sources.insert(3, tmp_path / "missing")
    report = await mesh.putter().put(sources, PutOptions(replication=1))
    assert [s.outcome for s in report.sources] == ["stored"] * 3 + ["failed"] + ["stored"] * 3
    assert report.outcome == "partial"
    assert report.exit_code == EXIT_PARTIAL
    assert "no such file" in report.sources[3].error
    assert report.sources[3].error_code == "input"
    assert len({s.link.digest for s in report.sources if s.link}) == 6


class _Scribbler:
    """Writes to a file whenever it is read."""

    def __init__(self, path: Path, times: int) -> None:
        self._path, self._times, self._real = path, times, os.readv
        self.lock = threading.Lock()

    def readv(self, fd: int, buffers: list[memoryview]) -> int:
        count = self._real(fd, buffers)
        with self.lock:
            if self._times:
                self._times -= 1
                with self._path.open("r+b") as file:
                    file.write(os.urandom(8))
                os.utime(self._path, ns=(1, self._times + 1))
        return count


async def test_a_file_that_changed_once_is_read_again(
    mesh, make_file, tmp_path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file(300_000)
    monkeypatch.setattr(os, "readv", _Scribbler(path, 1).readv)
    report = await mesh.putter().put([path], PutOptions(replication=1))
    assert report.outcome == "stored"
    await mesh.putter_getter().get(report.sources[0].link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


async def test_a_file_that_keeps_changing_is_refused(
    mesh, make_file, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file(300_000)
    monkeypatch.setattr(os, "readv", _Scribbler(path, 1000).readv)
    report = await mesh.putter().put([path], PutOptions(replication=1))
    assert report.outcome == "failed"
    assert "changed while being read" in report.sources[0].error
    assert report.sources[0].error_code == "input"


async def test_a_full_local_store_fails_the_source_as_refused(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.store = MemoryStore(quota=100_000)
    report = await mesh.putter().put([make_file(1_000_000)])
    assert report.outcome == "failed"
    assert report.exit_code == EXIT_REFUSED
    assert report.sources[0].error_code == "quota"


async def _stream(data: bytes, step: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), step):
        await trio.lowlevel.checkpoint()
        yield data[start : start + step]


@pytest.mark.parametrize("step", [1000, 300_000, 50_000_000])
async def test_a_stream_is_cut_like_a_file_of_the_same_bytes(
    mesh, make_file, autojump_clock: MockClock, step: int
) -> None:
    path = make_file(20_000_000 if step > 1000 else 700_000)
    data = path.read_bytes()
    source = StreamSource("input.bin", _stream(data, step))
    report = await mesh.putter().put([source, path], PutOptions(replication=1))
    streamed, file = [await mesh.putter_getter().open(s.link) for s in report.sources]
    assert isinstance(streamed, FileManifest)
    assert isinstance(file, FileManifest)
    assert (streamed.chunks, streamed.digest) == (file.chunks, file.digest)
    assert streamed.name == b"input.bin"


async def test_a_stream_that_breaks_off_publishes_nothing(mesh, autojump_clock: MockClock) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise trio.BrokenResourceError("peer hung up")

    report = await mesh.putter().put([StreamSource("s", broken())])
    assert report.outcome == "failed"
    assert "broke off" in report.sources[0].error
    assert mesh.dht.manifests == {}


async def test_a_stream_may_be_empty(mesh, autojump_clock: MockClock) -> None:
    report = await mesh.putter().put(
        [StreamSource("nothing", _stream(b"", 1))], PutOptions(replication=1)
    )
    assert report.outcome == "stored"
    assert report.sources[0].size == 0


async def test_cancelled_puts_give_back_their_buffers_and_end(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        mesh.add(rate=1e5)
    with trio.move_on_after(2) as scope:
        await mesh.putter().put([make_file(30_000_000)])
    assert scope.cancelled_caught
    assert mesh.exchange.in_flight == []
    assert mesh.exchange.putting == []


async def test_events_tell_start_progress_and_end(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        mesh.add()
    events = []
    await mesh.putter().put([make_file(3_000_000)], progress=events.append)
    assert events[0] == Started("input.bin", 3_000_000, 1)
    assert isinstance(events[-1], Finished)
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.bytes_done == 3_000_000
    assert last.bytes_sent > 2 * 3_000_000


async def test_public_content_needs_no_key(mesh, make_file, autojump_clock: MockClock) -> None:
    report = await mesh.putter().put([make_file(1000)], PutOptions(public=True, replication=1))
    assert "#" not in str(report.sources[0].link)


async def test_announcements_go_in_batches(mesh, make_file, autojump_clock: MockClock) -> None:
    await mesh.putter().put([make_file(5_000_000)], PutOptions(replication=1))
    assert len(mesh.dht.announced) > 50
    assert mesh.dht.announcements == 1


async def test_sources_that_fail_in_the_middle_give_back_their_buffers(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    mesh.store = MemoryStore(quota=100_000)
    large = make_file(20_000_000, "large").read_bytes()
    sources = [StreamSource(f"s{n}", _stream(large, 1_000_000)) for n in range(5)]
    files = [make_file(20_000_000, f"f{n}", seed=n) for n in range(5)]
    with trio.fail_after(60):
        report = await mesh.putter().put(
            [*sources, *files, make_file(1000, "small")], PutOptions(replication=1)
        )
    assert [source.outcome for source in report.sources] == ["failed"] * 10 + ["stored"]


async def test_a_put_of_many_sources_adds_up(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    mesh.add(fails_next=2)
    sources = [make_file(200_000, f"f{n}", seed=n) for n in range(5)]
    report = await mesh.putter().put([*sources, tmp_path / "missing"], PutOptions(replication=2))
    summary = report.to_json()["summary"]
    assert (summary["total"], summary["successful"], summary["failed"]) == (6, 5, 1)
    assert (summary["stored"], summary["weak"], summary["partial"]) == (5, 0, 0)
    assert summary["retries"] == report.retries > 0
    assert summary["bytes_sent"] > 5 * 200_000
    longest = max(source.seconds for source in report.sources)
    assert longest <= report.seconds < 60
    total = sum(source.seconds for source in report.sources)
    assert report.average_seconds == pytest.approx(total / 6)
