import tomllib
from pathlib import Path

import pytest
from meshnode.config import Config, entries, get_value, load_config, render
from meshnode.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "config.toml").write_text('storage.quota = "5 GiB"')
    env = {"MESHNODE_STORAGE_REPLICATION": "2"}
    return load_config(tmp_path, env=env).with_overrides({"node.name": 'quo"te ü'})


def test_one_value_is_found_by_its_key(config: Config) -> None:
    assert get_value(config, "storage.quota") == 5 * 1024**3
    assert get_value(config, "performance.chunks.max_concurrent_uploads") == 4


@pytest.mark.parametrize("key", ["storage", "storage.qota", "paths.home", "", "__class__.x"])
def test_what_is_no_key_is_refused(config: Config, key: str) -> None:
    with pytest.raises(ConfigError, match="there is no key"):
        get_value(config, key)


def test_rendering_tells_where_each_value_comes_from(config: Config) -> None:
    lines = {line.split(" = ")[0]: line for line in render(config).splitlines()}
    assert lines["quota"].endswith("# file")
    assert lines["replication"].endswith("# env: MESHNODE_STORAGE_REPLICATION")
    assert lines["name"].endswith("# override")
    assert lines["zone"].endswith("# default")


def test_a_rendered_configuration_reads_back_as_itself(config: Config, tmp_path: Path) -> None:
    text = render(config, origins=False)
    assert "# default" not in text
    config.paths.config_file.write_text(text)
    assert load_config(tmp_path, env={}) == config
    tomllib.loads(render(config))


def test_entries_hold_every_key_with_its_text(config: Config) -> None:
    texts = {entry.setting.key: entry.text for entry in entries(config)}
    assert texts["storage.quota"] == '"5 GiB"'
    assert texts["network.listen"] == '["/ip4/0.0.0.0/tcp/4710"]'
