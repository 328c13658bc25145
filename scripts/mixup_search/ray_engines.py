"""The engines of a Ray cluster: one actor each, on whichever machine has room for it."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.mixup_search.answering import Answered, Job, answer
from scripts.mixup_search.live_merges import EngineOptions, LiveMerges, Models
from utils.errors import UserError

_ROOT = Path(__file__).resolve().parents[2]
_MOST_LOSSES = 3
_SECONDS_TO_CLOSE = 90


class RayEngines:
    """`number` actors with an engine each; models and project lie under the same paths on every machine.

    An actor that is lost, or whose engine fails, is replaced, and what it was asked is asked again. `address`: a
    cluster's, or `local` for one on this machine. Raises UserError where Ray is not installed, there is no such
    cluster, or it has no room for all actors.
    """

    def __init__(
        self, address: str, number: int, models: Models, options: EngineOptions, role_of_task: Mapping[str, str]
    ):
        try:
            import ray
        except ImportError as error:
            raise UserError("--ray: Ray is not installed; run `pip install ray`, or leave --ray out") from error
        self._ray = ray
        self.number = number
        self._for_actors = (models, options, dict(role_of_task))
        # An actor's interpreter starts elsewhere: it finds the project by this.
        environment = {"env_vars": {"PYTHONPATH": str(_ROOT)}}
        try:
            ray.init(
                address=address,
                runtime_env=environment,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--ray {address}: no cluster answers there ({_short(error)}); start one, or take --ray local"
            ) from error
        try:
            resources = ray.cluster_resources()
            if options.backend == "vllm" and options.tensor_parallel_size is None:
                options = replace(options, tensor_parallel_size=_widest_split(options, number, models, resources))
                self._for_actors = (models, options, dict(role_of_task))
            self._needs = _needs(options, number, resources)
        except UserError:
            ray.shutdown()
            raise
        self._idle = [self._new_actor() for _ in range(number)]

    def run(self, jobs: Iterator[Job]) -> Iterator[Answered]:
        ray = self._ray
        running: dict[Any, tuple[Any, Job]] = {}
        lost: list[Job] = []
        losses: Counter[str] = Counter()
        while True:
            while self._idle and (job := lost.pop() if lost else next(jobs, None)) is not None:
                actor = self._idle.pop()
                running[actor.answer.remote(job)] = (actor, job)
            if not running:
                return
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            actor, job = running.pop(done)
            try:
                answered = ray.get(done)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, UserError):
                    raise cause from None
                losses[job.candidate.name] += 1
                if losses[job.candidate.name] == _MOST_LOSSES:
                    raise UserError(
                        f"--ray: {_MOST_LOSSES} actors were lost over {job.candidate.name} ({_short(error)}); see "
                        "Ray's logs, and type the command again"
                    ) from error
                ray.kill(actor)
                self._idle.append(self._new_actor())
                lost.append(job)
                continue
            self._idle.append(actor)
            yield from answered

    def close(self) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get([actor.close.remote() for actor in self._idle], timeout=_SECONDS_TO_CLOSE)
        self._ray.shutdown()

    def _new_actor(self) -> Any:
        return self._ray.remote(_Actor).options(**self._needs).remote(*self._for_actors)


class _Actor:
    def __init__(self, models: Models, options: EngineOptions, role_of_task: Mapping[str, str]):
        self._live = LiveMerges(models, options)
        self._role_of_task = role_of_task

    def answer(self, job: Job) -> list[Answered]:
        return list(answer(job, self._live, self._role_of_task))

    def close(self) -> None:
        self._live.close()


def _widest_split(options: EngineOptions, number: int, models: Models, resources: Mapping[str, float]) -> int:
    """GPUs per layer of each engine, when the cluster's are shared evenly."""
    from inference_llms.engines.model_loading import load_config, refusals_in_one_line, widest_split

    with refusals_in_one_line(models.pretrained, "transformers"):
        config = load_config(models.pretrained)
    return widest_split(config, int(resources.get("GPU", 0)) // (number * options.pipeline_parallel_size))


def _needs(options: EngineOptions, number: int, resources: Mapping[str, float]) -> dict[str, float]:
    """What an actor reserves: the GPUs or, in a cluster without, the cores of its workers."""
    workers = options.tensor_parallel_size * options.pipeline_parallel_size if options.backend == "vllm" else 1
    kind = "GPU" if resources.get("GPU") else "CPU"
    there = int(resources.get(kind, 0))
    if number * workers > there:
        raise UserError(
            f"--ray_engines {number}: that many engines take {number * workers} {kind}s and the cluster has {there}; "
            "give fewer, or a smaller --tensor_parallel_size"
        )
    return {"num_gpus": workers, "num_cpus": 0} if kind == "GPU" else {"num_cpus": workers}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
