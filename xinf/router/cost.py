"""The cost of a replica for one request, in seconds. Every weight is a rate that is measured.

    queued   (prefill tokens queued in the engine + tokens we sent that its report does not count yet) / rate
    prefill  (prompt tokens - cached tokens) / rate
    decode   requests there x service / slots
    full     (1 + missing blocks / used blocks) x service, when the KV pool has no room for the uncached tokens

`rate` is the replica's prefill rate in tokens per second, learnt from the time to the first token of streams and of
one-token answers. `service` is how long a request stays, learnt from all answers: a slot of the engine is busy for
`service` seconds with each request, so `requests x service / slots` is the work there per slot. `slots` are its
`max_running`, of a new replica fewer until answers show them. It needs no constant that somebody chose, and it is what
keeps one hot prefix from piling up on one replica: what affinity can save is the prefill of the shared prefix, and as
soon as the requests there weigh more than that, another replica is cheaper. A replica with a full pool makes a request
wait until others end, or throws out requests that it must compute again: a whole `service`.

`cached tokens` are what the engine says it holds, or what the index of routed prompts says, cut to whole blocks and
never the last token; the latter times the replica's trust: the share of such predictions that its answers confirmed
(`cached_tokens` of their usage).

The sum is computed in xinf/_fast/ledger.pyx for all candidates at once; this struct is how it is shown.
"""

from __future__ import annotations

import msgspec


class CostTerms(msgspec.Struct, frozen=True):
    """The cost of one replica by cause."""

    queued_s: float
    prefill_s: float
    decode_s: float
    full_s: float

    @property
    def total_s(self) -> float:
        """What is compared."""
        return self.queued_s + self.prefill_s + self.decode_s + self.full_s
