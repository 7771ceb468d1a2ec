"""`python -m xinf.device` as people and our own readers call it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import Failure
from xinf.core.device import Vendor
from xinf.device import Inventory, Reading

CARD = ("0000:1b:00.0", "0x10de", "0x030200", 1)


def run(*arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "xinf.device", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)


def test_alone_it_prints_the_whole_host() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout, type=Inventory).devices[-1].vendor is Vendor.CPU


def test_inventory_of_one_vendor_below_a_root(
    make_tree: Callable[..., Path], nvml_environ: Callable[[str], Mapping[str, str]]
) -> None:
    done = run("inventory", "nvidia", str(make_tree(CARD)), environ=nvml_environ("5090"))
    assert [device.arch for device in msgspec.json.decode(done.stdout, type=Inventory).devices] == ["sm_120"]


def test_tools_that_hang_one_after_the_other_leave_the_time_to_say_so(
    make_tree: Callable[..., Path], fake_tool: FakeTools
) -> None:
    fake_tool.add("efsmi", {}, failure=Failure.HUNG)
    done = run("inventory", "enflame", str(make_tree(("0000:1b:00.0", "0x1e36", "0x120000", 0))), "0.5")
    (card,) = msgspec.json.decode(done.stdout, type=Inventory).devices
    assert "efsmi did not end within 0." in str(card.reason)
    assert "efsmi was not asked: what was asked before it took all the time" in str(card.reason)


def test_reader_ends_when_nobody_reads(
    make_tree: Callable[..., Path], nvml_environ: Callable[[str], Mapping[str, str]]
) -> None:
    command = [sys.executable, "-m", "xinf.device", "read", "nvidia", "0.05", str(make_tree(CARD))]
    with subprocess.Popen(command, env=nvml_environ("5090"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert msgspec.json.decode(process.stdout.readline(), type=Reading).samples
        process.stdout.close()
        assert process.wait(timeout=30) == 0


def test_reader_of_a_library_that_refuses_says_why_and_ends(
    make_tree: Callable[..., Path], nvml_environ: Callable[[str], Mapping[str, str]]
) -> None:
    done = run("read", "nvidia", "60", str(make_tree(CARD)), environ=nvml_environ("not_loaded"))
    (line,) = done.stdout.splitlines()
    assert "modprobe" in str(msgspec.json.decode(line, type=Reading).fault)


@pytest.mark.parametrize(
    "arguments", [("inventory",), ("read", "nvidia"), ("sample", "5"), ("inventory", "cpu", "/", "x")]
)
def test_other_words_get_the_usage(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert b"python -m xinf.device inventory VENDOR [ROOT [SECONDS]]" in done.stderr


def test_the_binding_is_not_loaded_where_there_is_no_card(make_tree: Callable[..., Path]) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from xinf.device import read_host;"
        f" asyncio.run(read_host(root=Path({str(make_tree())!r})));"
        " print(sorted({'pynvml', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_child_loads_no_other_vendor_and_nothing_that_starts_processes(make_tree: Callable[..., Path]) -> None:
    code = (
        "import sys; from xinf.device.child import print_inventory; from pathlib import Path;"
        f" print_inventory('nvidia', Path({str(make_tree(CARD))!r}), 5.0);"
        " print(sorted(name for name in sys.modules if name.startswith('xinf.device.')), file=sys.stderr);"
        " print('asyncio' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    *_, loaded, has_loop = done.stderr.splitlines()
    assert "xinf.device.nvidia" in loaded
    others = ("amd", "intel", "apple", "ascend", "cambricon", "enflame", "mthreads", "hygon", "kunlunxin")
    assert [vendor for vendor in others if f"'xinf.device.{vendor}" in loaded] == []
    assert has_loop == "False"
