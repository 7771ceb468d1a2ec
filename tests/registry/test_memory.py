"""Memory plans: arithmetic on known models, and what must hold for any model and device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.registry.planned_models import CPU, GEMMA_9B, GIB, MIXTRAL, MODELS, QWEN_7B, QWEN_7B_AWQ, card
from xinf.core.device import Device, Vendor
from xinf.core.errors import InvalidRequest
from xinf.core.records import EngineSpec, MeasuredRecord
from xinf.registry import (
    MAX_SHARE,
    KvLayers,
    LoadOptions,
    MemoryFit,
    MemoryPlan,
    ModelFacts,
    Sockets,
    choose_options,
    context_bytes,
    fit_memory,
    is_switched,
    memory_share,
    plan_memory,
    read_model,
    runtime_bytes,
    sockets_of,
    usable_bytes,
)
from xinf.registry.loaded_weights import table_bytes

CARD_24 = card(24)
KIB, MIB = 1 << 10, 1 << 20


def options(**fields: object) -> LoadOptions:
    return replace(choose_options(EngineSpec(model="m"), CARD_24), **fields)


def planned(facts: ModelFacts = QWEN_7B, **fields: object) -> MemoryPlan:
    return plan_memory(facts, options(**fields))


def fitted(facts: ModelFacts, free_bytes: int, total_bytes: int | None = None, **fields: object) -> MemoryFit:
    wished = options(**fields)
    return fit_memory(plan_memory(facts, wished), facts, wished, free_bytes=free_bytes, total_bytes=total_bytes)


def measured(**fields: object) -> MeasuredRecord:
    made = MeasuredRecord(
        fingerprint="f", model="m", engine="vllm", device_bytes=21 * GIB, kv_bytes=4 * GIB, fixed_bytes=17 * GIB,
        has_peak=True, kv_blocks=4681, block_tokens=16,
    )  # fmt: skip
    return replace(made, **fields)


# ---- weights ------------------------------------------------------------------------------------------------------


def test_weights_of_one_device_are_those_stored() -> None:
    assert planned().weights_bytes == 15_231_233_024


def test_weights_are_split_but_for_the_norms() -> None:
    norms = (2 * 28 + 1) * 3584 * 2
    assert planned(tensor_parallel_size=4).weights_bytes == (15_231_233_024 - norms) // 4 + norms


def test_kv_heads_are_repeated_when_there_are_fewer_than_devices() -> None:
    projections = 2 * 28 * 3584 * 4 * 128 * 2
    norms = (2 * 28 + 1) * 3584 * 2
    rest = 15_231_233_024 - norms - projections
    wide = replace(QWEN_7B, intermediate_size=18944 * 7)
    plan = plan_memory(wide, options(tensor_parallel_size=28))
    assert plan.weights_bytes == pytest.approx(rest / 28 + norms + projections / 4, abs=1)
    assert plan.kv_token_bytes == 2 * 28 * 128 * 2, "one head of four on each device"


def test_float32_checkpoint_is_halved_unless_it_is_asked_for() -> None:
    stored = replace(QWEN_7B, dtype="float32", stored_dtypes={"F32": 2 * 15_231_233_024})
    assert plan_memory(stored, options()).weights_bytes == 15_231_233_024
    asked = plan_memory(stored, options(dtype="float32"))
    assert asked.weights_bytes == 2 * 15_231_233_024
    assert asked.kv_token_bytes == 2 * planned().kv_token_bytes


def test_packed_checkpoint_stays_as_it_is() -> None:
    assert plan_memory(QWEN_7B_AWQ, options()).weights_bytes == 5_570_949_120


def test_packing_on_load_halves_what_is_no_table() -> None:
    tables = 2 * 152064 * 3584 * 2
    assert planned(quantization="fp8").weights_bytes == tables + (15_231_233_024 - tables) // 2


def test_weights_without_headers_follow_from_the_count() -> None:
    bare = replace(QWEN_7B, stored_dtypes={}, weight_bytes=None)
    assert plan_memory(bare, options()).weights_bytes == 2 * 7_615_616_512


# ---- cache --------------------------------------------------------------------------------------------------------


def test_kv_is_that_of_the_longest_request_and_the_block_kept_back() -> None:
    plan = planned()
    assert plan.kv_token_bytes == 57_344
    assert plan.kv_bytes == (32768 + 16) * 57_344
    assert planned(max_model_len=1000).kv_bytes == (1008 + 16) * 57_344, "whole blocks"
    assert planned(kv_dtype="fp8").kv_token_bytes == 57_344 // 2


def test_windows_hold_no_more_than_they_see_and_one_step() -> None:
    token = 21 * 2 * 8 * 256 * 2
    plan = plan_memory(GEMMA_9B, options(max_batched_tokens=2048))
    assert plan.kv_bytes == token * 8192 + token * (4096 + 2048 + 16) + 16 * 2 * token


def test_what_the_files_do_not_tell_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="how its cache is laid out"):
        plan_memory(replace(QWEN_7B, kv=()), options())
    with pytest.raises(InvalidRequest, match="how large its weights are"):
        plan_memory(replace(QWEN_7B, stored_dtypes={}, weight_bytes=None, n_parameters=None), options())
    with pytest.raises(InvalidRequest, match="how long its context is"):
        plan_memory(replace(QWEN_7B, context_tokens=None), options())
    with pytest.raises(InvalidRequest, match="cache of q4"):
        planned(kv_dtype="q4")


@pytest.mark.parametrize(
    ("size", "words"),
    [(3, "28 attention heads cannot be split over 3"), (7, "4 KV heads can be neither split over 7")],
)
def test_split_that_does_not_divide_the_model_is_refused(size: int, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        planned(tensor_parallel_size=size)


# ---- reserve ------------------------------------------------------------------------------------------------------


def test_eager_engine_keeps_no_graphs() -> None:
    assert planned(is_eager=True).graph_bytes == 0
    # Sizes 1, 2, 4, 8 to 248 by 8, 256 to 512 by 16; those of decoding alone up to the 256 sequences.
    each = 2560 * KIB + 28 * 225 * KIB
    assert planned().graph_bytes == 128 * MIB + (51 + 35) * each
    assert planned(max_graph_tokens=1024, max_num_seqs=1024).graph_bytes == 128 * MIB + (83 + 83) * each
    assert planned(max_num_seqs=1).graph_bytes == 128 * MIB + (2 + 1) * each


def test_old_drivers_keep_more_of_graphs() -> None:
    old = choose_options(EngineSpec(model="m"), replace(CARD_24, driver="535.247.01"))
    new = choose_options(EngineSpec(model="m"), replace(CARD_24, driver="550.54.15"))
    assert (old.is_old_driver, new.is_old_driver, options().is_old_driver) == (True, False, False)
    plan = plan_memory(QWEN_7B, old)
    assert plan.graph_bytes - 128 * MIB == pytest.approx(3.35 * (planned().graph_bytes - 128 * MIB), abs=1)


def test_blackwell_of_data_centres_captures_larger_batches() -> None:
    assert choose_options(EngineSpec(model="m"), replace(CARD_24, arch="sm_100")).max_graph_tokens == 1024
    assert choose_options(EngineSpec(model="m"), replace(CARD_24, arch="sm_120")).max_graph_tokens == 512


def test_latents_and_gpt_oss_keep_more_of_graphs() -> None:
    latent = replace(QWEN_7B, kv=(KvLayers(n_layers=28, latent_size=576),))
    assert plan_memory(latent, options()).graph_bytes == 128 * MIB + 86 * (2560 * KIB + 2 * 28 * 225 * KIB)
    many = options(max_num_seqs=1024)
    gpt_oss = plan_memory(replace(QWEN_7B, architectures=("GptOssForCausalLM",)), many)
    assert gpt_oss.graph_bytes == plan_memory(QWEN_7B, replace(many, max_graph_tokens=1024)).graph_bytes


def test_more_sequences_and_larger_steps_need_more() -> None:
    few = planned(max_num_seqs=16, max_batched_tokens=2048).activation_bytes
    assert planned(max_num_seqs=1024, max_batched_tokens=8192).activation_bytes > few
    assert planned(max_num_seqs=16, max_batched_tokens=16384).activation_bytes > few


def test_experts_cost_what_a_token_passes_through() -> None:
    plan = plan_memory(MIXTRAL, options(max_num_seqs=1, max_batched_tokens=8192))
    # Two experts of 14336 columns: gate and up, and the product; beside the stream.
    assert plan.activation_bytes == pytest.approx(8192 * (5 * 4096 + 2 * 3 * 14336) * 2, rel=0.001)


def test_buffers_of_experts_stay_while_the_sampler_runs() -> None:
    plan = plan_memory(MIXTRAL, options(max_num_seqs=1024, max_batched_tokens=8192, tensor_parallel_size=2))
    buffers = 8192 * (4096 + 2 * (7168 + 14336)) * 2
    assert plan.activation_bytes == pytest.approx(1024 * 32000 * (2 + 13) + buffers, rel=0.001)


def test_runtime_of_several_devices_is_larger_where_they_have_a_switch() -> None:
    for count in (context_bytes, runtime_bytes):
        alone = count(Vendor.NVIDIA, 1)
        assert alone == count(Vendor.NVIDIA, 1, is_switched=False)
        assert alone < count(Vendor.NVIDIA, 2, is_switched=False) < count(Vendor.NVIDIA, 2, is_switched=True)
    assert context_bytes(Vendor.NVIDIA, 2) < runtime_bytes(Vendor.NVIDIA, 2)
    assert context_bytes(Vendor.CPU, 2) == runtime_bytes(Vendor.CPU, 2)


@pytest.mark.parametrize(
    ("device", "found"),
    [
        (card(80), True),
        (card(48), False),
        (card(24, name="NVIDIA GeForce RTX 4090"), False),
        (card(40, name="NVIDIA A100-SXM4-40GB"), True),
        (card(40, name="NVIDIA A100-PCIE-40GB"), False),
        (replace(card(24), memory_bytes=None), True),  # nobody says how large it is
        (CPU, False),
    ],
)
def test_large_devices_and_those_on_boards_with_a_switch_are_taken_for_linked(device: Device, found: bool) -> None:
    assert is_switched(device) is found
    assert choose_options(EngineSpec(model="m"), device).is_switched is found


def test_devices_of_intel_have_a_larger_runtime() -> None:
    assert context_bytes(Vendor.INTEL, 1) > context_bytes(Vendor.NVIDIA, 1)
    assert runtime_bytes(Vendor.INTEL, 1) - context_bytes(Vendor.INTEL, 1) >= 1.5 * GIB


def test_processor_holds_all_shares_itself() -> None:
    one = plan_memory(QWEN_7B, choose_options(EngineSpec(model="m"), CPU))
    two = plan_memory(QWEN_7B, choose_options(EngineSpec(model="m", tensor_parallel_size=2), CPU))
    assert two.weights_bytes >= one.weights_bytes
    assert two.kv_token_bytes == one.kv_token_bytes
    assert two.need.weights_bytes == two.weights_bytes, "the processor is one device"


def test_need_leaves_the_cache_of_a_processor_open_unless_somebody_sized_it() -> None:
    def of(device: Device, **fields: Any) -> MemoryPlan:
        return plan_memory(QWEN_7B, choose_options(EngineSpec(model="m", max_model_len=8192, **fields), device))

    assert planned().need.kv_wanted_bytes is None, "an accelerator's is sized by what its engine finds"
    plan = of(CPU)
    assert plan.need.kv_bytes == plan.kv_bytes
    assert plan.need.kv_wanted_bytes == 8 * 8192 * plan.kv_token_bytes
    sizes: tuple[dict[str, Any], ...] = (
        {"engine_args": {"kv_cache_memory_bytes": 40 * GIB}},
        {"env": {"VLLM_CPU_KVCACHE_SPACE": "40"}},
        {"env": {"VLLM_CPU_KVCACHE_SPACE": "20"}, "tensor_parallel_size": 2},  # of each rank
        {"env": {"VLLM_CPU_KVCACHE_SPACE": "40"}, "engine_args": {"kv-cache-memory-bytes": GIB}},
    )
    for asked in sizes:
        need = of(CPU, **asked).need
        assert (need.kv_bytes, need.kv_wanted_bytes) == (40 * GIB, None)
    for device in (CPU, card(80)):
        counted = of(device, engine_args={"num-gpu-blocks-override": 5000, "kv_cache_memory_bytes": GIB})
        block_bytes = counted.kv_token_bytes * choose_options(EngineSpec(model="m"), device).block_tokens
        assert (counted.need.kv_bytes, counted.need.kv_wanted_bytes) == (5000 * block_bytes, None)
    least = of(CPU, env={"VLLM_CPU_KVCACHE_SPACE": "0"}).need
    assert (least.kv_bytes, least.kv_wanted_bytes) == (plan.kv_bytes, None)


def test_what_a_sized_cache_leaves_of_a_device_is_no_cache() -> None:
    wished = options(max_model_len=8192, cache_bytes=4 * GIB)
    plan = plan_memory(QWEN_7B, wished)
    found = fit_memory(plan, QWEN_7B, wished, free_bytes=80 * GIB, total_bytes=80 * GIB)
    assert found.fits
    assert found.concurrency == (4 * GIB - plan.kv_spare_bytes) / (plan.kv_bytes - plan.kv_spare_bytes)
    assert plan.device_bytes == plan.fixed_bytes + 4 * GIB


# ---- measured -----------------------------------------------------------------------------------------------------


def test_measured_load_replaces_all_but_the_cache() -> None:
    plan = plan_memory(QWEN_7B, options(), measured=measured())
    assert plan.fixed_bytes == 17 * GIB
    assert plan.kv_bytes == planned().kv_bytes
    assert plan.is_measured
    assert plan.need.is_measured


def test_peak_that_was_not_measured_is_still_planned() -> None:
    plan = plan_memory(QWEN_7B, options(), measured=measured(has_peak=False))
    assert plan.fixed_bytes == 17 * GIB + planned().activation_bytes


# ---- beside a device ----------------------------------------------------------------------------------------------


def test_engine_gets_no_more_than_its_share_of_an_empty_device() -> None:
    fit = fitted(QWEN_7B, 24 * GIB, 24 * GIB)
    assert fit.usable_bytes == int(24 * GIB * MAX_SHARE) + context_bytes(Vendor.NVIDIA, 1)
    assert fit.fits
    assert fit.largest_context_tokens == 32768
    assert fit.concurrency is not None
    assert 1 < fit.concurrency < 6


def test_engine_that_is_told_a_share_gets_that_of_a_device() -> None:
    fit = fitted(QWEN_7B, 80 * GIB, 80 * GIB, device_share=0.5)
    assert fit.usable_bytes == 40 * GIB + context_bytes(Vendor.NVIDIA, 1)
    assert fit.fits
    assert not fitted(QWEN_7B, 80 * GIB, 80 * GIB, device_share=0.2).fits


def test_share_is_of_what_the_engine_s_runtime_counts() -> None:
    """H100 80GB: NVML 81559 MiB, of which the driver keeps 551, so that the probe tells 81008, CUDA's 79.11 GiB."""
    cuda, free = 81008 * MIB, 40_000 * MIB
    share = memory_share(Vendor.NVIDIA, 1, free_bytes=free, total_bytes=cuda)
    requested = share * cuda  # vLLM 0.32, `request_memory`
    assert 0 <= free - context_bytes(Vendor.NVIDIA, 1) - requested <= 1 * MIB


