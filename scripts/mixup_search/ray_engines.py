"""The engines of a Ray cluster: one actor each, on whichever machine has room for it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inference_llms.engine import gpu_count
from scripts.mixup_search.answering import Answered, Job, answer
from scripts.mixup_search.live_merges import EngineOptions, LiveMerges, Models
from utils.errors import UserError

_ROOT = Path(__file__).resolve().parents[2]
_LOOK_UP_EVERY = 20.0  # seconds
_MOST_TRIES = 3


class RayEngines:
    """`number` actors with an engine each; models and project lie under the same paths on every machine.

    An actor that is lost is replaced, and what it was asked is asked again. `address`: a cluster's, or `local` for one
    on this machine. Raises UserError where Ray is not installed, or there is no such cluster.
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
        self._needs = _needs(options)
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
        self._idle = [self._new_actor() for _ in range(number)]

    def run(self, jobs: Iterator[Job]) -> Iterator[Answered | None]:
        ray = self._ray
        running: dict[Any, tuple[Any, Job]] = {}
        lost: list[Job] = []
        times_lost: Counter[str] = Counter()
        while True:
            while self._idle and (job := lost.pop() if lost else next(jobs, None)) is not None:
                actor = self._idle.pop()
                running[actor.answer.remote(job)] = (actor, job)
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_UP_EVERY)
            if not done:
                yield None
                continue
            actor, job = running.pop(done[0])
            try:
                answered = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError) else error from None
            except ray.exceptions.RayError as error:
                times_lost[job.candidate.name] += 1
                if times_lost[job.candidate.name] == _MOST_TRIES:
                    raise UserError(
                        f"--ray: {_MOST_TRIES} actors were lost over {job.candidate.name} ({_short(error)}); see Ray's "
                        "logs, and type the command again"
                    ) from error
                self._idle.append(self._new_actor())
                lost.append(job)
                continue
            self._idle.append(actor)
            yield from answered

    def close(self) -> None:
        self._ray.shutdown()

    def _new_actor(self) -> Any:
        return self._ray.remote(_Actor).options(**self._needs).remote(*self._for_actors)


class _Actor:
    def __init__(self, models: Models, options: EngineOptions, role_of_task: Mapping[str, str]):
        self._live = LiveMerges(models, options)
        self._role_of_task = role_of_task

    def answer(self, job: Job) -> list[Answered]:
        return list(answer(job, self._live, self._role_of_task))


def _needs(options: EngineOptions) -> dict[str, float]:
    """What an actor reserves: the GPUs or, where there are none, the cores of its workers."""
    workers = options.tensor_parallel_size * options.pipeline_parallel_size if options.backend == "vllm" else 1
    return {"num_gpus": workers, "num_cpus": 0} if gpu_count() > 0 else {"num_cpus": workers}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
