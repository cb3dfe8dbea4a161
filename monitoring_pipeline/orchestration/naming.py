"""Prefixes, owners and tags of our definitions, so that they fit into any code location without warnings."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from monitoring_pipeline.compat.dagster import UnresolvedAssetJobDefinition, function_of
from monitoring_pipeline.keys import Names
from monitoring_pipeline.orchestration.recording import recording
from monitoring_pipeline.settings import DagsterSettings
from monitoring_pipeline.upkeep.lost_runs import record_process
from monitoring_pipeline.upkeep.turns import wait_for_deletion

RESOURCES = ("tracking", "spark", "lake")


def named_asset(asset: dg.AssetsDefinition, settings: DagsterSettings) -> dg.AssetsDefinition:
    """`asset`, which must define a single asset, with the prefixes, owners and tags of `settings`.

    Its dependencies must be assets of this package, because their keys get the prefix too.
    """
    names = settings.names
    (spec,) = asset.specs
    spec = spec.replace_attributes(
        key=names.key(spec.key),
        deps=[
            dg.AssetDep(names.key(dependency.asset_key), partition_mapping=dependency.partition_mapping)
            for dependency in spec.deps
        ],
        group_name=names.group(spec.group_name or "default"),
        owners=settings.owners,
        tags={**settings.tags, **spec.tags, **names.tags},
    )
    function = function_of(asset)
    takes_config = "config" in inspect.signature(function).parameters  # Dagster reads the schema from its annotation
    with beta_parameters():
        return dg.multi_asset(
            name=names.op(asset.op.name),
            specs=[spec],
            check_specs=[check.replace_key(check.key.replace_asset_key(spec.key)) for check in asset.check_specs],
            partitions_def=asset.partitions_def,
            backfill_policy=asset.backfill_policy,
            config_schema=None if takes_config else config_fields(asset),
            retry_policy=asset.op.retry_policy,
        )(our_step(names)(function))


def config_fields(asset: dg.AssetsDefinition) -> dict[str, Any] | None:
    """The fields of the asset's run configuration; None if it takes none."""
    schema = asset.op.config_schema
    field = schema.as_field() if schema else None
    return getattr(field.config_type, "fields", None) if field else None


def our_step(names: Names) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for the function of an asset or op: names its resources, and lets its run record its process.

    A run that began while a deletion is under way waits for it before each step.

    Runs with an executor of ours have recorded it already; those of other jobs in a shared code location have not.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            context = dg.OpExecutionContext.get()
            record_process(context.instance, context.run_id, names)
            wait_for_deletion(context.instance, names, context.run_id, context.log.info)
            return function(*args, **kwargs)

        return with_named_resources(names)(_in_place_of(function, call))

    return decorate


def with_named_resources(names: Names) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for a function whose parameters name our resources without prefix.

    Dagster takes a resource's key from the parameter's name, so it is shown parameters with the prefix.
    """
    key_of = {name: names.resource(name) for name in RESOURCES}
    name_of = {key: name for name, key in key_of.items()}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if names.resource_prefix is None:
            return function
        signature = inspect.signature(function, eval_str=True)

        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **{name_of.get(key, key): value for key, value in kwargs.items()})

        wrapper: Any = _in_place_of(function, call)
        wrapper.__signature__ = signature.replace(
            parameters=[
                parameter.replace(name=key_of.get(name, name)) for name, parameter in signature.parameters.items()
            ]
        )
        return wrapper

    return decorate


def _in_place_of(function: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with the name and signature of `function`, and a generator if that is one: Dagster looks at all of it."""

    def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from call(*args, **kwargs)

    return functools.wraps(function)(generate if inspect.isgeneratorfunction(function) else call)


def executor(settings: DagsterSettings) -> dg.ExecutorDefinition:
    """The executor that `[dagster] executor` names; its runs record their process."""
    named = dg.in_process_executor if settings.executor == "in_process" else dg.multiprocess_executor
    return recording(named, settings.names)


@contextmanager
def beta_parameters() -> Iterator[None]:
    """Keeps Dagster from warning that the backfill policies of our assets are a beta feature."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*backfill_policy.*", category=dg.BetaWarning)
        yield


class AssetJob(UnresolvedAssetJobDefinition):
    """An asset job as from `dg.define_asset_job`, without Dagster's warning about mixed backfill policies.

    Scorers run a few partitions at a time and tables all at once. A backfill of the job uses the smaller number, as
    intended, but Dagster warns about it each time it loads a code location.
    """

    def resolve(self, *args: Any, **kwargs: Any) -> dg.JobDefinition:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Asset job .* with varying BackfillPolicies", category=UserWarning
            )
            return super().resolve(*args, **kwargs)
