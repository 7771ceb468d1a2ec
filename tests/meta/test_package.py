"""The package's front: every promised name is there, and nothing heavy is loaded for it."""

from __future__ import annotations

import subprocess
import sys

import xinf.meta


def test_every_name_of_the_front_exists() -> None:
    for name in xinf.meta.__all__:
        assert getattr(xinf.meta, name) is not None
    assert set(xinf.meta.__all__) == {name for names in xinf.meta._MODULES.values() for name in names}


def test_contract_and_queue_load_neither_lmdb_nor_grpc() -> None:
    code = (
        "import sys; from xinf.meta import Store, KeyQueue, Mirror, Records; print({'lmdb', 'grpc'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
