"""The commands of `python -m affnet_kernels`, a module each: `add_arguments` and `run`, whose docstring is its help."""
