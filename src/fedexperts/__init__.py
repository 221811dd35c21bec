"""fedexperts: federated mixtures of experts. Sites learn together and exchange experts, never data."""

__version__ = "0.1.0"
