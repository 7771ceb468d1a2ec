"""Which of the places that fit is the best: offers as keys, the least is taken.

    kind        the accelerator that comes first in the list of kinds, the processor last
    warning     devices of which nothing is said (a row of memory to be remapped, ...) before others
    spread      fewest siblings on the node, fewest engines on the devices, devices nearest each other, model files
                there already, fewest engines on the node, tightest fit
    pack        devices nearest each other, beside others, fewest idle devices left on the node, tightest fit, model
                files there already
    name        so that equal worlds get equal plans

`spread` survives the loss of a node; `pack` leaves large places whole for those who need them. A download costs minutes
once, so local files decide among places of equal worth and nothing more.
"""

from __future__ import annotations

from xinf.core.device import Distance
from xinf.core.ids import NodeName
from xinf.core.records import DeploymentRecord, PlacementPolicy
from xinf.scheduler.claims import Tally
from xinf.scheduler.host import KIND_ORDER, Host
from xinf.scheduler.verdict import Offer

_UNKNOWN_DISTANCE = max(Distance) + 1
_UNKNOWN_SPARE = 1 << 62  # a fit that nobody knows is looser than any

Key = tuple[int, bool, int, int, int, int, int, int, NodeName]


def score(offer: Offer, deployment: DeploymentRecord, host: Host, tally: Tally) -> Key:
    """Make the key of an offer; see above."""
    kind = KIND_ORDER[offer.kind]
    distance = 0
    if len(offer.devices) > 1:
        distance = _UNKNOWN_DISTANCE if offer.distance is None else int(offer.distance)
    n_siblings = tally.n_of.get(deployment.name, 0)
    model = deployment.spec.files
    is_remote = int(model not in host.models and model not in tally.models)
    spare = _UNKNOWN_SPARE if offer.spare_bytes is None else offer.spare_bytes
    if deployment.placement is PlacementPolicy.PACK:
        fullness = (distance, int(offer.n_sharers == 0), offer.n_left, spare, is_remote, n_siblings)
        return (kind, offer.has_warning, *fullness, offer.node)
    emptiness = (n_siblings, offer.n_sharers, distance, is_remote, tally.n_replicas, spare)
    return (kind, offer.has_warning, *emptiness, offer.node)
