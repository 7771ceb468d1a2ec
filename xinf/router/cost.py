"""The cost of a replica for one request, in seconds. Every rate is measured; five weights are not.

    queued   (prefill tokens queued in the engine + tokens we sent that its report does not count yet) / rate
    prefill  own = (prompt tokens - cached tokens) / rate
    decode   until a slot is free        max(0, requests there + 1 - slots) x service / slots
             others make us slower       1/2 x requests there x crowd
             we make others slower       own x (lost + 1/16 x running there + 4 x waiting there)
    full     (1 + missing blocks / used blocks) x service, when the KV pool has no room for the uncached tokens

`queued` and `prefill` are our time to the first token, as far as prefill decides it. The rest is what a choice costs
beyond that. What we compute throws out of the cache what others would have found, and what we computed elsewhere is
there twice: a second of prefill that a hit saves is worth `lost` more. `repeated` is the share of the tokens computed
lately that had been asked for not long before (_fast/losses.pxd, ADR 0020). Those who wait there wait for our prefill,
and as many will come behind us as wait before us: 4 for each. Those who decode there wait as well, but for one token,
not for their first: 1/16. The weights were found by simulation (benchmarks/NOTES.md). Among replicas that hold the same
of a prompt `lost` says nothing, so they share it by load: that is what keeps one hot prefix from piling up.

`rate`, tokens per second, is the slope of a line: seconds to the first token over the tokens computed until then, those
queued before included, of streams and one-token answers that found a slot and blocks at once. What a first token takes
however little is computed (the step under way, the step itself) is the line's beginning and no part of the rate; where
prompts are too much alike to tell the two apart, what was known of it holds on. Points weigh less as they age, one that
stalled counts as four times what was expected, and replicas within a quarter of the mean count as equal to it.
`service` is how long a request has a slot: from its first token to its last, and its own prefill. `crowd` is how much
longer an answer takes for each request there: the slope of the time per token over the requests, times the tokens of an
answer; 1 % per request until the numbers of requests were different enough.

A replica with a full pool makes a request wait until others end, or throws out requests that it must compute again: a
whole `service`.

`cached tokens` are what the engine says it holds, or what the index of routed prompts says, cut to whole blocks and
never the last token; the latter times the replica's trust: the share of such predictions that its answers confirmed
(`cached_tokens` of their usage).

The sum is computed in xinf/_fast/ledger.pyx for all candidates at once, what is learnt in rates.pxd; this struct is how
it is shown.
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
