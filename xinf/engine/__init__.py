"""The engine shim: one process that runs one engine and serves it over gRPC (`protos/engine_service.proto`).

Owns the gRPC server, Links, the adapters (`vllm`, `sim`), the guard process and the tie between an engine and its shim.
Nobody imports this package: the agent starts `python -m xinf.engine.guard SPEC.JSON` with the interpreter of an engine
environment, in which only this package, `core`, `chat`, `sim`, `link`, `_fast` and `_pb` work. vLLM is imported here
and nowhere else, and only in `vllm_*.py`.
"""

__all__: list[str] = []
