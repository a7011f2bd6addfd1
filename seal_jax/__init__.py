"""Self-adapting language models (SEAL, arXiv 2506.10943) in JAX. Start reading at `inner.py`."""

__version__ = "0.1.0"
