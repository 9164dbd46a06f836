"""The networks, one a file, each a Flax module with a pure `init` and pure functions of its parameters."""
