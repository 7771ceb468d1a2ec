"""What a load really took: kept when the replica is ready, used by the next plan."""

from __future__ import annotations

from tests.e2e.conftest import MODEL
from tests.e2e.stack import Stack, wait_until


def test_next_plan_starts_from_what_the_load_took(vllm_stack: Stack) -> None:

    def measured() -> dict[str, object] | None:
        (device,) = vllm_stack.json("plan", MODEL, "--device", "cpu")["devices"]
        plan: dict[str, object] = device["plan"]
        return plan if plan["is_measured"] else None

    plan = wait_until(measured, deadline_s=30, what="a plan that was measured")
    fixed = plan["weights_bytes"] + plan["runtime_bytes"]
    assert 128 << 20 < fixed < 4 << 30, "two processes of vLLM, without their cache"
