"""The small tables: what was saved is there after reopening, in order, page by page."""

from __future__ import annotations

from meshnode.node.store import open_store


def opened(path):
    return open_store(path, quota=None, min_free=0)


async def test_key_values_outlive_the_store_and_namespaces_do_not_mix(tmp_path):
    async with opened(tmp_path) as store:
        one, two = store.key_value("one"), store.key_value("two")
        await one.put(b"key", b"1")
        await two.put(b"key", b"2")
        await one.put(b"key", b"changed")
        await one.put_many([(b"b", b"B"), (b"a", b"A"), (b"", b"")])
    async with opened(tmp_path) as store:
        one, two = store.key_value("one"), store.key_value("two")
        assert [row async for row in one.items()] == [
            (b"", b""),
            (b"a", b"A"),
            (b"b", b"B"),
            (b"key", b"changed"),
        ]
        assert [row async for row in two.items()] == [(b"key", b"2")]
        assert await one.get(b"absent") is None
        await one.delete(b"a")
        await one.delete(b"absent")
        assert await one.get(b"a") is None
        assert await two.get(b"key") == b"2"


async def test_records_are_replaced_by_key_and_outlive_the_store(tmp_path):
    async with opened(tmp_path) as store:
        await store.records.save([(1, b"k", b"p", b"old", 10.0), (1, b"k", b"q", b"other", 20.5)])
        await store.records.save([(1, b"k", b"p", b"new", 30.0), (0, b"z", b"", b"", 5.0)])
    async with opened(tmp_path) as store:
        assert await store.records.load() == [
            (0, b"z", b"", b"", 5.0),
            (1, b"k", b"p", b"new", 30.0),
            (1, b"k", b"q", b"other", 20.5),
        ]
        await store.records.delete([(1, b"k", b"q"), (9, b"absent", b"")])
        assert [row[:3] for row in await store.records.load()] == [(0, b"z", b""), (1, b"k", b"p")]


async def test_expired_records_go_and_others_stay(tmp_path):
    async with opened(tmp_path) as store:
        await store.records.save([(1, b"%d" % n, b"", b"", float(n)) for n in range(10)])
        assert await store.records.delete_expired(6.0) == 7
        assert [row[4] for row in await store.records.load()] == [7.0, 8.0, 9.0]


async def test_more_records_than_a_page_are_loaded_once_each(tmp_path):
    rows = [(n % 3, b"%05d" % n, b"p", b"v", 1.0) for n in range(2500)]
    async with opened(tmp_path) as store:
        await store.records.save(rows)
        assert await store.records.load() == sorted(rows)


async def test_more_key_values_than_a_page_are_given_once_each(tmp_path):
    rows = [(b"%05d" % n, b"v") for n in range(2300)]
    async with opened(tmp_path) as store:
        await store.key_value("many").put_many(rows)
        assert [row async for row in store.key_value("many").items()] == rows
