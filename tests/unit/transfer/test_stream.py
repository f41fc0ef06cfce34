from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from meshnode.errors import IntegrityError, NotFoundError, TransferError
from meshnode.node.content import FileManifest, Link, Sealer, encode_manifest
from meshnode.node.transfer import stream as stream_module
from trio.testing import MockClock


async def _put(mesh, path: Path) -> Link:
    for zone in "abc":
        mesh.add(zone)
    report = await mesh.putter().put([path])
    link = report.sources[0].link
    assert link is not None
    return link


async def _read(mesh, link: Link, *args: object, **kwargs: object) -> bytes:
    async with mesh.getter().stream(link, *args, **kwargs) as parts:
        return b"".join([part async for part in parts])


async def test_bytes_come_in_order(mesh, make_file, autojump_clock: MockClock) -> None:
    path = make_file(3_000_000)
    link = await _put(mesh, path)
    for delay, peer in enumerate(mesh.peers.values()):
        peer.latency = 0.05 * delay
    assert await _read(mesh, link) == path.read_bytes()


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, None),
        (0, 1),
        (1, None),
        (65536, 65536),
        (999_999, 10),
        (999_999, None),
        (1_000_000, 5),
        (5_000_000, None),
        (500_000, 0),
    ],
)
async def test_any_range_can_be_read(
    mesh, make_file, autojump_clock: MockClock, offset: int, length: int | None
) -> None:
    path = make_file(1_000_000)
    link = await _put(mesh, path)
    end = None if length is None else offset + length
    expected = path.read_bytes()[offset:end]
    assert await _read(mesh, link, None, offset, length) == expected


async def test_a_small_range_fetches_only_its_chunks(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(3_000_000))
    mesh.exchange.started.clear()
    await _read(mesh, link, None, 1_500_000, 10)
    assert len(mesh.exchange.started) == 1


async def test_no_more_is_read_ahead_than_allowed(
    mesh, make_file, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "READ_AHEAD_BYTES", 500_000)
    path = make_file(5_000_000)
    link = await _put(mesh, path)
    mesh.exchange.started.clear()
    async with mesh.getter().stream(link) as parts:
        first = await anext(parts)
        await trio.sleep(60)
        assert 2 < len(mesh.exchange.started) < 12
        rest = b"".join([part async for part in parts])
    assert first + rest == path.read_bytes()


async def test_a_repeated_chunk_is_fetched_once(mesh, tmp_path, autojump_clock: MockClock) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(3_000_000))
    link = await _put(mesh, path)
    mesh.exchange.started.clear()
    assert await _read(mesh, link) == bytes(3_000_000)
    assert len(mesh.exchange.started) <= 2


async def test_a_file_in_a_folder_is_named_by_its_path(
    mesh, tmp_path, autojump_clock: MockClock
) -> None:
    (tmp_path / "t" / "sub").mkdir(parents=True)
    (tmp_path / "t" / "sub" / "f").write_bytes(b"hello")
    link = await _put(mesh, tmp_path / "t")
    assert await _read(mesh, link, b"sub/f") == b"hello"
    for path in (None, b"sub", b"nope"):
        with pytest.raises(NotFoundError):
            await _read(mesh, link, path)


@pytest.mark.parametrize("read_ahead", [300_000, 32_000_000])
async def test_a_lost_chunk_ends_the_stream_with_its_error(
    mesh,
    make_file,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    read_ahead: int,
) -> None:
    monkeypatch.setattr(stream_module, "READ_AHEAD_BYTES", read_ahead)
    link = await _put(mesh, make_file(2_000_000))
    for peer in mesh.peers.values():
        peer.die_after_gets = len(peer.gets) + 3
    with trio.fail_after(600), pytest.raises(TransferError, match="could not be fetched"):
        await _read(mesh, link)


async def test_an_error_of_the_reader_comes_out_bare_and_ends_the_fetching(
    mesh, make_file, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(2_000_000))

    async def read_and_fail() -> None:
        async with mesh.getter().stream(link) as parts:
            await anext(parts)
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await read_and_fail()
    assert mesh.exchange.in_flight == []


async def test_leaving_early_ends_the_fetching(mesh, make_file, autojump_clock: MockClock) -> None:
    link = await _put(mesh, make_file(2_000_000))
    async with mesh.getter().stream(link) as parts:
        await anext(parts)
    assert mesh.exchange.in_flight == []


async def test_a_manifest_with_a_wrong_digest_is_found_out(
    mesh, make_file, tmp_path, autojump_clock: MockClock
) -> None:
    link = await _put(mesh, make_file(1_000_000))
    manifest = await mesh.getter().open(link)
    assert isinstance(manifest, FileManifest)
    forged = encode_manifest(replace(manifest, digest=bytes(32)), Sealer(b"\x07" * 32))
    mesh.dht.manifests[forged.link.digest] = forged.root.data
    with pytest.raises(IntegrityError, match="manifest is wrong"):
        await _read(mesh, forged.link)
    with pytest.raises(IntegrityError, match="manifest is wrong"):
        await mesh.getter().get(forged.link, tmp_path / "out")
    assert not (tmp_path / "out").exists()
