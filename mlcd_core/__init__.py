"""MLCD."""
