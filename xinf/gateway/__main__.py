"""`python -m xinf.gateway`: the gateway's master process, as `xinf serve` starts it."""

from __future__ import annotations

import logging
import os
import sys

from xinf.core import log
from xinf.core.config import from_environ
from xinf.core.errors import ConfigError


def main() -> int:
    """Serve what XINF_EFFECTIVE_CONFIG and XINF_META_TARGET say."""
    text, target = os.environ.get("XINF_EFFECTIVE_CONFIG"), os.environ.get("XINF_META_TARGET")
    if not text or not target:
        print("xinf.gateway: XINF_EFFECTIVE_CONFIG and XINF_META_TARGET are not set; use `xinf serve`", file=sys.stderr)  # noqa: T201
        return 2
    config = from_environ(text)
    log.configure("gateway", level=config.log_level)
    try:
        if config.gateway.front == "direct":
            from xinf.gateway import direct_master

            direct_master.serve(config, target)
        else:
            from xinf.gateway import front

            front.serve(config, target)
    except ConfigError as error:
        logging.getLogger("xinf.gateway").error(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
