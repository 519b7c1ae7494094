"""The training loop: one page of plain torch for every network.

A step depends on (seed, step) alone: the order of the images, their augmentation and the dropout
masks are drawn from generators keyed by these. So a resumed training equals an uninterrupted one,
and several processes compute the step that one process would.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import ArtifactError, ConfigError, DataError
from ...runtime.io.progress import Progress, ProgressTask
from ..backbones.layers import set_dropout_context
from ..backbones.parameters import parameter_groups
from ..recipe.sections import TrainSettings
from . import distributed
from .checkpoint import (
    load_checkpoint,
    load_into,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from .metrics import MetricsWriter

Batch = dict[str, Tensor]
Sample = Mapping[str, NDArray[np.generic]]

CHECKPOINT_SECONDS = 30.0
MAX_SAVE_SHARE = 0.05
"""Share of the time that resume files may take where they are slow to write."""
LOADER_THREADS = 4


def _means(sums: Tensor, counts: Tensor) -> Tensor:
    return sums / counts.clamp(min=1)


@dataclass(frozen=True)
class Objective:
    """What a network learns.

    Attributes:
        network: takes the batch's `image` inside `terms`.
        num_samples: images of one epoch.
        sample: (index, generator) -> arrays of one sample, equal keys and shapes for all.
        terms: (network, batch of this process) -> (sums, counts), 1-D tensors: the loss terms
            summed over whatever they count (images, pairs, pixels), and those counts.
        loss: (sums, counts of the whole batch) -> scalar. It must be linear in the sums, so that
            the gradients of several processes add up to those of one.
        names: what the terms are called in the metrics; () where there are too many to record.
        figures: (sums, counts of the whole batch) -> one value a name; by default sums / counts.
        order: generator of an epoch -> indices of its samples, of which the first whole batches are
            taken, at least `num_samples`; by default each once, shuffled.
        group_size: so many samples of the order, one after the other, stay in one process.
    """

    network: nn.Module
    num_samples: int
    sample: Callable[[int, np.random.Generator], Sample]
    terms: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    names: tuple[str, ...]
    figures: Callable[[Tensor, Tensor], Tensor] = _means
    order: Callable[[np.random.Generator], NDArray[np.int64]] | None = None
    group_size: int = 1


def train(
    objective: Objective,
    settings: TrainSettings,
    folder: Path,
    *,
    seed: int,
    identity: str,
    device: torch.device,
    progress: Progress,
    name: str,
    validate: Callable[[], dict[str, float]] | None = None,
    prepare: Callable[[int], None] | None = None,
) -> None:
    """Train the objective's network in place, continuing where a killed run stopped.

    Args:
        folder: gets `metrics.jsonl` and, while the training runs, `resume.safetensors`.
        identity: digest of everything that shapes the result; a resume file of another identity
            is ignored.
        validate: figures measured after each epoch, on the main process.
        prepare: called with the number of an epoch, from 0, on all processes and with the network
            in evaluation mode, before any sample of the epoch is read. The network at that point is
            kept: a training that is killed from here on calls this again with the same network, or
            goes on behind it with what this has left.

    Raises:
        ConfigError: batch larger than the data, or not divisible by the number of processes.
        DataError: the loss is not finite; names the step.
    """
    steps_per_epoch = objective.num_samples // settings.batch_size
    if steps_per_epoch == 0:
        raise ConfigError(
            f"{name}.train.batch_size is {settings.batch_size}, but there are only "
            f"{objective.num_samples} images to train on: choose at most {objective.num_samples}"
        )
    total = steps_per_epoch * settings.epochs
    network = objective.network.to(device)
    optimizer = build_optimizer(network, settings)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    resume_path = folder / "resume.safetensors"
    first = _resume(resume_path, network, optimizer, identity)
    distributed.barrier()
    wrapped = _wrap(network, device)
    rows = distributed.own_rows(settings.batch_size, objective.group_size)
    last_saved = time.monotonic()
    save_cost = 0.0
    network.train()
    metrics = MetricsWriter(folder, first) if distributed.is_main() else None
    with (
        progress.task(name, total, done=first) as task,
        ThreadPoolExecutor(LOADER_THREADS) as pool,
    ):
        batches = partial(_batches, objective, settings, seed, rows=rows, pool=pool, device=device)
        steps = batches(first, total)
        if prepare is not None:
            steps = _by_epochs(batches, prepare, network, first, total, steps_per_epoch)
        for step, batch in steps:
            scheduled = settings.schedule_step(step, steps_per_epoch)
            for group, base in zip(optimizer.param_groups, base_rates, strict=True):
                last = settings.epochs_of(group["is_new"]) * steps_per_epoch
                group["lr"] = base * poly_factor(scheduled, last, settings.poly_power)
            set_dropout_context(network, seed, step, settings.batch_size, rows.start)
            figures = _step(objective, wrapped, optimizer, batch, settings, device)
            if not math.isfinite(figures["loss"]):
                raise DataError(
                    f"{name}: the loss is {figures['loss']} at step {step + 1}: lower "
                    f"{name}.train.learning_rate ({settings.learning_rate:g}) or look at the data"
                )
            done = step + 1
            is_epoch_end = done % steps_per_epoch == 0
            if validate is not None and distributed.is_main() and is_epoch_end:
                network.eval()
                figures |= validate()
                network.train()
            rate = settings.learning_rate * poly_factor(scheduled, total, settings.poly_power)
            _record(metrics, task, done, steps_per_epoch, figures, rate)
            elapsed = time.monotonic() - last_saved
            is_due = elapsed > max(CHECKPOINT_SECONDS, save_cost / MAX_SAVE_SHARE)
            if distributed.is_main() and (is_due or (is_epoch_end and prepare is not None)):
                started = time.monotonic()
                _save_resume(resume_path, network, optimizer, identity, done)
                last_saved = time.monotonic()
                save_cost = last_saved - started
    network.eval()


def finish(folder: Path) -> None:
    """Forget the resume file once the stage's weights are written."""
    (folder / "resume.safetensors").unlink(missing_ok=True)


def poly_factor(step: int, total: int, power: float) -> float:
    """Learning-rate factor of a step counted from 0: (1 - step / total) ** power, 0 behind them."""
    return float(max(0.0, 1 - step / total) ** power)


def build_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Optimiser with the four groups of the Ahn repositories.

    Pretrained weights learn at the base rate, new layers at `new_layer_factor` times that; biases
    as weights, without decay, or at twice their rate and without decay.
    """
    decay = settings.weight_decay
    times = 2.0 if settings.biases == "doubled" else 1.0
    bias_decay = decay if settings.biases == "alike" else 0.0
    factors = {
        "pretrained_weights": (1.0, decay),
        "pretrained_biases": (times, bias_decay),
        "new_weights": (settings.new_layer_factor, decay),
        "new_biases": (times * settings.new_layer_factor, bias_decay),
    }
    groups = [
        {
            "params": parameters,
            "lr": settings.learning_rate * factor,
            "weight_decay": decay,
            "is_new": key.startswith("new"),
        }
        for key, parameters in parameter_groups(network).items()
        if parameters
        for factor, decay in [factors[key]]
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=settings.momentum)


def _wrap(network: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return network
    ids = [device.index] if device.type == "cuda" else None
    # static_graph: layers beyond the last tap of a backbone stay unused in every step.
    return DistributedDataParallel(
        network, device_ids=ids, broadcast_buffers=False, static_graph=True
    )


def _step(
    objective: Objective,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: TrainSettings,
    device: torch.device,
) -> dict[str, float]:
    optimizer.zero_grad(set_to_none=True)
    with autocast(settings.precision, device):
        sums, counts = objective.terms(network, batch)
    sums = sums.float()
    counts = distributed.sum_over_processes(counts)
    # DDP averages gradients over the processes; the loss is a sum over them.
    loss = objective.loss(sums, counts) * distributed.world_size()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    total_sums = distributed.sum_over_processes(sums)
    values = objective.figures(total_sums, counts).tolist() if objective.names else []
    figures = dict(zip(objective.names, values, strict=True))
    return {"loss": float(objective.loss(total_sums, counts)), **figures}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision context: bfloat16 where asked for, or on a GPU by default."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _batches(
    objective: Objective,
    settings: TrainSettings,
    seed: int,
    first: int,
    total: int,
    *,
    rows: slice,
    pool: ThreadPoolExecutor,
    device: torch.device,
) -> Iterator[tuple[int, Batch]]:
    """Batches of the steps from `first` to before `total`, read two steps ahead by threads."""
    pending: list[list[Future[Sample]]] = []
    upcoming = iter(range(first, total))
    steps_per_epoch = objective.num_samples // settings.batch_size
    epoch, order = -1, np.empty(0, np.int64)
    for step in range(first, total):
        while len(pending) < 3 and (ahead := next(upcoming, None)) is not None:
            if ahead // steps_per_epoch != epoch:
                epoch = ahead // steps_per_epoch
                order = _epoch_order(objective, seed, epoch)
            start = ahead % steps_per_epoch * settings.batch_size
            indices = order[start : start + settings.batch_size]
            pending.append(
                [
                    pool.submit(objective.sample, int(indices[row]), _generator(seed, ahead, row))
                    for row in range(rows.start, rows.stop)
                ]
            )
        samples = [future.result() for future in pending.pop(0)]
        yield step, _collate(samples, device)


def _by_epochs(
    batches: Callable[[int, int], Iterator[tuple[int, Batch]]],
    prepare: Callable[[int], None],
    network: nn.Module,
    first: int,
    total: int,
    steps_per_epoch: int,
) -> Iterator[tuple[int, Batch]]:
    """Batches as `_batches` gives them, each epoch's behind its preparation."""
    while first < total:
        epoch = first // steps_per_epoch
        network.eval()
        prepare(epoch)
        network.train()
        last = (epoch + 1) * steps_per_epoch
        yield from batches(first, last)
        first = last


