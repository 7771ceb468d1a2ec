"""Charts: files that other programs can read, with something in them. Their looks were judged by eye."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.bench.test_document import made_document
from xinf.bench.chart import check_chart, draw
from xinf.bench.document import Curves, Document
from xinf.bench.load import ClosedLoop, Load, OpenLoop
from xinf.bench.record import Record
from xinf.bench.report import CURVE_SHARES
from xinf.core.errors import InvalidRequest, NotFound, Unavailable

Make = Callable[..., Record]


def curved(document: Document) -> Document:
    values = tuple(0.01 + share for share in CURVE_SHARES)
    results = tuple(
        msgspec.structs.replace(result, curves=Curves(ttft=values, tpot=values, itl=values, e2e=values))
        for result in document.results
    )
    return msgspec.structs.replace(document, results=results)


ONE: dict[Load, list[float]] = {ClosedLoop(8): [1.0, 1.2]}
RATES: dict[Load, list[float]] = {OpenLoop(rate=rate): [0.2, 0.1 * rate] for rate in (1.0, 2.0, 4.0)}


@pytest.mark.parametrize(
    ("took_s", "words"),
    [
        (ONE, {"TTFT", "ITL", "end to end", "concurrency over time", "p99"}),
        (RATES, {"p50", "p99", "offered", "answered"}),
    ],
)
def test_svg_is_xml_with_curves_and_their_names(
    tmp_path: Path, record: Make, took_s: dict[Load, list[float]], words: set[str]
) -> None:
    file = tmp_path / "chart.svg"
    draw(curved(made_document(took_s, record)), file)
    root = ET.parse(file).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert words <= texts
    lines = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if len(path.get("d", "")) > 20]
    assert len(lines) >= 6


@pytest.mark.parametrize("took_s", [ONE, RATES])
def test_png_is_a_picture_of_more_than_one_colour(
    tmp_path: Path, record: Make, took_s: dict[Load, list[float]]
) -> None:
    file = tmp_path / "chart.png"
    draw(curved(made_document(took_s, record)), file)
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1650, 1050)
    at, pixels = 8, b""
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + content) == int.from_bytes(data[at + 8 + length : at + 12 + length])
        pixels += content if kind == b"IDAT" else b""
        at += 12 + length
    assert len(set(zlib.decompress(pixels))) > 50


def test_run_without_streams_or_answers_can_be_drawn(tmp_path: Path, record: Make) -> None:
    draw(made_document(ONE, record), tmp_path / "chart.svg")  # its curves are empty
    ET.parse(tmp_path / "chart.svg")


def test_other_formats_and_places_are_refused(tmp_path: Path, record: Make) -> None:
    with pytest.raises(InvalidRequest, match=r"chart\.pdf"):
        check_chart(tmp_path / "chart.pdf")
    with pytest.raises(NotFound, match="cannot write"):
        draw(made_document(ONE, record), tmp_path / "missing" / "chart.svg")


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> None:
        assert name == "matplotlib"

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(Unavailable) as caught:
        check_chart(Path("chart.svg"))
    assert caught.value.remedy == "pip install 'xinf[bench]'"


def test_matplotlib_is_loaded_only_to_draw() -> None:
    code = "import xinf.bench, sys; print(*[m for m in ('matplotlib', 'numpy', 'uvloop') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
