"""What of a fleet's work is repeated, naively: every mark ever seen in a set, every request in a list.

Looked for by halving, as the original does, and one mark back: one off the grid may be new where later ones are not.
"""

from __future__ import annotations

LEAST_WEIGHT, REPEATED_WEIGHT, MOST_REPEATED = 4, 16, 0.95
FADING = 1 - 1 / 256
ENOUGH = 32


class LossesModel:
    """Of all replicas of one model."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.requests: list[tuple[float, float]] = []  # tokens computed, of them repeated
        self.weight: float = LEAST_WEIGHT

    def recall(self, marks: list[int]) -> int:
        low, high = 0, len(marks)
        while low < high:
            middle = (low + high + 1) // 2
            if marks[middle - 1] in self.seen:
                low = middle
            elif middle - 1 > low and marks[middle - 2] in self.seen:
                low = middle - 1
            else:
                high = middle - 1
        return low

    def share(self) -> float:
        if len(self.requests) < ENOUGH:
            return 0.0
        weights = [FADING**age for age in range(len(self.requests))][::-1]
        own = sum(weight * own for weight, (own, _) in zip(weights, self.requests, strict=True))
        lost = sum(weight * lost for weight, (_, lost) in zip(weights, self.requests, strict=True))
        return lost / own

    def learn(self, own: float, lost: float) -> None:
        self.requests.append((own, min(max(lost, 0.0), own)))
        share = min(self.share(), MOST_REPEATED)
        weight = LEAST_WEIGHT + REPEATED_WEIGHT * share / (1 - share)
        if abs(weight - self.weight) >= 0.1 * self.weight:
            self.weight = weight
