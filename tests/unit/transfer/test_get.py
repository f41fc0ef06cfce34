from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from meshnode.errors import (
    DestinationError,
    FormatError,
    LinkError,
    NotFoundError,
    QuotaError,
    TransferError,
    WrongKeyError,
)
from meshnode.node.content import DirectoryManifest, Entry, Link, Sealer, encode_manifest
from meshnode.node.store import MemoryStore
from meshnode.node.transfer import GetOptions, Getter, PeerNote, Progress, PutOptions
from trio.testing import MockClock


async def _put(mesh, path: Path, peers: int = 3) -> Link:
    while len(mesh.peers) < peers:
        mesh.add(f"zone{len(mesh.peers)}")
    report = await mesh.putter().put([path])
    assert report.outcome == "stored", report
    link = report.sources[0].link
    assert link is not None
    return link


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if ".meshnode-" in path.name]


def _tree(root: Path) -> dict[bytes, object]:
    """Everything below `root` that a get should restore."""
    found: dict[bytes, object] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in folders + files:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            relative = os.path.relpath(path, os.fsencode(root))
            if os.path.islink(path):
                found[relative] = os.readlink(path)
            elif os.path.isdir(path):
                found[relative] = (info.st_mode, info.st_mtime_ns)
            else:
                with open(path, "rb") as file:
                    found[relative] = (file.read(), info.st_mode, info.st_mtime_ns)
    return found


async def test_a_file_comes_back_with_its_bytes_mode_and_time(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(3_000_000)
    path.chmod(0o751)
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    report = await mesh.getter().get(await _put(mesh, path), tmp_path / "out")
    out = tmp_path / "out"
    assert out.read_bytes() == path.read_bytes()
    assert out.stat().st_mode & 0o7777 == 0o751
    assert out.stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert report.path == out
    assert report.bytes_from_store == 0
    assert sum(report.bytes_from_peers.values()) > 3_000_000
    assert _leftovers(tmp_path) == []


async def test_a_folder_comes_back_whole_with_odd_names_links_and_packs(
    mesh, tmp_path, autojump_clock: MockClock
) -> None:
    root = tmp_path / "tree"
    rng = random.Random(4)
    (root / "sub" / "deep").mkdir(parents=True)
    for number in range(300):
        (root / "sub" / f"small{number}").write_bytes(rng.randbytes(rng.randrange(3000)))
    (root / "big").write_bytes(rng.randbytes(2_500_000))
    (root / "twin").write_bytes((root / "big").read_bytes())
    (root / "zeros").write_bytes(bytes(3_000_000))
    (root / "empty").touch()
    (root / "hollow").mkdir()
    (root / "abs").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../../..")
    for name in (b"new\nline", b"bad-\xff\xfe"):
        (root / os.fsdecode(name)).write_bytes(name)
    (root / "sub" / "deep").chmod(0o500)
    (root / "sub").chmod(0o755)
    os.utime(root / "sub", ns=(5, 5))
    link = await _put(mesh, root)
    report = await mesh.getter().get(link, tmp_path / "out")
    assert _tree(tmp_path / "out") == _tree(root)
    assert report.files == 306
    # Every chunk is fetched once, whatever number of files it serves.
    assert len(set(mesh.exchange.started)) < 100
    assert _leftovers(tmp_path) == []


async def test_one_entry_of_a_folder_can_be_fetched_alone(
    mesh, tmp_path, autojump_clock: MockClock
) -> None:
    root = tmp_path / "tree"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"content")
    (root / "a" / "link").symlink_to("b")
    (root / "other").write_bytes(b"no")
    link = await _put(mesh, root)
    getter = mesh.getter()
    await getter.get(link, tmp_path / "f", GetOptions(path=b"a/b/file"))
    assert (tmp_path / "f").read_bytes() == b"content"
    await getter.get(link, tmp_path / "a", GetOptions(path=b"a"))
    assert set(_tree(tmp_path / "a")) == {b"b", b"b/file", b"link"}
    report = await getter.get(link, tmp_path / "l", GetOptions(path=b"a/link"))
    assert (report.kind, os.readlink(tmp_path / "l")) == ("symlink", "b")
    with pytest.raises(NotFoundError, match="nope"):
        await getter.get(link, tmp_path / "x", GetOptions(path=b"nope"))


async def test_what_is_held_here_is_not_fetched(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1_000_000))
    mesh.exchange.started.clear()
    mesh.dht.finds.clear()
    report = await mesh.putter_getter().get(link, tmp_path / "out")
    assert mesh.exchange.started == []
    assert mesh.dht.finds == []
    assert report.bytes_from_peers == {}


async def test_a_get_keeps_no_copy_unless_asked(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(500_000))
    store = MemoryStore()
    getter = Getter(mesh.context(store))
    report = await getter.get(link, tmp_path / "a")
    assert (await store.stats()).chunks == 0
    await getter.get(link, tmp_path / "b", GetOptions(keep=True))
    assert (await store.stats()).chunks == report.chunks


# --- peers that fail --------------------------------------------------------------------------


