"""One file an experiment: a typed config, its presets, and a `main` that reads from top to bottom."""

import importlib.util
import sys

from seal_jax.run import ends

if sys.argv[0] == "-m":  # `python -m experiments.NAME`, which imports for seconds
    ends.until_heard()
if importlib.util.find_spec("jax") is None:
    sys.exit(
        f"error: {sys.executable} has no JAX. `make demo` and `make test` install all that is needed into .venv: enter "
        "it with `source .venv/bin/activate`. Or install it here: pip install -e . (or '.[cuda13]', '.[cuda12]', "
        "'.[tpu]')"
    )
