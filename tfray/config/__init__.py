"""Every setting of tfray: one frozen dataclass a stage, one job dataclass a command.

The text under a field is its help on the command line; each setting is said once, here.
"""

from tfray.config.batches import BatchesConfig
from tfray.config.cluster import ClusterConfig
from tfray.config.corpus import SPLITS, CleanConfig, CorpusConfig, PartConfig, TextConfig, TokensConfig
from tfray.config.inference import GenerationConfig, InferenceConfig
from tfray.config.jobs import DemoJob, EvaluateJob, InspectJob, PredictJob, RunJob, StatusJob, TokenizeJob, TrainJob
from tfray.config.model import ModelConfig
from tfray.config.rules import Paths, as_list, require
from tfray.config.training import TrainingConfig, WorkerRange, check_lanes

__all__ = [
    "SPLITS",
    "BatchesConfig",
    "CleanConfig",
    "ClusterConfig",
    "CorpusConfig",
    "DemoJob",
    "EvaluateJob",
    "GenerationConfig",
    "InferenceConfig",
    "InspectJob",
    "ModelConfig",
    "PartConfig",
    "Paths",
    "PredictJob",
    "RunJob",
    "StatusJob",
    "TextConfig",
    "TokenizeJob",
    "TokensConfig",
    "TrainJob",
    "TrainingConfig",
    "WorkerRange",
    "as_list",
    "check_lanes",
    "require",
]
