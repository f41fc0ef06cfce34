import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meshnode.config import Config, load_config
from meshnode.errors import ConfigError

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str = "", env: Mapping[str, str] | None = None) -> Config:
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
        return load_config(tmp_path, env=env or {})

    return load


def refusal(load: Load, text: str = "", env: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, env)
    return str(caught.value)


def test_without_a_file_everything_is_default(tmp_path: Path) -> None:
    config = load_config(tmp_path / "new", env={})
    assert config.network.listen == ("/ip4/0.0.0.0/tcp/4710",)
    assert config.performance.chunks.max_concurrent_retrievals == 8
    assert not (tmp_path / "new").exists()


def test_values_of_the_file_take_effect(load: Load) -> None:
    config = load(
        'storage.quota = "50 GiB"\nnode.zone = "attic"\nnetwork.keepalive_secs = 2\n'
        "[performance.chunks]\nmax_concurrent_retrievals = 3\nprefer_fast_peers = false\n"
    )
    assert config.storage.quota == 50 * 1024**3
    assert config.node.zone == "attic"
    assert config.network.keepalive_secs == 2
    assert config.performance.chunks.max_concurrent_retrievals == 3
    assert config.performance.chunks.prefer_fast_peers is False
    assert config.origins["storage.quota"] == "file"
    assert "storage.replication" not in config.origins


@pytest.mark.parametrize(
    ("line", "found", "allowed"),
    [
        ("storage.replication = 17", "17", "from 1 to 16"),
        ("storage.replication = true", "true", "from 1 to 16"),
        ("storage.replication = 3.0", "3.0", "whole number"),
        ('storage.replication = "3"', "'3'", "whole number"),
        ('storage.quota = "50 G"', "'50 G'", "GiB"),
        ("storage.quota = 17", "17", "1 MiB"),
        ("storage.quota = -1", "-1", "no quota"),
        ("network.mdns = 1", "1", "true or false"),
        ("network.keepalive_secs = nan", "nan", "0.5 to 300"),
        ("network.keepalive_secs = inf", "inf", "0.5 to 300"),
        ("network.listen = 3", "3", "list"),
        ('network.listen = "/ip4/0.0.0.0/tcp/1"', "/ip4/0.0.0.0/tcp/1", "list"),
        ("network.listen = [3]", "3 is not text", "list"),
        ('network.listen = ["/dns/a/tcp/1"]', "numeric", "list"),
        ('network.announce = ["/ip4/0.0.0.0/tcp/1"]', "nobody can dial", "list"),
        ('network.bootstrap = ["/ip4/1.2.3.4/tcp/1"]', "must end in /p2p/", "peer's id"),
        ("performance.chunks.max_concurrent_retrievals = 0", "0", '"auto"'),
        ('performance.chunks.max_concurrent_retrievals = "all"', "'all'", '"auto"'),
        ("performance.chunks.max_concurrent_uploads = 1025", "1025", "1 to 1024"),
        ('node.name = "a\\nb"', "'a\\nb'", "printable"),
        ('node.name = ""', "''", "printable"),
        ("node.name = 1979-05-27", "a date", "printable"),
        ('log.level = "loud"', "'loud'", '"debug"'),
        ('ingest.chunk_size = "8 MiB"', "8 MiB", "4 MiB"),
        ("storage = 3", "3", "[storage]"),
        ("storage.quota.x = 3", "a section", "a size"),
    ],
)
def test_a_wrong_value_names_file_key_found_and_allowed(
    load: Load, tmp_path: Path, line: str, found: str, allowed: str
) -> None:
    message = refusal(load, line)
    assert message.startswith(str(tmp_path / "config.toml"))
    key = line.partition(" ")[0].removesuffix(".x")
    assert key in message
    assert found in message
    assert allowed in message


