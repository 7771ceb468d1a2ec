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
    crowd_s: float = 0.0
    lost_weight: float = 4.0
    slots_shown: int | None = None  # of max_running, None: all
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
        waiting = int(row.report.get("waiting", 0)) if row.report is not None and is_fresh else 0
        running = min(requests - waiting, row.max_running)
        slots = min(row.max_running, row.slots_shown or row.max_running)
        decode = max(0, requests + 1 - slots) * row.service_s / slots + requests * row.crowd_s / 2
        decode += own / row.rate * (row.lost_weight + running / 16 + (requests - running) * 4)
        full = 0.0
        if row.report is not None and row.report["kv_blocks_total"] and requests:
            needed = -(-own // row.block_tokens)
            room = max(0, int(row.report["kv_blocks_total"]) - used)
            if needed > room:
                full = row.service_s * (1.0 + (needed - room) / (used or 1))
        return queued / row.rate, own / row.rate, decode, full

    def requests(self, replica: int, now_s: float) -> int:
        """Requests there, as the cost counts them."""
        row = self.replicas[replica]
        if row.report is None or now_s - row.report["now_s"] > STALE_S:
            return len(row.reservations)
        return int(row.report["requests"]) + sum(not r.is_counted for r in row.reservations)

    def is_clear(self, replica: int, own: int, now_s: float) -> bool:
        """Whether a request just reserved waits for prefill alone."""
        row = self.replicas[replica]
        requests = self.requests(replica, now_s)
        if row.report is None or now_s - row.report["now_s"] > STALE_S:
            return sum(r.tokens for r in row.reservations) <= own and requests <= row.max_running
        used = int(row.report["kv_blocks_used"]) + sum(r.blocks for r in row.reservations if not r.is_counted)
        total = int(row.report["kv_blocks_total"])
        has_room = total == 0 or used <= total
        return requests <= 1 or (not row.report.get("waiting") and requests <= row.max_running and has_room)
