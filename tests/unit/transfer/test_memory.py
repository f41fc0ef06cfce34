"""Memory that is used again."""

from __future__ import annotations

from meshnode.node.transfer.memory import Memory

MIB = 1 << 20


def test_what_was_given_back_is_used_again_whatever_part_of_it_was_used() -> None:
    memory = Memory(MIB)
    first = memory.take(700_000)
    assert len(first) == 700_000
    memory.give_back(first)
    again = memory.take(MIB)
    assert again.obj is first.obj
    assert len(again) == MIB


def test_what_is_in_use_is_nobody_elses() -> None:
    memory = Memory(MIB)
    taken = [memory.take(MIB) for _ in range(3)]
    with memory.lent(MIB) as lent:
        assert len({id(view.obj) for view in (*taken, lent)}) == 4
    assert memory.take(MIB).obj is lent.obj


def test_no_more_than_32_mib_are_kept_but_one_buffer_always() -> None:
    for size, kept in ((MIB, 32), (20 * MIB, 1), (40 * MIB, 1)):
        memory = Memory(size)
        for view in [memory.take(size) for _ in range(40)]:
            memory.give_back(view)
        assert len(memory._free) == kept


def test_small_pieces_have_memory_of_their_own() -> None:
    memory = Memory(MIB)
    small = memory.take(1000)
    assert len(small) == 1000
    memory.give_back(small)
    assert len(memory.take(MIB)) == MIB
