import os
import stat
import tomllib
from pathlib import Path

import pytest
from meshnode.config import SETTINGS, Setting, default_config_text, load_config, set_value
from meshnode.errors import ConfigError, StoreError


def test_the_first_value_set_makes_a_whole_file_with_the_default_uncommented(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "config.toml"
    set_value(path, "storage.quota", "50GB")
    assert path.read_text() == default_config_text().replace("# quota = 0", 'quota = "50 GB"')
    assert load_config(path.parent, env={}).storage.quota == 50 * 10**9


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.key)
def test_every_key_can_be_set_in_an_empty_and_in_a_full_file(
    tmp_path: Path, setting: Setting
) -> None:
    text = setting.kind.to_toml(setting.default).strip('"')
    for name, before in (("a", "# mine\n"), ("b", default_config_text())):
        path = tmp_path / name / "config.toml"
        path.parent.mkdir()
        path.write_text(before)
        set_value(path, setting.key, text)
        set_value(path, setting.key, text)
        assert load_config(path.parent, env={}).origins == {setting.key: "file"}


def test_comments_order_and_mode_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        '# top\n[storage]\nquota = "1 GiB"   # my disk\n\n# about chunks\n'
        "[performance.chunks]\nprefer_fast_peers = false # no\n# end\n"
    )
    path.chmod(0o640)
    set_value(path, "storage.quota", "2 GiB")
    set_value(path, "storage.replication", "2")
    set_value(path, "performance.chunks.prefer_fast_peers", "yes")
    set_value(path, "log.level", "debug")
    assert path.read_text() == (
        '# top\n[storage]\nquota = "2 GiB"   # my disk\nreplication = 2\n\n# about chunks\n'
        "[performance.chunks]\nprefer_fast_peers = true # no\n# end\n"
        '\n[log]\nlevel = "debug"\n'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["config.toml"]


@pytest.mark.parametrize(
    "before",
    [
        'performance = { chunks = { max_concurrent_uploads = 2 } }\n[node]\nname = "a"\n',
        "performance.chunks.max_concurrent_uploads = 2\n",
        '[node]\nname = """\n[performance.chunks]\n# max_concurrent_uploads = 2\n"""\n',
        "[node]\r\n[performance.chunks]\r\n# max_concurrent_uploads = 1\r\n",
        '[log]\n[performance.chunks]\n[node]\nname = "x"',
    ],
)
def test_unusual_notations_are_edited_or_refused_but_never_spoiled(
    tmp_path: Path, before: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(before.encode())
    try:
        set_value(path, "performance.chunks.max_concurrent_uploads", "7")
    except ConfigError:
        assert path.read_bytes() == before.encode()
        return
    after = tomllib.loads(path.read_bytes().decode())
    assert after["performance"]["chunks"]["max_concurrent_uploads"] == 7
    if "name" in before:
        assert after["node"] == tomllib.loads(before)["node"]


@pytest.mark.parametrize(
    ("key", "text"),
    [("storage.replication", "99"), ("storage.replicas", "2"), ("network.mdns", "maybe")],
)
def test_a_wrong_value_or_key_leaves_the_file_untouched(
    tmp_path: Path, key: str, text: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("# mine\n")
    with pytest.raises(ConfigError):
        set_value(path, key, text)
    assert path.read_text() == "# mine\n"


def test_nothing_is_written_while_the_file_has_another_mistake(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[storage]\nreplication = 99\n")
    with pytest.raises(ConfigError, match=r"storage\.replication is 99"):
        set_value(path, "node.name", "a")
    set_value(path, "storage.replication", "3")
    assert path.read_text() == "[storage]\nreplication = 3\n"


def test_a_linked_config_file_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "config.toml"
    real.write_text("")
    link.symlink_to(real)
    set_value(link, "node.name", "a")
    assert link.is_symlink()
    assert 'name = "a"' in real.read_text()


def test_a_link_that_leads_to_itself_is_a_clear_error(tmp_path: Path) -> None:
    link = tmp_path / "config.toml"
    link.symlink_to(link)
    with pytest.raises(ConfigError, match="cannot be read"):
        set_value(link, "node.name", "a")


def test_a_folder_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StoreError, ConfigError), match="file"):
        set_value(tmp_path / "file" / "config.toml", "node.name", "a")
