"""The ledger naively: a list of requests, everything summed anew on each question."""

from __future__ import annotations

from dataclasses import dataclass, field

STALE_S = 2.0


@dataclass(eq=False)
class ModelReservation:
    replica: int
    tokens: int
    blocks: int
    submit_id: int = 0
    is_counted: bool = False


@dataclass
class ModelReplica:
    rate: float
    service_s: float
    max_running: int
    block_tokens: int
    trust: float = 1.0
    is_ready: bool = False
    report: dict[str, float] | None = None
    reservations: list[ModelReservation] = field(default_factory=list)


class LedgerModel:
    def __init__(self) -> None:
        self.replicas: dict[int, ModelReplica] = {}

    def believed(self, replica: int, prompt: int, cached: int) -> int:
        row = self.replicas[replica]
        return int(min(cached, max(prompt - 1, 0)) * row.trust) // row.block_tokens * row.block_tokens

    def reserve(self, replica: int, prompt: int, cached: int) -> ModelReservation:
        row = self.replicas[replica]
        tokens = max(1, prompt - self.believed(replica, prompt, cached))
        made = ModelReservation(replica, tokens, -(-tokens // row.block_tokens))
        row.reservations.append(made)
        return made

    def report(self, replica: int, report: dict[str, float]) -> None:
        row = self.replicas[replica]
        row.report = report
        for reservation in row.reservations:
            if 0 < reservation.submit_id <= report["last_submit"]:
                reservation.is_counted = True

    def terms(self, replica: int, prompt: int, cached: int, now_s: float) -> tuple[float, float, float, float]:
        row = self.replicas[replica]
        is_fresh = row.report is not None and now_s - row.report["now_s"] <= STALE_S
        counted = [r for r in row.reservations if not (is_fresh and r.is_counted)]
        queued = sum(r.tokens for r in counted)
        requests = len(counted)
        used = sum(r.blocks for r in counted)
        if row.report is not None and is_fresh:
            queued += int(row.report["queued_prefill_tokens"])
            requests += int(row.report["requests"])
            used += int(row.report["kv_blocks_used"])
        own = max(1, prompt - self.believed(replica, prompt, cached))
        full = 0.0
        if row.report is not None and row.report["kv_blocks_total"] and requests:
            needed = -(-own // row.block_tokens)
            room = max(0, int(row.report["kv_blocks_total"]) - used)
            if needed > room:
                full = row.service_s * (1.0 + (needed - room) / (used or 1))
        return queued / row.rate, own / row.rate, requests * row.service_s / row.max_running, full
