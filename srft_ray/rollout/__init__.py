"""The rollout engines: the actor of the pool, its vLLM engine, refills and credit.

It may import `data`, `sync`, `verify` and what these may import, but not `train`; only `vllm_engine` imports
vllm.
"""
