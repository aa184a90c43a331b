"""
The hub's cache is read as the hub's own library lays it out.
"""

import os
from pathlib import Path

import pytest

from proxy.upstream.hub_cache import cache_folder, config_of


def downloaded(hub: Path, name: str, commit: str, *, main: bool = False) -> Path:
    """A model in the cache: a link from the snapshot to the content, as the library makes it."""
    model = hub / f"models--{name.replace('/', '--')}"
    snapshot, blob = model / "snapshots" / commit, model / "blobs" / f"blob-{commit}"
    for folder in (snapshot, blob.parent, model / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to(Path("../../blobs") / blob.name)
    if main:
        (model / "refs" / "main").write_text(commit)
    return snapshot / "config.json"


def test_what_main_was_is_taken(tmp_path: Path) -> None:
    """
    Of several downloads the one that the reference names, however old.
    """
    wanted = downloaded(tmp_path, "meta-llama/Llama-3.1-8B-Instruct", "aaa", main=True)
    os.utime(wanted, (1, 1))
    downloaded(tmp_path, "meta-llama/Llama-3.1-8B-Instruct", "bbb")

    assert wanted == config_of("meta-llama/Llama-3.1-8B-Instruct", {"HF_HUB_CACHE": str(tmp_path)})


def test_without_a_reference_the_latest_download_is_taken(tmp_path: Path) -> None:
    """
    A model that was downloaded at a commit, or one whose reference leads nowhere.
    """
    old = downloaded(tmp_path, "gpt2", "aaa")
    os.utime(old, (1, 1))
    latest = downloaded(tmp_path, "gpt2", "bbb")
    (tmp_path / "models--gpt2" / "refs" / "main").write_text("gone")

    assert latest == config_of("gpt2", {"HF_HUB_CACHE": str(tmp_path)})


@pytest.mark.parametrize("name", ["nobody/knows", "", "/etc", "../../etc", "a/b/c", "tiny", "owner/.."])
def test_what_is_not_there_is_none(tmp_path: Path, name: str) -> None:
    """
    Nor does a name lead out of the cache.
    """
    downloaded(tmp_path, "other/model", "aaa", main=True)

    assert config_of(name, {"HF_HUB_CACHE": str(tmp_path)}) is None


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HF_HUB_CACHE": "/cache", "HF_HOME": "/home"}, "/cache"),
        ({"HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"}, "/hf/hub"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/huggingface/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_variables_say(environment: dict[str, str], folder: str) -> None:
    """
    HF_HUB_CACHE goes before HF_HOME, which goes before XDG_CACHE_HOME.
    """
    assert Path(folder).expanduser() == cache_folder(environment)
