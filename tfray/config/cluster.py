"""Where Ray runs."""

from __future__ import annotations

from dataclasses import dataclass

from tfray.config.rules import check_types, require


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where Ray runs."""

    address: str | None = None
    """Ray cluster to use: 'auto', or HOST:PORT. Default: what the environment variable RAY_ADDRESS says (inside a
    Ray job: the job's own cluster), or else a local Ray, started quietly and stopped again."""
    num_cpus: int | None = None
    """CPU cores of the local Ray. Default: all cores of this machine."""
    dashboard: bool = False
    """Start the dashboard of the local Ray on localhost; Ray then takes five seconds more to start."""
    autoscaling: bool = False
    """The cluster adds nodes on demand: do not refuse what its present nodes cannot hold."""

    def __post_init__(self) -> None:
        check_types("cluster", self)
        require(self.num_cpus is None or self.num_cpus > 0, "cluster.num_cpus", self.num_cpus, "must be positive")
