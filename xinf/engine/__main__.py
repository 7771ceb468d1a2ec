"""`python -m xinf.engine SPEC.JSON`: one engine shim.

Thin and guarded: vLLM spawns its processes, and each of them imports this module again under another name.
"""

if __name__ == "__main__":
    import sys

    from xinf.engine.process import exit_now, main

    exit_now(main(sys.argv[1:]))
