"""`xinf bench`: what is typed and what is printed. What is measured is tests/bench's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import Result

from tests.bench.odd_server import OddServer
from tests.cli.conftest import Control
from tests.cli.records import DEPLOYMENT
from tests.gateway.gateway_stack import wait_for
from xinf.core.records import DeploymentRecord

Type = Callable[..., Result]
QUICK = ("--requests", "12", "--input-len", "8", "--output-len", "4", "--concurrency", "2")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OddServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with OddServer() as made:
        yield made


def test_report_shows_what_was_done_and_found(xinf: Type, server: OddServer) -> None:
    done = xinf("bench", "serve", "--url", server.url, "--seed", "7", "--slo", "e2e=60s", *QUICK)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == f"ok at {server.url}/v1/chat/completions"  # the server's only model
    assert "seed 7" in lines[1]
    found = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines if re.search(r"\S\s{2,}\S", line))
    assert found["requests"].startswith("12 good in ")
    assert found["output tokens"] == "48 (counted from usage)"
    assert found["prefix cache hits"] == "25.0% of input tokens"
    assert "100.0% within the SLO" in found["goodput"]
    assert found["latency (ms)"].split() == ["mean", "p50", "p90", "p95", "p99", "max"]
    assert {"TTFT", "TPOT", "inter-token", "end to end"} <= found.keys()
    assert "warning: only 12 good answers" in done.stdout


def test_seed_is_printed_and_does_the_same_again(xinf: Type, server: OddServer) -> None:
    first = xinf("bench", "serve", "--url", server.url, *QUICK)
    seed = re.search(r"seed (\d+)", first.stdout)
    assert seed is not None
    xinf("bench", "serve", "--url", server.url, "--seed", seed[1], *QUICK)
    half = len(server.requests) // 2
    one, other = (sorted(str(body) for body in part) for part in (server.requests[:half], server.requests[half:]))
    assert one == other


def test_sweep_prints_a_row_for_each_rate_and_compare_reads_it(xinf: Type, server: OddServer, tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        done = xinf("bench", "serve", "--url", server.url, "--rate", "200,400", "--repeat", "3", "--requests", "10",
                    "--input-len", "8", "--output-len", "4", "--json", str(file), "--records")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert [line.split("  ")[0] for line in done.stdout.splitlines() if "req/s " in line] == [
            "200 req/s",
            "400 req/s",
        ]
    written = json.loads(files[0].read_text())
    assert written["schema"] == "xinf-bench/1"
    assert [len(result["records"]) for result in written["results"]] == [10] * 6
    done = xinf("bench", "compare", *map(str, files))
    assert done.exit_code == 0
    assert "200 req/s:" in done.stdout
    assert re.search(r"TTFT p50 .* ms", done.stdout)
    rows = json.loads(xinf("bench", "compare", *map(str, files), "--json").stdout)["rows"]
    assert all(row["ratio"] == pytest.approx(row["b"]["median"] / row["a"]["median"]) for row in rows if row["ratio"])


def test_chart_is_written(xinf: Type, server: OddServer, tmp_path: Path) -> None:
    file = tmp_path / "chart.svg"
    done = xinf("bench", "serve", "--url", server.url, "--chart", str(file), *QUICK)
    assert done.exit_code == 0, done.output
    assert f"chart: {file}" in done.stdout
    assert file.stat().st_size > 10_000


def test_key_header_and_body_reach_the_server(xinf: Type, server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    done = xinf("bench", "serve", "--url", server.url, "--header", "X-Tenant=a", "--extra-body", '{"top_k": 1}',
                "--ignore-eos", *QUICK)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert b"authorization: Bearer sk-1\r\n" in server.heads[-1]
    assert b"x-tenant: a\r\n" in server.heads[-1]
    assert server.requests[-1]["top_k"] == 1
    assert server.requests[-1]["ignore_eos"] is True


def test_names_of_vllm_are_understood(xinf: Type, server: OddServer) -> None:
    done = xinf("bench", "serve", "--base-url", server.url, "--request-rate", "inf", "--max-concurrency", "3",
                "--num-prompts", "9", "--num-warmups", "2", "--dataset-name", "random", "--random-input-len", "8",
                "--random-output-len", "4", "--goodput", "ttft:20000 e2el:30000", "--metric-percentiles", "25,75",
                "--endpoint", "/v1/chat/completions")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "9 good" in done.stdout
    assert "concurrency 3" in done.stdout
    assert re.search(r"mean +p25 +p50 +p75 +p99 +max", done.stdout)
    assert len(server.requests) == 11


def test_prompts_of_a_file_are_sent(xinf: Type, server: OddServer, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "from a file", "output_tokens": 4}\n')
    done = xinf("bench", "serve", "--url", server.url, "--file", str(file), "--requests", "3")
    assert done.exit_code == 0, done.output
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "from a file"}]
    assert "the file's 1 prompts were sent 3.0 times each" in done.stdout


def test_errors_are_listed_and_no_good_answer_is_status_1(xinf: Type, server: OddServer) -> None:
    done = xinf("bench", "serve", "--url", server.url, "--model", "429", "--warmup", "0", *QUICK)
    assert done.exit_code == 1
    assert re.search(r"^12 +status 429 +slow down$", done.stdout, flags=re.MULTILINE)


def test_the_only_deployment_is_measured_whatever_names_it_has(xinf: Type, server: OddServer, control: Control) -> None:
    control.know_gateway(server.url)
    served = replace(DEPLOYMENT, spec=replace(DEPLOYMENT.spec, served_names=("slow-not", "Org/Name")))
    control.run(control.records.create(DeploymentRecord, served.name, served))
    done = xinf("bench", "serve", *QUICK)
    assert done.exit_code == 0, done.output
    assert {request["model"] for request in server.requests} == {"slow-not"}


def test_gateway_is_found_through_the_control_process(xinf: Type, control: Control) -> None:
    done = xinf("bench", "serve", *QUICK)
    assert done.exit_code == 1
    assert "nothing answers at http://127.0.0.1:1" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--rate", "1,x"), 1, "'x' is not a number"),
        (("--rate", "0"), 1, "rate is 0"),
        (("--rate", "5", "--concurrency", "1,2"), 2, "one number"),
        (("--rate", "inf", "--duration", "1s"), 2, "say how many"),
        (("--concurrency", "0"), 1, "concurrency is 0"),
        (("--concurrency", "1.5"), 1, "not a whole number"),
        (("--arrivals", "uniform"), 2, "poisson or constant"),
        (("--arrivals", "constant", "--burstiness", "2"), 2, "shapes random arrivals"),
        (("--workload", "sharegpt"), 2, "--workload is one of"),
        (("--workload", "file"), 2, "--file go together"),
        (("--endpoint", "images"), 2, "--endpoint is one of"),
        (("--slo", "ttft=200"), 1, "has no unit"),
        (("--extra-body", "{"), 1, "is not JSON"),
        (("--header", "novalue"), 2, "is not NAME=VALUE"),
        (("--percentiles", "50,101"), 1, "no percentile 101"),
        (("--duration", "0s"), 1, "must be above 0"),
        (("--records",), 2, "name one"),
        (("--chart", "chart.pdf"), 1, ".svg or .png"),
        (("--json", "no/such/dir/a.json"), 1, "cannot write"),
        (("--file", "missing.jsonl"), 1, "cannot read the prompts"),
        (("--url", "ftp://h"), 1, "is not a base URL"),
    ],
)
def test_wrong_options_say_what_is_wrong(
    xinf: Type, server: OddServer, words: tuple[str, ...], status: int, said: str
) -> None:
    done = xinf("bench", "serve", "--url", server.url, *words)
    assert done.exit_code == status
    assert said in re.sub(r"[\s│]+", " ", done.stderr)
    assert "Traceback" not in done.stderr
    assert server.requests == []


def test_interrupt_prints_what_was_measured_and_is_status_130(server: OddServer, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    command = [sys.executable, "-m", "xinf.cli", "bench", "serve", "--url", server.url, "--model", "ok", "--input-len",
               "8", "--duration", "60s", "--concurrency", "1", "--json", str(file)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        wait_for(lambda: len(server.requests) >= 5 or process.poll() is not None, what="requests")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert re.search(r"^requests +\d+ good", out, flags=re.MULTILINE)
    assert json.loads(file.read_text())["is_interrupted"] is True
    assert "Traceback" not in err
