"""Softmax regression on Fisher's irises in plain NumPy: a small job that really trains.

Alone it descends the gradient over all training rows.  As one of several nodes (BROKER_NODE_COUNT)
it takes every n-th row, and the nodes add their gradients up before each step, so that a gang takes
the same path as a single process.  The state goes to BROKER_CHECKPOINT_DIR now and then and is gone
on from; model.npz and metrics.json go to BROKER_OUTPUT_DIR.  Without a folder nothing is written.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from allreduce import Array, Gang

DATA = Path(__file__).with_name("iris.csv")
TEST_SHARE = 0.3
L2 = 1e-4  # keeps the optimum finite: setosa is separable from the others


class Split(NamedTuple):
    """Rows are flowers: four standardised measurements and a 1; the species one-hot."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array


def load(random: np.random.Generator) -> Split:
    """The same share of every species is for testing; scaled by mean and deviation of the rest."""
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    species = sorted({row[4] for row in rows})
    label = np.array([species.index(row[4]) for row in rows])
    raw = np.array([[float(value) for value in row[:4]] for row in rows])
    held_out = np.zeros(len(rows), dtype=np.bool_)
    for k in range(len(species)):
        of_k = random.permutation(np.flatnonzero(label == k))
        held_out[of_k[: round(len(of_k) * TEST_SHARE)]] = True
    scaled = (raw - raw[~held_out].mean(axis=0)) / raw[~held_out].std(axis=0)
    x, y = np.column_stack([scaled, np.ones(len(rows))]), np.eye(len(species))[label]
    return Split(x[~held_out], y[~held_out], x[held_out], y[held_out])


def softmax(z: Array) -> Array:
    e: Array = np.exp(z - z.max(axis=1, keepdims=True))
    e /= e.sum(axis=1, keepdims=True)
    return e


def loss(weights: Array, x: Array, y: Array) -> float:
    """Mean cross-entropy."""
    return float(-np.log(softmax(x @ weights)[y == 1]).mean())


def accuracy(weights: Array, x: Array, y: Array) -> float:
    return float(((x @ weights).argmax(axis=1) == y.argmax(axis=1)).mean())


class Checkpoint:
    """The weights after a number of epochs, in one file that is replaced whole."""

    def __init__(self, folder: Path | None, seed: int, learning_rate: float) -> None:
        self._path = folder / f"state-{seed}-{learning_rate}.npz" if folder else None

    def load(self, first: Array) -> tuple[int, Array]:
        """Epochs done and weights; (0, first) without a checkpoint."""
        if self._path is None or not self._path.exists():
            return 0, first
        with np.load(self._path) as state:
            return int(state["epoch"]), state["weights"]

    def save(self, epoch: int, weights: Array) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part.npz")
        np.savez(part, epoch=epoch, weights=weights)
        part.replace(self._path)


def train(options: argparse.Namespace, data: Split, first: Array, *, gang: Gang) -> tuple[int, Array]:
    """The epoch it began after and the trained weights, the same on every node."""
    checkpoint = Checkpoint(options.checkpoints, options.seed, options.learning_rate)
    # Only node 0 needs to see the checkpoints: the others add nothing to its state.
    begun, weights = checkpoint.load(first) if gang.rank == 0 else (0, np.zeros_like(first))
    begun, weights = int(gang.sum(np.array([float(begun)]))[0]), gang.sum(weights)
    if begun:
        print(f"resumed after epoch {begun}", flush=True)
    x, y = data.x[gang.rank :: gang.count], data.y[gang.rank :: gang.count]
    every = max(1, options.epochs // 20)
    for epoch in range(begun + 1, options.epochs + 1):
        gradient = gang.sum(x.T @ (softmax(x @ weights) - y)) / len(data.x) + L2 * weights
        weights = weights - options.learning_rate * gradient
        if gang.rank == 0 and epoch % every == 0:
            checkpoint.save(epoch, weights)
            print(f"epoch {epoch} of {options.epochs}, loss {loss(weights, data.x, data.y):.6f}", flush=True)
    return begun, weights


def arguments() -> argparse.Namespace:
    env = os.environ.get
    parser = argparse.ArgumentParser(description="Train softmax regression on the iris data.")
    parser.add_argument("--seed", type=int, default=int(env("SEED", "1")), help="default: SEED, else 1")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=100_000)
    parser.add_argument("--port", type=int, help="where node 0 listens; default: from BROKER_TASK_ID")
    parser.add_argument("--output", type=Path, default=env("BROKER_OUTPUT_DIR"))
    parser.add_argument("--checkpoints", type=Path, default=env("BROKER_CHECKPOINT_DIR"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    env = os.environ.get
    rank, count = int(env("BROKER_NODE_RANK", "0")), int(env("BROKER_NODE_COUNT", "1"))
    print(f"started node {rank} of {count}, seed {options.seed}", flush=True)
    began = time.monotonic()
    task = env("BROKER_TASK_ID", "alone")
    port = options.port or 20_000 + zlib.crc32(task.encode()) % 10_000
    gang = Gang(rank, count, address=env("BROKER_MASTER_ADDR", "127.0.0.1"), port=port, job=task)
    random = np.random.default_rng(options.seed)
    data = load(random)
    first = random.normal(scale=0.01, size=(data.x.shape[1], data.y.shape[1]))
    begun, weights = train(options, data, first, gang=gang)
    metrics = {
        "accuracy": accuracy(weights, data.test_x, data.test_y),
        "trainAccuracy": accuracy(weights, data.x, data.y),
        "loss": loss(weights, data.x, data.y),
        "seed": options.seed,
        "learningRate": options.learning_rate,
        "epochs": options.epochs,
        "resumedAfterEpoch": begun,
        "nodes": count,
        "seconds": round(time.monotonic() - began, 3),
    }
    if rank == 0 and options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        np.savez(options.output / "model.npz", weights=weights)
        (options.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"done: accuracy {metrics['accuracy']:.4f} on {len(data.test_x)} flowers held out", flush=True)


if __name__ == "__main__":
    main()
