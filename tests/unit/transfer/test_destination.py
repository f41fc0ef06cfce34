"""Staging with real threads: out of order, all at once."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from meshnode.errors import DestinationError, IntegrityError
from meshnode.node.content import ChunkRef, Codec
from meshnode.node.transfer.destination import Staging
from meshnode.node.transfer.plan import GetPlan, TargetFile, TargetNode, Write
from meshnode.node.transfer.target import choose_target


def _plan(data: bytes, piece: int, digest: bytes | None = None) -> GetPlan:
    starts = range(0, len(data), piece)
    file = TargetFile(
        b"", len(data), digest or blake3(data).digest(), 0o4755, 7_000_000_001, len(starts)
    )
    writes = [
        [Write(0, number, start, 0, min(piece, len(data) - start))]
        for number, start in enumerate(starts)
    ]
    refs = [ChunkRef(bytes(32), None, Codec.RAW, piece, piece)] * len(starts)
    return GetPlan(False, [file], [], [], refs, writes, len(data))


@pytest.mark.parametrize("seed", range(5))
def test_slices_written_by_many_threads_in_any_order_make_the_file(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    data, piece = rng.randbytes(2_000_000), 7_001
    plan = _plan(data, piece)
    staging = Staging(plan, tmp_path / "out", force=False, durable=True)
    staging.prepare()
    order = list(range(len(plan.writes)))
    rng.shuffle(order)
    with ThreadPoolExecutor(8) as threads:
        parts = [data[number * piece :][:piece] for number in order]
        list(threads.map(staging.write, order, parts))
    staging.finish()
    staging.flush()
    staging.commit()
    out = tmp_path / "out"
    assert out.read_bytes() == data
    # Finished by exactly one thread, after the last byte: mode without setuid, time as told.
    assert out.stat().st_mode & 0o7777 == 0o755
    assert out.stat().st_mtime_ns == 7_000_000_001


@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_whole_digest_is_found_whatever_the_order(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data, piece = rng.randbytes(100_000), 999
    plan = _plan(data, piece, digest=bytes(32))
    staging = Staging(plan, tmp_path / "out", force=False, durable=False)
    staging.prepare()
    order = list(range(len(plan.writes)))
    rng.shuffle(order)

    def write_all() -> None:
        for number in order:
            staging.write(number, data[number * piece :][:piece])

    with pytest.raises(IntegrityError, match="manifest is wrong"):
        write_all()
    staging.discard()
    assert list(tmp_path.iterdir()) == []


def test_the_space_of_a_large_file_is_reserved_before_its_first_byte(tmp_path: Path) -> None:
    staging = Staging(
        _plan(bytes(5_000_000), 100_000), tmp_path / "out", force=False, durable=False
    )
    staging.prepare()
    part = staging.part_path
    assert part.name.startswith(".out.meshnode-")
    assert part.name.endswith(".part")
    assert part.stat().st_blocks * 512 >= 5_000_000
    staging.discard()
    staging.discard()


def _tree(depth: int) -> GetPlan:
    folders = [
        TargetNode(b"/".join([b"d"] * (level + 1)), 0o500, 5, None) for level in range(depth)
    ]
    return GetPlan(True, [], folders, [], [], [], 0)


def test_a_very_deep_tree_of_read_only_folders_can_be_discarded(tmp_path: Path) -> None:
    plan = _tree(1050)
    staging = Staging(plan, tmp_path / "out", force=False, durable=False)
    staging.prepare()
    part = staging.part_path
    for level in range(20):
        os.chmod(part / "/".join(["d"] * (level + 1)), 0o500)
    staging.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_at_the_target_is_not_replaced_without_force(tmp_path: Path) -> None:
    staging = Staging(_tree(1), tmp_path / "out", force=False, durable=False)
    staging.prepare()
    (tmp_path / "out").mkdir()
    with pytest.raises(DestinationError, match="appeared"):
        staging.commit()
    staging.discard()


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", deny)
    with pytest.raises(DestinationError, match=r"out cannot be written: Permission denied"):
        Staging(_tree(1), tmp_path / "out", force=False, durable=False).prepare()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 300])
def test_a_name_never_leads_out_of_the_folder(tmp_path: Path, name: bytes) -> None:
    target = choose_target(tmp_path, name, is_tree=False, force=False)
    assert target.parent == tmp_path
    assert target.name not in (".", "..")


def test_a_very_long_name_still_leaves_room_for_the_temporary_one(
    tmp_path: Path, make_file: Callable[..., Path]
) -> None:
    data = b"abc"
    target = tmp_path / ("n" * 255)
    staging = Staging(_plan(data, 3), target, force=False, durable=False)
    staging.prepare()
    staging.write(0, data)
    staging.commit()
    assert target.read_bytes() == data


def test_a_link_that_took_the_folders_place_is_removed_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "only copy").write_text("!")
    staging = Staging(_tree(1), tmp_path / "out", force=True, durable=False)
    staging.prepare()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    staging.finish()
    staging.commit()
    assert (tmp_path / "out").is_dir()
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "precious" / "only copy").read_text() == "!"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "precious"]


@pytest.mark.parametrize("kind", ["fifo", "socket"])
@pytest.mark.parametrize("is_tree", [False, True])
def test_what_is_no_file_or_folder_is_not_replaced_even_with_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_tree: bool
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo("it")
        else:
            listener.bind("it")
        with pytest.raises(DestinationError, match="never replaced"):
            choose_target(tmp_path / "it", b"x", is_tree=is_tree, force=True)


def test_a_device_is_not_replaced_even_with_force() -> None:
    with pytest.raises(DestinationError, match="never replaced"):
        choose_target(Path("/dev/null"), b"x", is_tree=False, force=True)


def test_a_folder_ends_with_the_mode_a_new_folder_has(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    staging = Staging(_tree(1), tmp_path / "out", force=False, durable=False)
    staging.prepare()
    part = staging.part_path
    assert part.stat().st_mode & 0o077 == 0
    staging.finish()
    staging.commit()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_folder_that_may_not_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", deny)
    with pytest.raises(DestinationError, match="permission denied"):
        choose_target(tmp_path / "x", b"name", is_tree=False, force=False)
