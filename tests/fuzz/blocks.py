"""Random operation sequences on the block table, against its naive model."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.fuzz.target import Disagreement
from tests.model.block_pair import Operation, ids, q, random_case, run_case
from xinf._fast import residency
from xinf._fast.residency import BlockTable


class BlocksTarget:
    name = "blocks"

    def __init__(self) -> None:
        self.n_rejected = 0  # operations that ran out of memory

    def make(self, rng: random.Random) -> list[Operation]:
        return random_case(rng)

    def check(self, case: Sequence[Operation]) -> None:
        try:
            self.n_rejected += run_case(case).n_failed
        except AssertionError as error:
            raise Disagreement(str(error)) from error

    def exercise(self, case: Sequence[Operation]) -> None:
        block_tokens, max_bytes, capacity = case[0][1:]
        table, handles, now_s = BlockTable(block_tokens, max_bytes, capacity_blocks=capacity), [1], 0.0
        for name, *arguments in case[1:]:
            try:
                if name in ("register", "extend"):
                    *handle, tokens, chunks = arguments if name == "extend" else arguments[:2]
                    prompt = ids(tokens), q([chunk for chunk, _ in chunks]), ids([position for _, position in chunks])
                    if handle:
                        table.extend(handles[handle[0] % len(handles)], *prompt)
                    else:
                        handles.append(table.register(*prompt, salt=arguments[2]))
                elif name == "release":
                    table.release(handles[arguments[0] % len(handles)])
                elif name == "stored":
                    table.stored(q(arguments[0]), arguments[1], ids(arguments[2]), salt=arguments[3])
                elif name == "removed":
                    table.removed(q(arguments[0]))
                elif name == "collect":
                    now_s += arguments[0]
                    table.collect(now_s)
                elif name == "fail":
                    residency._fail_allocation(arguments[0])
                else:  # clear, take
                    getattr(table, name)()
            except MemoryError:
                pass
        residency._fail_allocation(0)
