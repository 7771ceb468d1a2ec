"""`python -m xinf.cli` is `xinf`."""

from __future__ import annotations

from xinf.cli import main

if __name__ == "__main__":
    main()
