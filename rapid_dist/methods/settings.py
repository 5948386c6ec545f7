"""What a method is told: the pieces of a recipe that its stages need."""

from dataclasses import dataclass
from typing import ClassVar

from rapid_dist.data.declaration import PrivateSource, PublicSource
from rapid_dist.diffusion.denoiser import NetworkConfig
from rapid_dist.diffusion.sampler import SamplingConfig
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.settings import EvaluationConfig
from rapid_dist.privacy.settings import PrivacyConfig
from rapid_dist.private.contamination import ContaminationConfig
from rapid_dist.private.index import PrivateIndexConfig
from rapid_dist.private.settings import TrainConfig
from rapid_dist.public.adapt import AdaptConfig
from rapid_dist.public.autoencode import AutoencoderConfig
from rapid_dist.public.conditional import ConditionalConfig
from rapid_dist.public.contrast import ContrastConfig
from rapid_dist.public.pretrain import PretrainConfig
from rapid_dist.retrieval.knowledge_base import KnowledgeBaseConfig
from rapid_dist.retrieval.prior import PriorConfig


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """The query step k and the split step v. Public constants, chosen on public proxies (P10)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    query_step: int = 700
    split_step: int = 450

    def __post_init__(self) -> None:
        if not 0 < self.split_step < self.query_step:
            raise ConfigError(
                "split.split_step must lie between 0 and split.query_step, got "
                f"{self.split_step} and {self.query_step}. The private model owns the late steps."
            )


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Everything that shapes a method's result; where it runs is not among it."""

    name: str
    method: str
    seed: int
    data_root: str | None
    private: PrivateSource
    public: tuple[PublicSource, ...]
    more_references: tuple[PublicSource, ...] = ()
    reference_share: float
    network: NetworkConfig
    schedule: ScheduleConfig
    split: SplitConfig
    pretrain: PretrainConfig
    contrast: ContrastConfig
    knowledge_base: KnowledgeBaseConfig
    contamination: ContaminationConfig
    prior: PriorConfig
    autoencoder: AutoencoderConfig | None = None  # None: pixels are diffused.
    adapt: AdaptConfig
    privacy: PrivacyConfig
    train: TrainConfig
    conditional: ConditionalConfig
    private_index: PrivateIndexConfig
    sampling: SamplingConfig
    evaluation: EvaluationConfig
