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


def test_engines_on_a_processor_make_the_caches_that_they_were_granted(vllm_stack: Stack) -> None:
    """To the block: so the claims on the processor are what its engines take of it for their caches."""
    (device,) = vllm_stack.json("plan", MODEL, "--device", "cpu")["devices"]
    token_bytes = device["plan"]["kv_token_bytes"]
    replicas = vllm_stack.replicas(MODEL)
    assert len(replicas) == 2
    for replica in replicas:
        assert replica["need"]["kv_wanted_bytes"] is None, "it was granted"
        block_bytes = replica["block_tokens"] * token_bytes
        assert replica["kv_blocks"] == replica["need"]["kv_bytes"] // block_bytes
