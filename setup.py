"""Which packages are shipped: `experiments/` as `seal_jax.experiments`. All other metadata is in pyproject.toml."""

from setuptools import find_packages, setup

EXPERIMENTS = ["seal_jax.experiments", *(f"seal_jax.experiments.{name}" for name in find_packages("experiments"))]

setup(
    packages=find_packages(include=["seal_jax", "seal_jax.*"]) + EXPERIMENTS,
    package_dir={"seal_jax.experiments": "experiments"},
)
