"""xinf: an inference platform for large language models.

A declarative control plane (`meta`, `scheduler`, `agent`) and an OpenAI-compatible data plane (`gateway`, `router`,
`engine`). `docs/guide` explains how to use it, `docs/reference` every key, metric and error; the map of the packages
is in the README. Importing this package imports nothing else.
"""

__version__ = "0.1.0"