@pytest.mark.parametrize("runtime_gib", [61.28, 60.96])
def test_share_of_an_ascend_leaves_out_what_its_driver_keeps(runtime_gib: float) -> None:
    told, free = 64 * GIB, 40 * GIB
    share = memory_share(Vendor.ASCEND, 1, free_bytes=free, total_bytes=told)
    requested = share * runtime_gib * GIB
    assert 0 <= free - context_bytes(Vendor.ASCEND, 1) - requested <= 0.4 * GIB
    fit = fitted(QWEN_7B, told, told, vendor=Vendor.ASCEND)
    assert fit.usable_bytes - context_bytes(Vendor.ASCEND, 1) <= MAX_SHARE * runtime_gib * GIB


def test_no_context_above_the_model_s_own_is_proposed() -> None:
    fit = fitted(QWEN_7B, 78 * GIB, 80 * GIB, max_model_len=10**8)
    assert not fit.fits
    assert fit.largest_context_tokens == 32768


def test_what_does_not_fit_says_what_would() -> None:
    fit = fitted(QWEN_7B, 17 * GIB, 24 * GIB)
    assert not fit.fits
    assert fit.concurrency is None
    assert fit.largest_context_tokens is not None
    assert 0 < fit.largest_context_tokens < 32768
    nothing = fitted(QWEN_7B, 8 * GIB, 24 * GIB)
    assert nothing.largest_context_tokens is None


