"""Engines in a Ray cluster: one actor each, on any machine that has room for it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from scripts.mixup_search.live_merges import Answered, EngineSetup, Job, LiveMerges
from utils.errors import UserError

_ROOT = Path(__file__).resolve().parents[2]
_TRIES = 3  # for each job
_SECONDS_TO_CLOSE = 90


class RayEngines:
    """`number` actors with an engine each; models and project have the same paths on every machine.

    A lost actor or a failed engine is replaced, and its job is repeated. `address`: a cluster's, or `local`
    for one on this machine. Raises UserError if Ray is not installed, no cluster answers, or it has no room for all
    actors.
    """

    def __init__(self, address: str, number: int, setup: EngineSetup):
        try:
            import ray
            import ray.util
        except ImportError as error:
            raise UserError("--ray: Ray is not installed; run `pip install -e .[search]`, or remove --ray") from error
        self._ray = ray
        self.number = number
        # Actors start in another folder and find the project by this.
        environment = {"env_vars": {"PYTHONPATH": str(_ROOT)}}
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        try:
            ray.init(address=address, runtime_env=environment, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--ray {address}: no cluster answers there ({_short(error)}); start one, or use --ray local"
            ) from error
        try:
            resources = ray.cluster_resources()
            if setup.backend == "vllm" and setup.tensor_parallel_size is None:
                setup = replace(setup, tensor_parallel_size=_widest_split(setup, number, resources))
            needs = _needs(setup, number, resources)
        except UserError:
            ray.shutdown()
            raise
        actor = ray.remote(_Actor).options(**needs, max_restarts=-1, max_task_retries=_TRIES - 1)
        self._pool = ray.util.ActorPool([actor.remote(setup) for _ in range(number)])

    def run(self, jobs: Iterator[Job]) -> Iterator[Answered]:
        """Answer each job on a free actor."""
        all_answered = self._pool.map_unordered(
            lambda actor, job: actor.answers.options(retry_exceptions=True).remote(job), jobs
        )
        try:
            for answered in all_answered:
                if isinstance(answered, UserError):
                    raise answered
                yield from answered
        except self._ray.exceptions.RayError as error:
            raise UserError(
                f"--ray: {_TRIES} actors or engines failed at one merge ({_short(error)}); see Ray's logs, and "
                "rerun the command"
            ) from error

    def spent(self) -> str:
        return ""

    def close(self) -> None:
        closing = []
        while (actor := self._pool.pop_idle()) is not None:
            closing.append(actor.close.remote())
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(closing, timeout=_SECONDS_TO_CLOSE)
        self._ray.shutdown()


class _Actor(LiveMerges):
    def answers(self, job: Job) -> list[Answered] | UserError:
        try:
            return list(self.answer(job))
        except UserError as error:
            return error  # not raised, because Ray would try again
        except Exception:
            self.close()  # the next try starts a new engine
            raise


def _widest_split(setup: EngineSetup, number: int, resources: Mapping[str, float]) -> int:
    """GPUs per layer of each engine if the engines share the cluster's GPUs evenly."""
    from inference_llms.engines.model_loading import load_config, refusals_in_one_line, widest_split

    with refusals_in_one_line(setup.pretrained, "transformers"):
        config = load_config(setup.pretrained)
    return widest_split(config, int(resources.get("GPU", 0)) // (number * setup.pipeline_parallel_size))


def _needs(setup: EngineSetup, number: int, resources: Mapping[str, float]) -> dict[str, float]:
    """The resources that an actor reserves: a GPU or, in a cluster without GPUs, a core for each worker."""
    workers = setup.tensor_parallel_size * setup.pipeline_parallel_size if setup.backend == "vllm" else 1
    kind = "GPU" if resources.get("GPU") else "CPU"
    available = int(resources.get(kind, 0))
    if number * workers > available:
        raise UserError(
            f"--ray_engines {number}: these engines need {number * workers} {kind}s and the cluster has {available}; "
            "give fewer, or a smaller --tensor_parallel_size"
        )
    return {"num_gpus": workers, "num_cpus": 0} if kind == "GPU" else {"num_cpus": workers}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
