"""`python -m experiments NAME ...`: as the console script `seal-jax NAME ...`; without arguments, the list."""

import sys

from seal_jax.cli import main

sys.exit(main(sys.argv[1:], package=__package__))
