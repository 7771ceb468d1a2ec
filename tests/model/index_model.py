"""The prefix index with dictionaries: nothing is ever evicted, every entry is there until it is taken out."""

from __future__ import annotations


class IndexModel:
    def __init__(self) -> None:
        self.holders: dict[int, set[int]] = {}  # chunk -> replicas
        self.positions: dict[int, int] = {}  # chunk -> position given last

    def insert(self, replica: int, chain: list[int], positions: list[int] | None = None) -> None:
        for i, chunk in enumerate(chain):
            self.holders.setdefault(chunk, set()).add(replica)
            self.positions[chunk] = i + 1 if positions is None else positions[i]

    def remove(self, replica: int, chain: list[int]) -> None:
        for chunk in chain:
            self.holders.get(chunk, set()).discard(replica)

    def drop(self, replica: int) -> None:
        for replicas in self.holders.values():
            replicas.discard(replica)

    def match(self, chain: list[int], n_replicas: int) -> tuple[list[int], list[int]]:
        lengths, hits = [0] * n_replicas, [0] * n_replicas
        for i, chunk in enumerate(chain):
            for replica in self.holders.get(chunk, ()):
                if replica < n_replicas and self.positions[chunk]:
                    lengths[replica], hits[replica] = self.positions[chunk], i + 1
        return lengths, hits

    def __len__(self) -> int:
        return sum(len(replicas) for replicas in self.holders.values())