def test_processors_cache_is_a_few_requests() -> None:
    wished = choose_options(EngineSpec(model="m"), CPU)
    plan = plan_memory(QWEN_7B, wished)
    fit = fit_memory(plan, QWEN_7B, wished, free_bytes=512 * GIB, total_bytes=None)
    assert fit.concurrency == pytest.approx(8, abs=0.1)


# ---- for any model and device -------------------------------------------------------------------------------------

sizes = st.integers(0, 200 * GIB)
wishes = st.builds(
    options,
    max_model_len=st.one_of(st.none(), st.integers(1, 200_000)),
    max_num_seqs=st.integers(1, 1024),
    max_batched_tokens=st.integers(16, 16384),
    block_tokens=st.sampled_from([16, 32, 64]),
    is_eager=st.booleans(),
    kv_dtype=st.sampled_from(["auto", "fp8"]),
    quantization=st.sampled_from([None, "fp8"]),
    tensor_parallel_size=st.sampled_from([1, 2, 4]),
    vendor=st.sampled_from([Vendor.NVIDIA, Vendor.AMD, Vendor.CPU]),
)
hybrids = st.builds(
    lambda n_full, n_windowed, n_states, window, state: replace(
        QWEN_7B,
        kv=(
            KvLayers(n_layers=n_full, n_kv_heads=4, head_size=128),
            KvLayers(n_layers=n_windowed, n_kv_heads=4, head_size=128, window_tokens=window),
            KvLayers(n_layers=n_states, state_bytes=state),
        ),
    ),
    st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(1, 9000), st.integers(0, 1 << 20),
)  # fmt: skip
models = st.one_of(st.sampled_from(MODELS), hybrids)


