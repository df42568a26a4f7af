"""Where Ray runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where Ray runs."""

    address: str | None = None
    """Ray cluster to use: 'auto', or HOST:PORT. Default: a local Ray, started quietly and stopped
    again (inside a Ray job: the job's own cluster)."""
    num_cpus: int | None = None
    """CPU cores of the local Ray. Default: all cores of this machine."""
    dashboard: bool = False
    """Start the dashboard of the local Ray on localhost."""
    autoscaling: bool = False
    """The cluster adds nodes on demand: do not refuse what its present nodes cannot hold."""
