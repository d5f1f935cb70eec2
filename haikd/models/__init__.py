"""The model zoo: plain Haiku functions, registered by name."""