async def test_a_corrupting_peer_is_noticed_and_another_delivers(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(2_000_000)
    link = await _put(mesh, path, 2)
    bad, good = mesh.peers.values()
    bad.corrupting = True
    notes = []
    report = await mesh.getter().get(link, tmp_path / "out", progress=notes.append)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert report.corrupt > 0
    assert set(report.bytes_from_peers) == {good.id}
    assert bad.id in {note.peer for note in notes if isinstance(note, PeerNote)}


async def test_a_peer_that_dies_in_the_middle_is_replaced(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(3_000_000)
    link = await _put(mesh, path, 2)
    dying, other = mesh.peers.values()
    dying.die_after_gets = len(dying.gets) + 5
    report = await mesh.getter().get(link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
    assert report.bytes_from_peers[other.id] > report.bytes_from_peers[dying.id]


async def test_a_peer_that_fails_all_the_time_is_soon_left_alone(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    mesh.configure(prefer_fast_peers=False)
    link = await _put(mesh, make_file(6_000_000), 2)
    down = next(iter(mesh.peers.values()))
    down.down = True
    report = await mesh.getter().get(link, tmp_path / "out")
    assert 0 < report.retries < report.chunks / 3


async def test_holders_nobody_announced_are_found_by_asking_the_members(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(1_000_000)
    link = await _put(mesh, path)
    mesh.dht.knows_chunks = False
    await mesh.getter().get(link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


async def test_a_frozen_member_delays_the_search_by_a_moment_only(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1_000_000))
    mesh.dht.knows_chunks = False
    mesh.add(frozen=True)
    report = await mesh.getter().get(link, tmp_path / "out")
    assert report.seconds < 1


async def test_a_chunk_nobody_delivers_fails_the_get_and_names_everything(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(2_000_000))
    for peer in mesh.peers.values():
        peer.die_after_gets = len(peer.gets) + 3
    with pytest.raises(TransferError) as caught:
        await mesh.getter().get(link, tmp_path / "out")
    assert "could not be fetched" in caught.value.message
    assert "unreachable" in caught.value.message
    assert "bafkr4i" in caught.value.message
    assert any(peer.short in caught.value.message for peer in mesh.peers)
    assert "not tried" in caught.value.message
    assert "are kept in" in caught.value.hint
    assert not (tmp_path / "out").exists()


async def test_chunks_are_looked_up_in_few_batches_and_not_all_at_once(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    mesh.config = mesh.config.with_overrides({"ingest.chunk_size": 65536})
    link = await _put(mesh, make_file(12_000_000))
    mesh.dht.finds.clear()
    await mesh.getter().get(link, tmp_path / "out")
    assert mesh.dht.finds[0] == 64
    assert len(mesh.dht.finds) == 2


# --- links ------------------------------------------------------------------------------------


async def test_the_root_is_fetched_from_a_holder_when_the_dht_lost_it(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(100_000)
    link = await _put(mesh, path)
    mesh.dht.manifests.clear()
    await mesh.getter().get(link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


async def test_a_false_manifest_in_the_dht_is_not_believed(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(100_000)
    link = await _put(mesh, path)
    mesh.dht.manifests[link.digest] = b"something else"
    await mesh.getter().get(link, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


async def test_an_unknown_link_says_how_many_were_asked(
    mesh, tmp_path, autojump_clock: MockClock
) -> None:
    mesh.add()
    mesh.add()
    with pytest.raises(NotFoundError, match="any of 2 peers asked") as caught:
        await mesh.getter().get(Link(b"\x01" * 32, b"\x02" * 32), tmp_path / "out")
    assert "mesh" in caught.value.hint


async def test_an_unknown_link_without_any_peer_says_that_nobody_is_there(
    mesh, tmp_path, autojump_clock: MockClock
) -> None:
    with pytest.raises(NotFoundError, match="no other member"):
        await mesh.getter().get(Link(b"\x01" * 32, b"\x02" * 32), tmp_path / "out")


async def test_unreachable_holders_are_told_apart_from_absence(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1000))
    mesh.dht.manifests.clear()
    for peer in mesh.peers.values():
        peer.down = True
    with pytest.raises(NotFoundError, match="unreachable"):
        await mesh.getter().get(link, tmp_path / "out")


async def test_a_wrong_key_is_said_to_be_wrong(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1000))
    with pytest.raises(WrongKeyError, match="key does not open"):
        await mesh.getter().get(Link(link.digest, b"\x09" * 32), tmp_path / "out")


async def test_a_link_without_its_key_is_said_to_lack_it(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1000))
    with pytest.raises(LinkError, match="no key"):
        await mesh.getter().get(Link(link.digest), tmp_path / "out")


async def test_a_manifest_larger_than_a_root_is_fetched_level_by_level(
    mesh, tmp_path, autojump_clock: MockClock
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(1300):
        (root / f"{number:0100d}").write_bytes(b"%d" % number)
    link = await _put(mesh, root)
    assert len(mesh.dht.manifests[link.digest]) < 5000
    report = await mesh.getter().get(link, tmp_path / "out")
    assert report.files == 1300
    assert (tmp_path / "out" / f"{77:0100d}").read_bytes() == b"77"


@pytest.mark.parametrize("path", [b"../escape", b"/etc/escape", b"a/../../escape"])
async def test_a_manifest_that_leads_out_of_its_folder_is_refused(
    mesh, tmp_path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    # A hostile publisher does not check what it encodes.
    monkeypatch.setattr("meshnode.node.content.tree.canonical", lambda manifest: manifest)
    entry = Entry(path, "symlink", 0o777, 1, target=b"x")
    forged = encode_manifest(DirectoryManifest(b"evil", (), (entry,)), Sealer(b"\x07" * 32))
    mesh.dht.manifests[forged.link.digest] = forged.root.data
    with pytest.raises(FormatError):
        await mesh.getter().get(forged.link, tmp_path / "sub")
    assert [found.name for found in tmp_path.iterdir()] == ["home"]


# --- the destination --------------------------------------------------------------------------


async def test_an_existing_file_is_refused_without_force_and_replaced_with_it(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(1000)
    link = await _put(mesh, path)
    out = tmp_path / "out"
    out.write_bytes(b"mine")
    with pytest.raises(DestinationError, match="exists already") as caught:
        await mesh.getter().get(link, out)
    assert "--force" in caught.value.hint
    assert out.read_bytes() == b"mine"
    await mesh.getter().get(link, out, GetOptions(force=True))
    assert out.read_bytes() == path.read_bytes()


async def test_content_goes_into_an_existing_folder_under_its_name(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    path = make_file(1000)
    link = await _put(mesh, path)
    (tmp_path / "folder").mkdir()
    report = await mesh.getter().get(link, tmp_path / "folder")
    assert report.path == tmp_path / "folder" / "input.bin"
    assert report.path.read_bytes() == path.read_bytes()


async def test_a_folder_replaces_a_folder_only_with_force(
    mesh, tmp_path, autojump_clock: MockClock
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "new").write_bytes(b"new")
    link = await _put(mesh, tmp_path / "tree")
    old = tmp_path / "dest" / "tree"
    old.mkdir(parents=True)
    (old / "old").write_bytes(b"old")
    with pytest.raises(DestinationError, match="exists already"):
        await mesh.getter().get(link, tmp_path / "dest")
    await mesh.getter().get(link, tmp_path / "dest", GetOptions(force=True))
    assert [path.name for path in old.iterdir()] == ["new"]
    assert _leftovers(tmp_path / "dest") == []


async def test_a_file_never_replaces_a_folder(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(10))
    (tmp_path / "dest" / "input.bin").mkdir(parents=True)
    with pytest.raises(DestinationError, match="is a folder"):
        await mesh.getter().get(link, tmp_path / "dest", GetOptions(force=True))


async def test_a_missing_parent_folder_is_named(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(10))
    with pytest.raises(DestinationError, match="nowhere does not exist"):
        await mesh.getter().get(link, tmp_path / "nowhere" / "out")


async def test_a_file_that_appears_meanwhile_is_not_replaced(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(300_000))
    out = tmp_path / "out"

    def intrude(event: object) -> None:
        if isinstance(event, Progress):
            out.write_bytes(b"somebody else's")

    with pytest.raises(DestinationError, match="appeared"):
        await mesh.getter().get(link, out, progress=intrude)
    assert out.read_bytes() == b"somebody else's"
    assert _leftovers(tmp_path) == []


async def test_a_disk_without_room_is_told_at_once_with_needed_and_free(
    mesh, make_file, tmp_path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await _put(mesh, make_file(300_000))
    mesh.exchange.started.clear()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=2, f_frsize=4096))
    with pytest.raises(QuotaError, match="300000 bytes are needed, 8192 are free"):
        await mesh.getter().get(link, tmp_path / "out")
    assert mesh.exchange.started == []
    assert _leftovers(tmp_path) == []


async def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    mesh, make_file, tmp_path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await _put(mesh, make_file(300_000))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(QuotaError, match="No room"):
        await mesh.getter().get(link, tmp_path / "out")
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize("after", [0.005, 0.02])
async def test_a_get_that_is_cancelled_before_its_first_chunk_leaves_nothing(
    mesh, make_file, tmp_path, autojump_clock: MockClock, after: float
) -> None:
    link = await _put(mesh, make_file(3_000_000))
    for peer in mesh.peers.values():
        peer.rate = 1e6
    with trio.move_on_after(after) as scope:
        await mesh.getter().get(link, tmp_path / "out")
    assert scope.cancelled_caught
    assert not (tmp_path / "out").exists()
    assert _leftovers(tmp_path) == []
    assert mesh.exchange.in_flight == []


async def test_progress_counts_every_byte_written(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(2_000_000))
    events = []
    await mesh.getter().get(link, tmp_path / "out", progress=events.append)
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].bytes_done == 2_000_000
    counts = [event.bytes_done for event in progress]
    assert counts == sorted(counts)


async def test_an_empty_file_and_an_empty_folder_come_back(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    await mesh.getter().get(await _put(mesh, make_file(0)), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""
    (tmp_path / "hollow").mkdir()
    report = await mesh.putter().put([tmp_path / "hollow"], PutOptions(replication=1))
    await mesh.getter().get(report.sources[0].link, tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []
