"""Binds the core to Prefect and Ray: one file per stage, and the one procedure they all follow (``stage``)."""
