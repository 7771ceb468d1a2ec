"""The fuzzer: `make fuzz`, or `python -m tests.fuzz --seconds 60 --seed 7 --targets scanner,index`.

A supervisor builds the sanitized extensions and starts a worker with them. A case is a function of seed, target and
number, and the worker notes each number before it runs the case: after a crash the supervisor makes that case again.
What fails, by crash or by disagreement, is minimized, printed with its seed and saved as
.build/fuzz/<target>-<seed>-<number>.py; `--replay FILE` runs such a file again, under the sanitizers too.
"""

from __future__ import annotations

import argparse
import ast
import gc
import mmap
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz import sanitized
from tests.fuzz.minimize import minimized
from tests.fuzz.target import Case, Disagreement, Target

TARGETS = ("scanner", "chain", "bind", "index", "ledger", "blocks", "wire")
MAX_CASE_S = 60  # of one case: it hangs; generous, because of busy machines
TRIES_IN_PROCESS = 3000
TRIES_BY_PROCESS = 60  # of a crash, which takes the process with it
TRIES_HANGING = 8  # a minute each
N_LEAK_CASES = 40
MAX_LEAK_BYTES = 512  # caches of the interpreter that still fill


def target_of(name: str) -> Target:
    """Import late: the modules load the extensions."""
    from tests.fuzz import aligner, blocks, frames, operations, scanner

    made: dict[str, type[Target]] = {
        "scanner": scanner.ScannerTarget,
        "chain": scanner.ChainTarget,
        "bind": aligner.BindTarget,
        "index": operations.IndexTarget,
        "ledger": operations.LedgerTarget,
        "blocks": blocks.BlocksTarget,
        "wire": frames.WireTarget,
    }
    return made[name]()


def case_of(target: Target, seed: int, number: int) -> Case:
    return target.make(random.Random(f"{seed}/{target.name}/{number}"))


# ---- the worker ------------------------------------------------------------------------------------------------------


def work(names: list[str], seed: int, seconds: float, progress: Path) -> int:
    """Run all targets in turns of a tenth of a second until the time is up. Gives the exit status."""
    sanitized.load()
    with progress.open("r+b") as file:
        noted = mmap.mmap(file.fileno(), 0)
    targets = [target_of(name) for name in names]
    counts = dict.fromkeys(names, 0)
    started_s = time.monotonic()
    while time.monotonic() - started_s < seconds:
        for at, target in enumerate(targets):
            turn_s = time.monotonic()
            while time.monotonic() - turn_s < 0.1:
                number = counts[target.name]
                noted[:16] = at.to_bytes(8, "little") + number.to_bytes(8, "little")
                case = case_of(target, seed, number)
                signal.alarm(MAX_CASE_S)  # ends the process, like a crash
                try:
                    target.check(case)
                except Exception as error:  # whatever it is, the case goes with it
                    report_disagreement(target, seed, number, case, error)
                    return 1
                counts[target.name] += 1
    signal.alarm(0)
    for target in targets:
        print(f"  {target.name}: {counts[target.name]} cases, {target.n_rejected} rejected", flush=True)
        leaked = leak_of(target, seed)
        if leaked > MAX_LEAK_BYTES:
            print(f"LEAK in {target.name}, seed {seed}: the same cases keep {leaked} bytes more each time they run")
            return 1
    return 0


def leak_of(target: Target, seed: int) -> int:
    """The bytes that running the same cases once more keeps: the least of three rounds, after one to warm up."""
    cases = [case_of(target, seed, number) for number in range(N_LEAK_CASES)]
    kept = []
    for _ in range(4):
        before = sanitized.allocated_bytes() or 0
        for case in cases * 4:
            target.exercise(case)
        gc.collect()
        kept.append((sanitized.allocated_bytes() or 0) - before)
    return min(kept[1:])


def report_disagreement(target: Target, seed: int, number: int, case: Case, error: Exception) -> None:
    def fails(candidate: Case) -> bool:
        try:
            target.check(candidate)
        except Exception as other:
            return type(other) is type(error)
        return False

    smallest = minimized(case, fails, TRIES_IN_PROCESS)
    try:
        target.check(smallest)
    except Exception as last:
        error = last
    kind = "DISAGREEMENT" if isinstance(error, Disagreement) else type(error).__name__
    save(target.name, seed, number, smallest, f"{kind}: {error}")


