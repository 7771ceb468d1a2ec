"""Command lines of the peers: loopback only, both engines, the mode that the name says."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from benchmarks.contestant import Family, Site
from benchmarks.engines import INSTANT, HttpEngines
from benchmarks.peers import REQUIREMENTS, Peer, peers

ROUTERS = [peer for peer in peers() if peer.family in (Family.CACHE_AWARE, Family.ROUND_ROBIN)]


class FakeEngines:
    """Two URLs, nobody behind them."""

    urls = ("http://127.0.0.1:7001", "http://127.0.0.1:7002")


def words_of(peer: Peer, directory: Path) -> str:
    site = Site(directory, cast(HttpEngines, FakeEngines()), INSTANT)
    peer.port = 7100
    command = peer.build(peer, site)
    files = [path.read_text() for path in directory.iterdir()]
    return "\n".join([" ".join(command.words), *command.environ.values(), *files])


@pytest.mark.parametrize("peer", [peer for peer in peers() if isinstance(peer, Peer)], ids=lambda peer: peer.name)
def test_peers_listen_on_loopback_and_know_both_engines(peer: Peer, tmp_path: Path) -> None:
    words = words_of(peer, tmp_path)
    assert "127.0.0.1" in words
    assert "7100" in words
    assert "0.0.0.0" not in words
    assert words.count("7001") == words.count("7002") >= 1


@pytest.mark.parametrize("peer", ROUTERS, ids=lambda peer: peer.name)
def test_routers_run_in_the_mode_of_their_name(peer: Peer, tmp_path: Path) -> None:
    package, _, policy = peer.name.partition(" ")
    assert f"--policy {policy}" in words_of(peer, tmp_path)
    assert peer.package == package
    assert (peer.family is Family.CACHE_AWARE) == (policy == "cache_aware")


def test_versions_are_pinned() -> None:
    assert {peer.package for peer in ROUTERS} <= set(REQUIREMENTS)
    assert all("==" in requirement for requirement in REQUIREMENTS.values())
