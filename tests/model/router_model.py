"""One request's life in a router, naively: dictionaries for the index, a list of requests, everything summed anew.

It is told which replica was chosen and says what that choice must look like; `costs` says who may be chosen. Nothing is
evicted. What engines say is believed for ever: whether it comes true is not checked here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

from tests.model import scan_model
from tests.model.index_model import IndexModel
from tests.model.ledger_model import LedgerModel, ModelReplica, ModelReservation
from tests.model.losses_model import LossesModel
from tests.model.rates_model import DensityModel, RatesModel
from xinf._fast.scan import Scan

MAX_ROWS = 64
FIRST_SLOTS = 4  # what a new replica counts as having
SLOTS_PER_ANSWER = 2


def positions(ends: list[int], n_tokens: int, n_known: int, known_tokens: int) -> list[int]:
    """Straight lines through (0, 0), a known chunk and the end; at least 1, not decreasing."""
    known_bytes = ends[n_known - 1] if n_known else 0
    known_tokens = known_tokens if n_known else 0
    places = []
    for i, end in enumerate(ends):
        if i < n_known:
            start, stop = (0, 0), (known_bytes, known_tokens)
        else:
            start, stop = (known_bytes, known_tokens), (ends[-1], max(n_tokens, known_tokens))
        if end >= stop[0]:
            tokens = float(stop[1])
        else:
            tokens = start[1] + (end - start[0]) * ((stop[1] - start[1]) / (stop[0] - start[0])) + 1e-6
        places.append(max(int(tokens), places[-1] if places else 1))
    return places


@dataclass(eq=False)
class ModelChoice:
    row: int
    chosen_s: float
    prompt_tokens: int
    marks: list[int]
    ends: list[int]
    is_stream: bool
    can_learn: bool
    n_seen: int = 0
    n_hits: int = 0
    matched_tokens: int = 0
    matched_bytes: int = 0
    promised_tokens: int = 0
    predicted_cached_tokens: int = 0
    queued_tokens: int = 0
    requests: int = 0
    is_clear: bool = False
    started_s: float | None = None
    reservation: ModelReservation | None = None


@dataclass
class Prompt:
    """What is known of a request before anybody is chosen."""

    marks: list[int]
    ends: list[int]
    tokens: int
    n_seen: int = 0  # marks that were asked for before
    lengths: list[int] = field(default_factory=lambda: [0] * MAX_ROWS)
    hits: list[int] = field(default_factory=lambda: [0] * MAX_ROWS)
    told_bytes: dict[int, int] = field(default_factory=dict)  # of rows whose length is what their engines say


class RouterModel:
    """Rows are numbers that the caller gives."""

    def __init__(self, *, rate: float, service_s: float, bytes_per_token: float, uses_prefix: bool) -> None:
        self.index, self.ledger = IndexModel(), LedgerModel()
        self.losses = LossesModel()
        self.rates: dict[int, RatesModel] = {}
        self.density = DensityModel(bytes_per_token)
        self.prior = (rate, service_s)
        self.told: dict[int, set[int]] = {}  # rows whose engines say what they hold, and what
        self.told_positions: dict[int, int] = {}  # of chunks
        self.max_running: dict[int, int] = {}
        self.most_block_tokens = 1  # of any replica there was
        self.shown: dict[int, int] = {}
        self.uses_prefix = uses_prefix

    def add(self, row: int, max_running: int, block_tokens: int) -> None:
        prior = self.prior_of_peers()
        self.max_running[row] = max_running
        self.most_block_tokens = max(self.most_block_tokens, block_tokens)
        self.ledger.replicas[row] = ModelReplica(
            *prior, max_running, block_tokens, slots_shown=FIRST_SLOTS, is_ready=True, lost_weight=self.losses.weight
        )
        self.rates[row] = RatesModel(*prior, self.rates)
        self.shown[row] = FIRST_SLOTS

    def prior_of_peers(self) -> tuple[float, float]:
        speeds = [one.own_s_per_token for one in self.rates.values() if one.has_prefill]
        stays = [one.service_s for one in self.rates.values() if one.has_service]
        return (
            1 / fmean(speeds) if speeds else self.prior[0],
            sum(stays) / len(stays) if stays else self.prior[1],
        )

    def remove(self, row: int) -> None:
        del self.ledger.replicas[row], self.rates[row]
        self.index.drop(row)
        self.told.pop(row, None)

    def tell(self, row: int, added: dict[int, int], removed: list[int]) -> None:
        """An engine says what it holds now and no more; the first time, that it will say."""
        if row not in self.told:
            self.index.drop(row)
        held = self.told.setdefault(row, set())
        held |= set(added)
        held -= set(removed)
        self.told_positions |= added

    def look_up(self, body: bytes, scan: Scan, seed: int) -> Prompt:
        if not self.uses_prefix:
            return Prompt([], [], max(1, int(scan.n_text_bytes / self.density.bytes_per_token)))
        marks, ends = scan_model.marks_of(body, seed)
        lengths, hits = self.index.match(marks, MAX_ROWS)
        density = self.density.bytes_per_token
        furthest = max(hits)
        known_bytes = ends[furthest - 1] if furthest else 0
        known_tokens = self.index.positions[marks[furthest - 1]] if furthest else 0
        prompt = Prompt(marks, ends, 1, self.losses.recall(marks), lengths, hits)
        # The whole chain, chunk by chunk, for those who are told.
        chain, chain_ends = scan_model.chain_of(body, seed)
        furthest_told = 0
        for row, held in self.told.items():
            hit = max((i + 1 for i, chunk in enumerate(chain) if chunk in held), default=0)
            furthest_told = max(furthest_told, hit)
            if hit == 0:
                continue
            block_bytes = self.ledger.replicas[row].block_tokens * density
            if hits[row] and ends[hits[row] - 1] > chain_ends[hit - 1] + block_bytes:
                continue  # what is in flight goes further
            lengths[row], hits[row] = self.told_positions[chain[hit - 1]], 0
            prompt.told_bytes[row] = chain_ends[hit - 1]
        if furthest_told and chain_ends[furthest_told - 1] + self.most_block_tokens * density >= known_bytes:
            known_bytes = chain_ends[furthest_told - 1]
            known_tokens = self.told_positions[chain[furthest_told - 1]]
        n_bytes = ends[-1] if ends else 0
        known_tokens = min(known_tokens, 4 * n_bytes + (1 << 14))
        prompt.tokens = max(1, scan.n_token_ids or int(known_tokens + (n_bytes - known_bytes) / density))
        return prompt

    def costs(self, prompt: Prompt, now_s: float) -> dict[int, float]:
        return {
            row: sum(self.ledger.terms(row, prompt.tokens, prompt.lengths[row], now_s)) for row in self.ledger.replicas
        }

    def promised(self, row: int, prompt_tokens: int, held: int) -> int:
        """What of the tokens held is in whole blocks; the last one of a prompt is always computed."""
        block_tokens = self.ledger.replicas[row].block_tokens
        return min(held, prompt_tokens - 1) // block_tokens * block_tokens

    def choose(self, row: int, scan: Scan, prompt: Prompt, now_s: float) -> ModelChoice:
        replica = self.ledger.replicas[row]
        choice = ModelChoice(
            row, now_s, prompt.tokens, prompt.marks, prompt.ends, scan.stream, self.uses_prefix and scan.n == 1
        )
        held = prompt.lengths[row]
        choice.predicted_cached_tokens = self.ledger.believed(row, prompt.tokens, held)
        choice.reservation = self.ledger.reserve(row, prompt.tokens, held)
        choice.n_hits, choice.matched_tokens = prompt.hits[row], held
        choice.matched_bytes = prompt.ends[choice.n_hits - 1] if choice.n_hits else 0
        if row in prompt.told_bytes:
            choice.matched_bytes = prompt.told_bytes[row]
            choice.n_hits = sum(end <= choice.matched_bytes for end in prompt.ends)
        choice.n_seen = prompt.n_seen
        self.losses.seen |= set(prompt.marks)
        choice.promised_tokens = self.promised(row, prompt.tokens, held)
        choice.queued_tokens = round(self.ledger.terms(row, 1, 0, now_s)[0] * replica.rate)
        choice.requests = self.ledger.requests(row, now_s)
        choice.is_clear = self.ledger.is_clear(row, self.own(choice), now_s)
        if row in self.told:
            self.overlay(choice)
        else:
            self.hold(choice, prompt.tokens, choice.n_hits)
        return choice

    def overlay(self, choice: ModelChoice) -> None:
        """What the engine will be sent and has not told: on the line from what it holds to the end."""
        if choice.n_hits == len(choice.marks):
            return
        ends = [choice.matched_bytes, *choice.ends[choice.n_hits :]]
        known = (1, choice.matched_tokens) if choice.matched_bytes else (0, 0)
        places = positions(ends, choice.prompt_tokens, *known)
        self.index.insert(choice.row, choice.marks[choice.n_hits :], places[1:])

    def own(self, choice: ModelChoice) -> int:
        return max(1, choice.prompt_tokens - choice.predicted_cached_tokens)

    def start(self, choice: ModelChoice, now_s: float) -> None:
        """The first token came."""
        if choice.is_stream and choice.started_s is None:
            choice.started_s = now_s
            assert choice.reservation is not None
            choice.reservation.tokens = 0

    def hold(self, choice: ModelChoice, n_tokens: int, n_known: int) -> None:
        if not choice.marks:
            return
        places = positions(choice.ends, n_tokens, n_known, choice.matched_tokens)
        for i, mark in enumerate(choice.marks[:n_known]):
            # A replica may lack some: headers that were not among a prompt's last ones, or that a failure took out.
            places[i] = self.position_held(choice.row, mark) or places[i]
        self.index.insert(choice.row, choice.marks, places)

    def finish(
        self, choice: ModelChoice, prompt_tokens: int, cached: int, completion: int, is_ok: bool, now_s: float
    ) -> None:
        replica, rates = self.ledger.replicas[choice.row], self.rates[choice.row]
        assert choice.reservation is not None
        replica.reservations.remove(choice.reservation)
        if choice.row in self.told:
            self.index.remove(choice.row, choice.marks[choice.n_hits :])
        if prompt_tokens <= 0:
            if not is_ok:
                self.index.remove(choice.row, choice.marks[choice.n_hits :])
            return
        if not is_ok:
            return
        self.learn_speed(choice, max(1, prompt_tokens - cached), completion, now_s)
        if self.shown[choice.row] < self.max_running[choice.row]:
            self.shown[choice.row] += SLOTS_PER_ANSWER
        replica.slots_shown = self.shown[choice.row]
        if choice.can_learn:
            if choice.marks:
                self.learn_losses(choice, prompt_tokens, cached)
                self.density.learn(choice.ends[-1], prompt_tokens)
                if choice.row not in self.told:
                    self.correct(choice, prompt_tokens, replica.block_tokens)
            if choice.row not in self.told:
                rates.learn_trust(choice.promised_tokens, cached)
        for row, learnt in self.rates.items():
            shown = self.ledger.replicas[row]
            shown.rate, shown.service_s, shown.trust = learnt.prefill_tokens_per_s, learnt.service_s, learnt.trust
            shown.crowd_s = learnt.crowd_s

    def learn_losses(self, choice: ModelChoice, prompt_tokens: int, cached: int) -> None:
        seen_bytes = choice.ends[choice.n_seen - 1] if choice.n_seen else 0
        seen_tokens = seen_bytes / choice.ends[-1] * prompt_tokens
        block_tokens = self.ledger.replicas[choice.row].block_tokens
        self.losses.learn(max(1, prompt_tokens - cached), seen_tokens - cached - block_tokens)
        for replica in self.ledger.replicas.values():
            replica.lost_weight = self.losses.weight

    def learn_speed(self, choice: ModelChoice, own: int, completion: int, now_s: float) -> None:
        rates = self.rates[choice.row]
        n_points = len(rates.prefill.points)
        if choice.is_clear and (choice.started_s is not None or completion <= 1):
            first_s = (now_s if choice.started_s is None else choice.started_s) - choice.chosen_s
            others = max(0, choice.queued_tokens - self.own(choice))
            rates.learn_prefill(others + own, first_s)
        if choice.started_s is None:
            rates.learn_service(now_s - choice.chosen_s)
        else:
            rates.learn_service(now_s - choice.started_s + own / rates.prefill_tokens_per_s)
            requests = (choice.requests + self.ledger.requests(choice.row, now_s)) / 2
            rates.learn_crowd(requests, completion, now_s - choice.started_s)
        if len(rates.prefill.points) != n_points and len(rates.prefill.points) in (1, 2, 4, 8, 16, 32):
            rate, stay = self.prior_of_peers()
            for one in self.rates.values():
                one.prefill_tokens_per_s = one.prefill_tokens_per_s if one.has_prefill else rate
                one.service_s = one.service_s if one.has_service else stay

    def position_held(self, row: int, chunk: int) -> int:
        return self.index.positions[chunk] if row in self.index.holders.get(chunk, ()) else 0

    def correct(self, choice: ModelChoice, prompt_tokens: int, block_tokens: int) -> None:
        end = self.position_held(choice.row, choice.marks[-1])
        if end and abs(end - prompt_tokens) <= max(1, block_tokens // 4):
            return
        n_known = choice.n_hits
        if n_known:
            choice.matched_tokens = self.position_held(choice.row, choice.marks[n_known - 1])
            if n_known == len(choice.marks) or not 0 < choice.matched_tokens <= prompt_tokens:
                n_known = 0
        self.hold(choice, prompt_tokens, n_known)