@given(models, wishes)
def test_the_sum_is_the_sum(facts: ModelFacts, wished: LoadOptions) -> None:
    plan = plan_memory(facts, wished)
    parts = (plan.weights_bytes, plan.kv_bytes, plan.activation_bytes, plan.graph_bytes, plan.runtime_bytes)
    assert all(part >= 0 for part in parts)
    assert plan.device_bytes == sum(parts)
    assert plan.need.device_bytes == plan.device_bytes


@given(models, wishes, sizes, sizes)
def test_more_free_memory_never_fits_less(facts: ModelFacts, wished: LoadOptions, a: int, b: int) -> None:
    plan = plan_memory(facts, wished)
    total = 200 * GIB
    less = fit_memory(plan, facts, wished, free_bytes=min(a, b), total_bytes=total)
    more = fit_memory(plan, facts, wished, free_bytes=max(a, b), total_bytes=total)
    assert more.fits >= less.fits
    assert (more.largest_context_tokens or 0) >= (less.largest_context_tokens or 0)
    assert (more.concurrency or 0) >= (less.concurrency or 0)


@given(models, wishes, sizes)
def test_it_fits_when_the_sum_does(facts: ModelFacts, wished: LoadOptions, free: int) -> None:
    plan = plan_memory(facts, wished)
    fit = fit_memory(plan, facts, wished, free_bytes=free, total_bytes=200 * GIB)
    assert fit.fits == (plan.device_bytes <= fit.usable_bytes)
    assert fit.usable_bytes <= free
    assert (fit.concurrency is not None) == fit.fits
    assert fit.concurrency is None or fit.concurrency >= 1