@pytest.mark.parametrize(
    ("text", "unknown", "near"),
    [
        ("[storage]\nqota = 1", "key storage.qota", "storage.quota"),
        ("[netwrok]\nlisten = []", "section netwrok", "network"),
        ("[network]\nreplication = 2", "key network.replication", "storage.replication"),
        (
            "[performance]\nmax_concurrent_uploads = 2",
            "key performance.max_concurrent_uploads",
            "performance.chunks.max_concurrent_uploads",
        ),
        ("quota = 1", "key quota", "storage.quota"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    load: Load, text: str, unknown: str, near: str
) -> None:
    message = refusal(load, text)
    assert f"there is no {unknown};" in message
    assert f"did you mean {near}?" in message


def test_an_unknown_key_near_to_nothing_lists_what_there_is(load: Load) -> None:
    assert "storage.quota, storage.min_free_disk" in refusal(load, "[storage]\nzzzzz = 1")


def test_all_mistakes_are_told_at_once(load: Load) -> None:
    message = refusal(load, "[storage]\nquta = 1\nreplication = 0", {"MESHNODE_NETWORK_MDNS": "x"})
    assert "3 mistakes" in message
    assert message.count("\n") == 3
    for part in ("storage.quta", "storage.replication", "MESHNODE_NETWORK_MDNS"):
        assert part in message


def test_a_file_full_of_mistakes_gives_a_bounded_message(load: Load) -> None:
    message = refusal(load, "\n".join(f"k{n} = 1" for n in range(500)))
    assert "500 mistakes" in message
    assert len(message) < 10_000


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("a = 1\nb = ", 2, 5), ("[a\nb = 1", 1, 3), ('x = "abc', 1, 9)],
)
def test_a_syntax_error_names_line_and_column(
    load: Load, text: str, line: int, column: int
) -> None:
    assert f"config.toml, line {line}, column {column}: not valid TOML" in refusal(load, text)


@pytest.mark.parametrize("text", ["a = " + "[" * 20_000, "a = " + "9" * 5000])
def test_a_file_that_trips_the_parser_is_refused(load: Load, text: str) -> None:
    assert "config.toml" in refusal(load, text)


def test_a_file_that_is_not_text_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"[node]\nname = '\xff'\n")
    with pytest.raises(ConfigError, match=r"line 2, column 9.*UTF-8"):
        load_config(tmp_path, env={})


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"#" * (2 * 1024 * 1024))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        load_config(tmp_path, env={})


def test_a_config_path_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, env={})


def test_variables_win_over_the_file(load: Load) -> None:
    env = {
        "MESHNODE_PERFORMANCE_CHUNKS_MAX_CONCURRENT_RETRIEVALS": "3",
        "MESHNODE_PERFORMANCE_CHUNKS_MAX_CONCURRENT_UPLOADS": "auto",
        "MESHNODE_STORAGE_QUOTA": "1.5 GB",
        "MESHNODE_STORAGE_REPLICATION": "2",
        "MESHNODE_NETWORK_LISTEN": "/ip4/127.0.0.1/tcp/0, /ip6/::1/tcp/0",
        "MESHNODE_NETWORK_MDNS": "off",
        "MESHNODE_NETWORK_DIAL_TIMEOUT_SECS": "0.5",
        "MESHNODE_NODE_NAME": "n1",
    }
    config = load("storage.replication = 5\nperformance.chunks.max_concurrent_uploads = 2", env)
    assert config.performance.chunks.max_concurrent_retrievals == 3
    assert config.performance.chunks.max_concurrent_uploads == "auto"
    assert config.storage.quota == 1_500_000_000
    assert config.storage.replication == 2
    assert config.network.listen == ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0")
    assert config.network.mdns is False
    assert config.network.dial_timeout_secs == 0.5
    assert config.node.name == "n1"
    assert set(config.origins.values()) == {"env"}


