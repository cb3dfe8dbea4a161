"""A scorer as other processes load it: from its settings, and only if they have the same code."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from monitoring_pipeline.errors import EngineError
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.settings import ScorerSettings, added_folders, make_importable


@dataclass(frozen=True)
class ScorerSpec:
    """What another process needs to load a scorer and to write the same rows."""

    settings: ScorerSettings
    python_path: list[str]
    digest: str
    sample_rate: float
    version: int | None

    @classmethod
    def of(cls, scorer: ConfiguredScorer) -> ScorerSpec:
        """The spec of a scorer that was loaded from settings."""
        if scorer.settings is None:
            raise ValueError(f"scorer {scorer.name!r} has no settings that another process could load it from")
        return cls(scorer.settings, added_folders(), scorer.digest, scorer.sample_rate, scorer.version)

    @functools.cached_property
    def key(self) -> str:
        """A text that is equal for equal specs."""
        fields = (self.python_path, self.digest, self.sample_rate, self.version)
        return f"{self.settings.model_dump_json()} {fields}"

    def load(self) -> ConfiguredScorer:
        """Load the scorer in this process.

        Raises:
            SettingsError: the scorer cannot be imported here.
            EngineError: this process has other code for it.
        """
        make_importable(self.python_path)
        (scorer,) = load_scorers([self.settings])
        if scorer.digest != self.digest:
            raise EngineError(f"its code there has digest {scorer.digest}, not {self.digest}; use one version of it")
        return dataclasses.replace(scorer, sample_rate=self.sample_rate, version=self.version)
