"""The variables that tell vLLM on which NUMA nodes of a processor it may be, as agent, probe and shim read them."""

from __future__ import annotations

# Narrows down which nodes vLLM takes, by number. Source: vLLM 0.32, utils/cpu_resource_utils.py.
VISIBLE_NODES = "CPU_VISIBLE_MEMORY_NODES"
# Who sets one of these has chosen himself. Source: vLLM 0.32, utils/ompmultiprocessing.py.
OWN_CHOICE = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_SIM_MULTI_NUMA")