def test_an_empty_list_variable_is_an_empty_list(load: Load) -> None:
    assert load(env={"MESHNODE_NETWORK_LISTEN": ""}).network.listen == ()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STORAGE_REPLICATION", ""),
        ("STORAGE_REPLICATION", "three"),
        ("STORAGE_REPLICATION", "9" * 5000),
        ("NETWORK_MDNS", "maybe"),
        ("NETWORK_KEEPALIVE_SECS", "nan"),
        ("NETWORK_LISTEN", "[[["),
        ("NETWORK_LISTEN", "nonsense"),
        ("STORAGE_QUOTA", "-5"),
        ("NODE_NAME", ""),
    ],
)
def test_a_wrong_variable_is_named(load: Load, variable: str, value: str) -> None:
    message = refusal(load, env={f"MESHNODE_{variable}": value})
    assert f"environment variable MESHNODE_{variable}" in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("MESHNODE_STORAGE_QOTA", "MESHNODE_STORAGE_QUOTA"),
        ("MESHNODE_STORGE_QUOTA", "MESHNODE_STORAGE_QUOTA"),
        ("MESHNODE_LOG_COLOURS", "MESHNODE_LOG_"),
        ("MESHNODE_HOEM", "MESHNODE_HOME"),
    ],
)
def test_a_mistyped_variable_is_refused_with_the_nearest(
    load: Load, variable: str, near: str
) -> None:
    message = refusal(load, env={variable: "1"})
    assert variable in message
    assert f"did you mean {near}" in message


def test_variables_that_are_none_of_ours_are_left_alone(load: Load, tmp_path: Path) -> None:
    names = ["PORT", "PORT_4710_TCP_ADDR", "SERVICE_HOST", "TESTNET_KEEP", "TEST_X", "BENCH_SIZE"]
    env = {f"MESHNODE_{name}": "1" for name in names} | {"MESHNODE_HOME": str(tmp_path)}
    assert load(env=env).origins == {}


def test_overrides_are_checked_and_win(load: Load) -> None:
    config = load("storage.replication = 5")
    changed = config.with_overrides(
        {"network.listen": ["/ip4/127.0.0.1/tcp/0"], "storage.quota": "1 GiB"}
    )
    assert changed.network.listen == ("/ip4/127.0.0.1/tcp/0",)
    assert changed.storage.quota == 1024**3
    assert changed.storage.replication == 5
    assert changed.origins["network.listen"] == "override"
    assert changed.origins["storage.replication"] == "file"
    assert config.network.listen == ("/ip4/0.0.0.0/tcp/4710",)
    with pytest.raises(ConfigError, match=r"did you mean network\.listen"):
        config.with_overrides({"network.listn": []})
    with pytest.raises(ConfigError, match=r"storage\.replication is 0"):
        config.with_overrides({"storage.replication": 0})


def test_packing_files_larger_than_a_chunk_is_refused(load: Load) -> None:
    text = 'ingest.chunk_size = "64 KiB"\ningest.pack_below = "128 KiB"'
    assert "ingest.pack_below is 128 KiB; allowed: at most ingest.chunk_size" in refusal(load, text)
    config = load('ingest.pack_below = "128 KiB"')
    with pytest.raises(ConfigError, match=r"^override: ingest.pack_below"):
        config.with_overrides({"ingest.chunk_size": "64 KiB"})


def test_a_low_mark_above_the_high_one_is_refused(load: Load) -> None:
    text = "network.connections_low = 500"
    found = "network.connections_low is 500; allowed: at most network.connections_high, 384"
    assert found in refusal(load, text)
    load(text + "\nnetwork.connections_high = 500")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3), max_leaves=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(sorted(Config.__dataclass_fields__)), VALUES), VALUES)
def test_hostile_values_raise_nothing_but_config_error(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, object], value: object
) -> None:
    config = load_config(tmp_path_factory.getbasetemp() / "none", env={})
    for key in ("storage.quota", "network.listen", "node.name", "network.keepalive_secs"):
        with contextlib.suppress(ConfigError):
            config.with_overrides({**overrides, key: value})
