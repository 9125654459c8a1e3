"""Prefect flows and the ``mlcd`` command. Importing this package loads neither Ray nor torch."""
