"""The table itself, and the page generated from it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import meshnode
import pytest
from meshnode.config import SETTINGS, Config, Setting, default_config_text, load_config
from meshnode.config.document import document

EVERY = pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.key)


@EVERY
def test_every_default_is_allowed_and_reads_back(setting: Setting) -> None:
    notation = setting.kind.to_toml(setting.default)
    assert setting.kind.parse(tomllib.loads(f"x = {notation}")["x"]) == setting.default
    text = ",".join(setting.default) if isinstance(setting.default, tuple) else notation.strip('"')
    assert setting.kind.parse_text(text) == setting.default


@EVERY
def test_every_setting_is_explained(setting: Setting) -> None:
    assert setting.about.endswith(".")
    assert setting.why.endswith(".")
    assert setting.kind.allowed


def test_variables_are_distinct() -> None:
    assert len({setting.variable for setting in SETTINGS.values()}) == len(SETTINGS)


def test_the_chunk_section_has_exactly_the_promised_keys_and_defaults() -> None:
    section = {s.leaf: s.default for s in SETTINGS.values() if s.section == "performance.chunks"}
    assert section == {
        "max_concurrent_retrievals": 8,
        "max_concurrent_uploads": 4,
        "chunk_timeout_secs": 10,
        "retry_failed_chunks": 3,
        "prefer_fast_peers": True,
        "peer_response_timeout_secs": 5,
    }


def test_the_committed_manual_page_is_the_generated_one() -> None:
    page = Path(meshnode.__file__).parent / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == document(), (
        "run: python -m meshnode.config.document docs/configuration.md"
    )


def test_the_first_config_file_is_valid_and_changes_nothing(tmp_path: Path) -> None:
    before = load_config(tmp_path, env={})
    before.paths.config_file.write_text(default_config_text())
    after = load_config(tmp_path, env={})
    assert after == before
    assert after.origins == {}


def test_the_first_config_file_with_its_comments_removed_holds_every_default(
    tmp_path: Path,
) -> None:
    lines = default_config_text().splitlines()
    live = [line.removeprefix("# ") if " = " in line else line for line in lines]
    path = tmp_path / "config.toml"
    path.write_text("\n".join(live))
    config = load_config(tmp_path, env={})
    assert config == Config(config.paths)
    assert set(config.origins) == set(SETTINGS)


def test_the_room_loads_nothing_heavy_for_any_of_its_names() -> None:
    code = (
        "import sys\n"
        "from meshnode.config import *\n"
        "heavy = {'trio', 'libp2p', 'tomlkit', 'cryptography', 'platformdirs', 'structlog',\n"
        "         'rich', 'click', 'multiaddr', 'msgpack', 'asyncio'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.returncode == 0
