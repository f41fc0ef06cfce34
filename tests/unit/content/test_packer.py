from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.node.content import Packer, Sealer, open_chunk

SECRET = bytes(range(32))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(min_size=1, max_size=700), max_size=40))
def test_every_packed_file_is_found_again_in_its_slot(files: list[bytes]) -> None:
    packer = Packer(Sealer(SECRET), 1000)
    chunks, slots = [], []
    for data in files:
        slots.append(packer.add(data))
        chunks += packer.take()
    chunks += packer.flush()
    plains = {chunk.ref.digest: open_chunk(chunk.ref, chunk.data) for chunk in chunks}
    for data, slot in zip(files, slots, strict=True):
        assert slot.length == len(data)
        assert plains[slot.ref.digest][slot.offset : slot.offset + slot.length] == data
    assert all(len(plain) <= 1000 for plain in plains.values())
    assert sum(map(len, plains.values())) == sum(map(len, set(files)))
    assert packer.flush() == []


def test_a_pack_that_was_sealed_is_not_touched_by_the_next_one() -> None:
    packer = Packer(Sealer(None, "none"), 1000)  # public and as it is: a copy of what was packed
    packer.add(b"a" * 900)
    packer.add(b"b" * 900)
    packer.add(b"c" * 3000)
    packer.add(b"d" * 10)
    plains = [bytes(chunk.data) for chunk in packer.flush()]
    assert plains == [b"a" * 900, b"b" * 900, b"c" * 3000, b"d" * 10]


def test_many_small_files_share_few_chunks_sealed_once_each() -> None:
    packer = Packer(Sealer(SECRET, "none"), 10_000)
    slots = [packer.add(b"%07d" % i * 10) for i in range(1000)]
    chunks = packer.flush()
    assert len(chunks) == 8
    assert len({chunk.ref.digest for chunk in chunks}) == 8
    assert {slot.ref.digest for slot in slots} == {chunk.ref.digest for chunk in chunks}


def test_equal_files_share_a_slot_even_across_packs() -> None:
    packer = Packer(Sealer(SECRET), 1000)
    first = packer.add(b"same")
    packer.add(bytes(1000))
    assert packer.add(b"same") is first
    assert len(packer.flush()) == 2


def test_a_file_above_the_target_gets_a_pack_of_its_own() -> None:
    packer = Packer(Sealer(SECRET, "none"), 1000)
    packer.add(b"small")
    slot = packer.add(bytes(5000))
    assert [chunk.ref.plain_size for chunk in packer.flush()] == [5, 5000]
    assert (slot.offset, slot.length) == (0, 5000)


def test_a_slot_has_no_chunk_before_its_pack_is_sealed() -> None:
    packer = Packer(Sealer(SECRET))
    slot = packer.add(b"data")
    with pytest.raises(RuntimeError, match="flush"):
        _ = slot.ref


def test_an_empty_file_has_no_place_in_a_pack() -> None:
    with pytest.raises(ValueError, match="1 to"):
        Packer(Sealer(SECRET)).add(b"")
    with pytest.raises(ValueError, match="1 to"):
        Packer(Sealer(SECRET), 0)
