"""What every other package speaks: records, ids, units, errors, configuration, time, log lines, device types.

Owns the vocabulary. Does no I/O at import and knows nothing of stores, networks or engines. Imports the standard
library and msgspec only, so that it loads in the gateway's and in the engine's environment alike.

Import the modules by name (`from xinf.core.errors import XinfError`); the package itself re-exports nothing, because
an engine shim that needs one error should not load the configuration parser.
"""

__all__ = ["clock", "config", "device", "errors", "ids", "log", "model", "paths", "records", "units"]
