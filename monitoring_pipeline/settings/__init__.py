"""Settings: monitoring.toml over environment variables over defaults, as one typed value.

The file is the one passed, else the one that MONITORING_CONFIG names, else ./monitoring.toml if it exists. A setting
may also come from the environment, as MONITORING_<SECTION>__<KEY>; MLFLOW_TRACKING_URI and SPARK_REMOTE work too.
Relative paths start from the folder of the file, or from the working folder without a file.
"""

from monitoring_pipeline.settings.alerts import AlertSettings, NotifierSettings, NotifySettings, ScopeSettings
from monitoring_pipeline.settings.datasets import DatasetSettings
from monitoring_pipeline.settings.importing import added_folders, make_importable
from monitoring_pipeline.settings.loading import Settings, config_folder, config_path, load_settings
from monitoring_pipeline.settings.problems import without_password
from monitoring_pipeline.settings.redaction import RedactSettings
from monitoring_pipeline.settings.sections import (
    EMBEDDED_STORE,
    SHIPPED_SCORERS,
    ArchiveSettings,
    AutomationSettings,
    BackfillSettings,
    DagsterSettings,
    DatabricksSettings,
    LakeSettings,
    MlflowSettings,
    PythonSettings,
    ReportSettings,
    ScorerSettings,
    ScoringSettings,
    SensorSettings,
    SparkSettings,
    in_catalog,
)
from monitoring_pipeline.settings.upkeep import UpkeepSettings

__all__ = [
    "EMBEDDED_STORE",
    "SHIPPED_SCORERS",
    "AlertSettings",
    "ArchiveSettings",
    "AutomationSettings",
    "BackfillSettings",
    "DagsterSettings",
    "DatabricksSettings",
    "DatasetSettings",
    "LakeSettings",
    "MlflowSettings",
    "NotifierSettings",
    "NotifySettings",
    "PythonSettings",
    "RedactSettings",
    "ReportSettings",
    "ScopeSettings",
    "ScorerSettings",
    "ScoringSettings",
    "SensorSettings",
    "Settings",
    "SparkSettings",
    "UpkeepSettings",
    "added_folders",
    "config_folder",
    "config_path",
    "in_catalog",
    "load_settings",
    "make_importable",
    "without_password",
]