@settings(max_examples=200)
@given(models, wishes, sizes)
def test_largest_context_fits_and_one_block_more_does_not(facts: ModelFacts, wished: LoadOptions, free: int) -> None:
    fit = fit_memory(plan_memory(facts, wished), facts, wished, free_bytes=free, total_bytes=200 * GIB)
    found = fit.largest_context_tokens
    longest = facts.context_tokens or fit.plan.max_model_len
    longest = max(longest, fit.plan.max_model_len) if fit.fits else longest

    def fits(n_tokens: int) -> bool:
        return plan_memory(facts, replace(wished, max_model_len=n_tokens)).device_bytes <= fit.usable_bytes

    if found is not None:
        assert fits(found)
    if found is None or found < longest:
        assert not fits(min((found or 0) + wished.block_tokens, longest))


@given(models, wishes, st.integers(1, 100_000), st.integers(1, 100_000))
def test_longer_context_never_needs_less(facts: ModelFacts, wished: LoadOptions, a: int, b: int) -> None:
    short, long = (plan_memory(facts, replace(wished, max_model_len=n)) for n in sorted((a, b)))
    assert long.device_bytes >= short.device_bytes


@given(st.sampled_from(MODELS), wishes)
def test_more_devices_never_hold_more_each(facts: ModelFacts, wished: LoadOptions) -> None:
    wished = replace(wished, vendor=Vendor.NVIDIA)
    held = [plan_memory(facts, replace(wished, tensor_parallel_size=size)).weights_bytes for size in (1, 2, 4)]
    assert held == sorted(held, reverse=True)


