"""The experiment behind `bench_exact.py`: does the engine find in its prefix cache what the gateway predicts?

    templates, merges ──▶ checkpoint ──▶ stack (serve, worker, the real vLLM) ◀── client ◀── workload
                                           │ KV events                             │
                                           ▼                                       ▼
                                          tape ──────── races ───────────────▶ records ──▶ table

Real engine, real gateway and Link; the model's weights are set so that it answers with text that is known to be made of
its own tokens.
"""
