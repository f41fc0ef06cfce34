"""Windows: what is read into them, and where it is sealed to."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3
from meshnode.node.content import ChunkerProfile, SealedChunk, Sealer, open_chunk
from meshnode.node.transfer.memory import untouched_memory
from meshnode.node.transfer.reading import (
    Draft,
    FilesReader,
    Piece,
    SealedMemory,
    Window,
    seal_window,
    window_bytes,
)
from meshnode.node.transfer.source import look_at

PROFILE = ChunkerProfile.named("cdc", 1024)
SEALER = Sealer(bytes(range(32)), "none")
BUFFER = 3 * PROFILE.max_size


def noise(seed: str, size: int) -> bytes:
    return blake3(seed.encode()).digest(length=size)


def windows_of(path: Path) -> list[tuple[Window, bytes]]:
    """All windows of a file, each with what its buffer held."""
    reader = FilesReader(look_at(path).files, PROFILE, None, 0)
    buffer, found = untouched_memory(BUFFER), []
    while (window := reader.fill(buffer)) is not None:
        found.append((window, bytes(buffer)))
    reader.close()
    return found


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(noise("large", 10 * BUFFER))
    return path


def test_windows_hold_a_file_whole_and_in_order(large: Path) -> None:
    windows = windows_of(large)
    parts = [
        content[piece.start : piece.end] for window, content in windows for piece in window.pieces
    ]
    assert b"".join(parts) == large.read_bytes()
    [draft] = [draft for window, _ in windows for draft in window.finished]
    assert draft.digest == blake3(large.read_bytes()).digest()


def test_a_window_carries_over_no_chunk_that_is_certain(large: Path) -> None:
    # Of a window that can hold several of the largest chunks, most is new: on average, less than
    # one chunk is left over.
    full = [window for window, _ in windows_of(large)[:-1]]
    assert sum(window.bytes_read for window in full) > len(full) * (BUFFER - 2 * PROFILE.target)


def test_a_buffer_holds_two_of_the_largest_chunks() -> None:
    for target in (1024, 1 << 20, 4 << 20):
        profile = ChunkerProfile.named("cdc", target)
        assert window_bytes(profile) >= max(8 << 20, 2 * profile.max_size)


def sealed(data: bytes, cuts: int, memory: SealedMemory | None) -> list[SealedChunk]:
    """`data` as a window of `cuts` equal pieces."""
    window, draft, size = Window(memoryview(data)), Draft(b"", 0, 0), len(data) // cuts
    for number in range(cuts):
        window.pieces.append(_piece(draft, number, size))
        draft.refs.append(None)
    chunks = seal_window(window, SEALER, memory)
    plains = {chunk.ref.digest: open_chunk(chunk.ref, chunk.data) for chunk in chunks}
    assert b"".join(plains[ref.digest] for ref in draft.refs if ref) == data
    return chunks


def _piece(draft: Draft, number: int, size: int) -> Piece:
    return Piece(draft, number, number * size, (number + 1) * size)


def test_the_chunks_of_a_window_are_sealed_over_those_of_the_one_before() -> None:
    memory = SealedMemory()
    first = sealed(noise("one", 8000), 8, memory)
    second = sealed(noise("two", 8000), 100, memory)  # more pieces, so more overhead
    assert len(second) == 100
    assert {id(_owner(chunk)) for chunk in (*first, *second)} == {id(_owner(first[0]))}


def test_memory_for_sealing_grows_with_the_window() -> None:
    memory = SealedMemory()
    sealed(noise("small", 800), 1, memory)
    chunks = sealed(noise("large", 800_000), 10, memory)
    assert sum(chunk.ref.size for chunk in chunks) == 800_000 + 10 * SEALER.overhead


def test_equal_pieces_of_a_window_are_one_chunk() -> None:
    data = noise("same", 1000)
    memory = SealedMemory()
    [chunk, other] = sealed(data * 2 + noise("other", 1000), 3, memory)
    assert open_chunk(chunk.ref, chunk.data) == data
    assert open_chunk(other.ref, other.data) == noise("other", 1000)


def test_chunks_that_are_to_be_kept_get_memory_of_their_own() -> None:
    chunks = sealed(noise("kept", 8000), 8, None)
    assert all(isinstance(chunk.data, bytes) for chunk in chunks)


def _owner(chunk: SealedChunk) -> object:
    assert isinstance(chunk.data, memoryview)
    return chunk.data.obj