@given(models, wishes, sizes, st.integers(GIB, 200 * GIB), st.booleans())
def test_share_gives_the_engine_what_its_plan_counts_on(
    facts: ModelFacts, wished: LoadOptions, free: int, total: int, switched: bool
) -> None:
    """What fits by the plan has room by vLLM's own account: share x total, without the context, is enough."""
    wished = replace(wished, vendor=Vendor.NVIDIA, is_switched=switched)
    free = min(free, total)
    plan = plan_memory(facts, wished)
    fit = fit_memory(plan, facts, wished, free_bytes=free, total_bytes=total)
    size = wished.tensor_parallel_size
    share = memory_share(Vendor.NVIDIA, size, free_bytes=free, total_bytes=total, is_switched=switched)
    assert 0 < share <= MAX_SHARE
    granted = share * total
    context = context_bytes(Vendor.NVIDIA, size, is_switched=switched)
    own = plan.device_bytes - context
    if fit.fits:
        assert granted >= own - total / 100_000 - 1
    if share > 0.001:
        assert granted + context <= free


def test_share_keeps_to_a_limit() -> None:
    context = context_bytes(Vendor.NVIDIA, 1)
    share = memory_share(Vendor.NVIDIA, 1, free_bytes=80 * GIB, total_bytes=80 * GIB, limit_bytes=20 * GIB + context)
    assert share == pytest.approx(0.25, abs=1e-4)


# ---- public models ------------------------------------------------------------------------------------------------

CONFIGS = sorted((Path(__file__).parents[1] / "fixtures" / "models").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_known_model_has_a_plan(path: Path, tmp_path: Path) -> None:
    """From the config alone: weights are those that the facts compute, and the sum is of its order."""
    config = {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("_")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = read_model(str(tmp_path), environ={}, offline=True)
    assert facts.weight_bytes is not None
    plan = plan_memory(facts, choose_options(EngineSpec(model="m"), card(80, name="NVIDIA H100 80GB HBM3")))
    stored = facts.weight_bytes // 2 if facts.dtype == "float32" else facts.weight_bytes
    # Experts in MXFP4 are filled up.
    is_padded = facts.quantization is not None and facts.quantization.method == "mxfp4"
    assert plan.weights_bytes == pytest.approx(stored * (1.07 if is_padded else 1), rel=0.02 if is_padded else 0.01)
    assert 128 << 20 < plan.overhead_bytes < 9 * GIB
    if (tied := config.get("tie_word_embeddings")) is not None:
        tables = table_bytes(facts, options()) / ((facts.vocabulary_size or 1) * (facts.hidden_size or 1) * 2)
        assert tables == (1 if tied and not facts.n_experts else 2)
    split = plan_memory(facts, options(tensor_parallel_size=2)) if not (facts.n_heads or 1) % 2 else plan
    assert split.weights_bytes <= plan.weights_bytes


@given(st.integers(1, 9), st.integers(2, 8), st.integers(1, 512), st.integers(0, 4096))
def test_ranks_on_a_processor_have_no_more_than_their_nodes(n_ranks: int, n_nodes: int, gib: int, free: int) -> None:
    sockets = Sockets(n_nodes, gib * GIB)
    usable = usable_bytes(Vendor.CPU, n_ranks, free_bytes=free * GIB, total_bytes=None, sockets=sockets)
    assert usable <= min(free, min(n_ranks, n_nodes) * gib) * GIB
    assert usable == free * GIB or usable >= 0.9 * min(n_ranks, n_nodes) * gib * GIB


@pytest.mark.parametrize(
    "extra", [{}, {"numa_nodes": 2}, {"numa_nodes": 1, "numa_memory_bytes": GIB}, {"numa_memory_bytes": GIB}]
)
def test_one_node_or_none_that_is_known_is_the_memory(extra: dict[str, str | int]) -> None:
    assert sockets_of(replace(CPU, extra=extra)) is None