def _epoch_order(objective: Objective, seed: int, epoch: int) -> NDArray[np.int64]:
    """Sample indices of an epoch; what its whole batches leave over is not used."""
    generator = np.random.default_rng([seed, 1, epoch])
    if objective.order is None:
        return generator.permutation(objective.num_samples)
    return objective.order(generator)


def _generator(seed: int, step: int, row: int) -> np.random.Generator:
    return np.random.default_rng([seed, 2, step, row])


def _collate(samples: list[Sample], device: torch.device) -> Batch:
    return {
        key: torch.from_numpy(np.stack([sample[key] for sample in samples])).to(device)
        for key in samples[0]
    }


def _record(
    metrics: MetricsWriter | None,
    task: ProgressTask,
    done: int,
    steps_per_epoch: int,
    figures: dict[str, float],
    learning_rate: float,
) -> None:
    task.advance(loss=figures["loss"])
    if metrics is not None:
        epoch = done / steps_per_epoch
        metrics.write(done, epoch=epoch, learning_rate=learning_rate, **figures)


def _save_resume(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, identity: str, step: int
) -> None:
    tensors = {f"network/{key}": value for key, value in network.state_dict().items()}
    tensors |= pack_optimizer(optimizer)
    save_checkpoint(path, tensors, {"identity": identity, "step": step})


def _resume(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, identity: str) -> int:
    """Load the resume file if it belongs to this training; returns the step to go on from."""
    if not path.is_file():
        return 0
    try:
        tensors, header = load_checkpoint(path)
    except ArtifactError:
        return 0
    if header.get("identity") != identity:
        return 0
    weights = {
        key.removeprefix("network/"): value
        for key, value in tensors.items()
        if key.startswith("network/")
    }
    load_into(network, weights, path)
    unpack_optimizer(
        optimizer, {key: value for key, value in tensors.items() if key.startswith("optimizer/")}
    )
    return int(header["step"])
