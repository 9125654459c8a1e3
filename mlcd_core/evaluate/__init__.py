"""Evidence about features and clusters: kNN, linear probe, mean average precision, purity against chance."""

from mlcd_core.evaluate.clusters import ClassAgreement, ClusterQuality, cluster_quality, identical_embeddings
from mlcd_core.evaluate.probes import ProbeDetails, ProbeScores, probe_features
from mlcd_core.evaluate.targets import Targets

__all__ = [
    "ClassAgreement",
    "ClusterQuality",
    "ProbeDetails",
    "ProbeScores",
    "Targets",
    "cluster_quality",
    "identical_embeddings",
    "probe_features",
]