# ---- the supervisor --------------------------------------------------------------------------------------------------


def save(name: str, seed: int, number: int, case: Case, what: str) -> Path:
    """Write a failing case down and print it."""
    sanitized.FAILURES_DIR.mkdir(parents=True, exist_ok=True)
    path = sanitized.FAILURES_DIR / f"{name}-{seed}-{number}.py"
    summary = what.replace("\n", "\n# ")
    path.write_text(f"# {summary}\nTARGET = {name!r}\nCASE = {case!r}\n")
    print(f"{name}: {what}\nseed {seed}, case {number}, minimized: {str(case)[:2000]}\nsaved: {path}", flush=True)
    return path


def supervise(names: list[str], seed: int, seconds: float) -> int:
    """Build, run a worker, and look into it if it dies. Gives the exit status."""
    print(f"fuzzing {', '.join(names)} for {seconds:.0f} s, seed {seed}", flush=True)
    sanitized.build()
    sanitized.FAILURES_DIR.mkdir(parents=True, exist_ok=True)
    progress = sanitized.FAILURES_DIR / f"progress-{seed}"
    progress.write_bytes(bytes(16))
    worker = [sys.executable, "-m", "tests.fuzz", "--worker", str(progress), "--seconds", str(seconds)]
    done = subprocess.run(
        [*worker, "--seed", str(seed), "--targets", ",".join(names)],
        cwd=sanitized.ROOT,
        env=sanitized.environment(),
        timeout=seconds * 2 + 300,
        stderr=subprocess.PIPE,
        text=True,
    )
    noted = progress.read_bytes()
    progress.unlink()
    if done.returncode in (0, 1):
        print(done.stderr, end="")
        return done.returncode
    target = target_of(names[int.from_bytes(noted[:8], "little")])
    number = int.from_bytes(noted[8:], "little")
    print(done.stderr)
    case = case_of(target, seed, number)
    is_hanging = done.returncode == -signal.SIGALRM
    tries = TRIES_HANGING if is_hanging else TRIES_BY_PROCESS
    smallest = minimized(case, lambda candidate: crashes(target.name, seed, candidate), tries)
    what = f"HANG of {MAX_CASE_S} s" if is_hanging else f"CRASH, exit status {done.returncode}"
    save(target.name, seed, number, smallest, f"{what}:\n{done.stderr[-6000:]}")
    return 1


def crashes(name: str, seed: int, case: Case) -> bool:
    path = sanitized.FAILURES_DIR / f"candidate-{seed}.py"
    path.write_text(f"TARGET = {name!r}\nCASE = {case!r}\n")
    command = [sys.executable, "-m", "tests.fuzz", "--replay", str(path)]
    done = subprocess.run(command, cwd=sanitized.ROOT, env=sanitized.environment(), capture_output=True, timeout=120)
    path.unlink()
    return done.returncode not in (0, 1)


def replay(path: Path) -> int:
    """Check one saved case; under the sanitizers when they are loaded."""
    if sanitized.allocated_bytes() is not None:
        sanitized.load()
    values = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    signal.alarm(MAX_CASE_S)
    try:
        target_of(values["TARGET"]).check(values["CASE"])
    except Disagreement as error:
        print(f"DISAGREEMENT: {error}")
        return 1
    print("no failure")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=None, help="random when left out")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--replay", type=Path, help="run a saved case")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.targets.split(",")
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if given.worker is not None:
        return work(names, given.seed, given.seconds, given.worker)
    if given.replay is not None:
        if sanitized.allocated_bytes() is not None:
            return replay(given.replay)
        sanitized.build()
        command = [sys.executable, "-m", "tests.fuzz", "--replay", str(given.replay)]
        return subprocess.run(command, cwd=sanitized.ROOT, env=sanitized.environment()).returncode
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    return supervise(names, seed, given.seconds)


if __name__ == "__main__":
    sys.exit(main())
