"""`xinf bench route` and `xinf simulate`: what is typed and what is printed. The figures are tests/bench's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.bench.odd_server import OddServer
from tests.children import command_of, living_children
from tests.cli.conftest import Control  # noqa: F401  (its fixtures)

Type = Callable[..., Result]
QUICK = ("--requests", "60", "--seed", "3", "--replicas", "3")


def rows(output: str, first: str) -> list[list[str]]:
    """The rows of the tables that begin with a word."""
    return [re.split(r"\s{2,}", line) for line in output.splitlines() if line.startswith(f"{first}  ")]


def test_simulate_prints_every_policy_and_writes_the_file(xinf: Type, tmp_path: Path) -> None:
    file = tmp_path / "route.json"
    done = xinf("simulate", *QUICK, "--pool", "50", "--repeat", "2", "--json", str(file), "--records")
    assert done.exit_code == 0, done.output
    policies = ["auto", "least_load", "prefix", "round_robin", "session"]
    found = rows(done.stdout, "chat")
    assert [row[2] for row in found] == policies * 2
    assert all(row[1] == "50" for row in found)
    assert "seed 3" in done.stdout
    assert re.search(r"\d+ requests simulated in .* per second", done.stdout)
    written = json.loads(file.read_text())
    assert written["schema"] == "xinf-route/1"
    assert len(written["results"]) == 10
    assert written["settings"]["is_simulated"] is True
    assert written["results"][0]["records"][0]["replica"].startswith("simulated-")


def test_the_same_seed_gives_the_same_figures(xinf: Type) -> None:
    one, other = (xinf("simulate", *QUICK, "--policy", "auto").stdout.rpartition("\n")[0] for _ in range(2))
    assert rows(one, "chat") == rows(other, "chat") != []


def test_trace_at_its_own_times(xinf: Type, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 100 * n, "input_length": 600, "output_length": 4, "hash_ids": [n % 3, 50 + n]} for n in range(40)
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    done = xinf("simulate", "--trace", str(trace), "--policy", "auto", "--requests", "100")
    assert done.exit_code == 0, done.output
    assert "trace: 40 requests at 10.26/s" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "best"), "there is no policy 'best'.*choose from auto, least_load"),
        (("--workload", "poems"), "there is no workload 'poems'.*choose from chat, hot-prefix"),
        (("--rate", "0"), "--rate is 0, must be above 0.*--rate 20"),
        (("--load", "0"), "--load is 0, must be above 0.*--load 0.7"),
        (("--load", "1", "--rate", "1"), "--rate and --load say the same thing.*give one of them"),
        (("--pool", "0"), "a pool of 0 % of the working set holds nothing.*--pool 7,50,150"),
        (("--pool", "much"), "--pool 'much' is not in percent"),
        (("--replicas", "0"), "a fleet of 0 replicas, must be 1 to 1000"),
        (("--trace", "nowhere.jsonl"), "cannot read the trace nowhere.jsonl.*name a JSONL file"),
        (("--workload", "trace"), "a trace file go together.*--trace"),
        (("--workload", "chat,random", "--trace", "x"), "--trace is of the workload `trace`.*leave the file out"),
        (("--scale", "0"), "the scale is 0, must be above 0"),
        (("--repeat", "0"), "0 repeats are none"),
        (("--engine-arg", "speed=3"), "the simulated engine has no argument 'speed'.*known are"),
        (("--engine-arg", "kv_blocks=2"), "the longest request needs .* an engine has 32.*--pool"),
        (("--slo", "soon"), "'soon' is not an objective"),
    ],
)
def test_errors_are_sentences_with_a_remedy(xinf: Type, arguments: tuple[str, ...], message: str) -> None:
    done = xinf("simulate", "--requests", "10", *arguments)
    assert done.exit_code == 1
    assert re.search(message, " ".join(done.stderr.split())), done.output
    assert "Traceback" not in done.output


def test_a_server_that_is_there_needs_a_rate_and_has_its_policy(xinf: Type) -> None:
    with OddServer() as server:
        done = xinf("bench", "route", "--url", server.url, "--requests", "10")
        assert "nobody knows what the server can do" in done.stderr
        done = xinf("bench", "route", "--url", server.url, "--rate", "5", "--pool", "7")
        assert "not of --url" in done.stderr
        done = xinf("bench", "route", "--url", server.url, "--rate", "100", "--requests", "12", "--workload", "random")
    assert done.exit_code == 0, done.output
    ((_, policy, *figures), _) = rows(done.stdout, "random")
    assert policy == "deployed"
    assert "12 requests at 100/s" in done.stdout
    assert figures[0] == "25.0"  # of prompt tokens: what this server says of each


@pytest.mark.timeout(120)
def test_real_run_through_a_gateway_of_its_own(xinf: Type, tmp_path: Path) -> None:
    """End to end: real processes, two engines, some three seconds of chat; nothing is left behind."""
    file = tmp_path / "route.json"
    before = living_children(os.getpid(), recursive=True)  # a stack of other tests may run beside it
    done = xinf("bench", "route", "--replicas", "2", "--rate", "20", "--requests", "40", "--seed", "3", "--pool", "100",
                "--policy", "auto", "--engine-arg", "step_ms=2", "--json", str(file), "--records")  # fmt: skip
    assert done.exit_code == 0, done.output
    ((_, _, policy, hits, *_), _) = rows(done.stdout, "chat")
    assert policy == "auto"
    assert float(hits) > 20
    written = json.loads(file.read_text())["results"][0]
    summary = written["summary"]
    assert summary["n_good"] == summary["n_planned"] == len(written["records"])
    assert summary["n_replicas"] == 2
    assert 1.0 <= summary["requests_imbalance"]["max_over_mean"] <= 2.0
    assert summary["gateway_cpu_us_per_request"] > 0
    assert summary["prediction"]["n"] == summary["n_good"]
    assert summary["cached_tokens"] == sum(record["cached_tokens"] for record in written["records"])
    after = living_children(os.getpid(), recursive=True)
    commands = [" ".join(command_of(child)) for child in after if child not in before]
    left = [command for command in commands if "xinf" in command]
    assert left == []


def test_simulated_engines_tell_what_they_are_let_to(xinf: Type, tmp_path: Path) -> None:
    file = tmp_path / "route.json"
    done = xinf(
        "simulate", *QUICK, "--policy", "auto", "--residency", "off", "--residency-delay", "5ms", "--json", str(file)
    )
    assert done.exit_code == 0, done.output
    settings = json.loads(file.read_text())["settings"]
    assert (settings["residency"], settings["residency_delay_s"]) == ("off", 0.005)
    refused = xinf("simulate", *QUICK, "--residency", "most")
    assert refused.exit_code != 0
    assert "exact, approx, off" in refused.output
