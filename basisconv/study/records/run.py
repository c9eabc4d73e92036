"""What is trained and what came out: `Run` and `Record`, and the paper's sections of them.

A Run has everything that decides its result and nothing else; its id is a hash of that. A Record
is the Run with its result, which is the same bit for bit on the same kind of CPU, and with
measurements such as times, which are not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)

from basisconv.plan import Plan
from basisconv.study.records.files import DamagedFile, canonical, read_json, write_json

if TYPE_CHECKING:  # who reads an experiment's values knows their types
    JsonValue = Any
else:
    from pydantic import JsonValue

SCHEMA: Final = 1
"""Version of the fields below; raised when their meaning changes."""

NUMERICS = 1
"""Raised by hand when a change of the code changes results."""

Status = Literal["done", "failed", "diverged"]
DataName = Literal["cifar10", "cifar10-sample", "cifar100"]
Precision = Literal["float32", "tf32", "bfloat16"]
Optimizer = Literal["sgd", "muon"]
Schedule = Literal["one", "restart"]
Carry = Literal["exact", "reinit", "responses"]
MomentumCarry = Literal["fresh", "carried"]
Method = Literal[
    "dense",
    "narrow",
    "basis",
    "first_five",
    "selected",
    "threshold",
    "random",
    "inverted",
    "skip",
    "layer",
    "same_size",
    "equal_steps",
    "variant",
]
Kind = Literal["dense", "narrow", "basis", "skip"]  # whose tuned settings an arm has
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _plan(value: Any) -> Plan:
    if isinstance(value, Plan):
        return value
    try:
        return Plan.from_dict(value)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{value!r} is not a plan: {error}") from error


PlanField = Annotated[Plan, PlainValidator(_plan), PlainSerializer(Plan.to_dict)]


class Model(BaseModel):
    """Base of all below: frozen, unknown fields and NaN refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Model):
    """A data set, identified by the sha256 of its pixels and labels."""

    name: DataName
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    train_images: Count | None = None
    """The first k / classes training images of each class, in canonical order; None for all."""


class Phase(Model):
    """A number of optimizer steps under one plan."""

    steps: Count
    plan: PlanField


class Run(Model):
    """Everything that decides a training's result."""

    network: str = "resnet18"
    width: Count = 64
    data: Data
    phases: tuple[Phase, ...] = Field(min_length=1)
    batch_size: Count = 128
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    decay: Literal["factors", "product"] = "factors"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    warmup: Fraction = 0.1
    """Fraction of the steps over which the learning rate rises."""
    schedule: Schedule = "one"
    """One cosine over all phases, or a new one at each switch."""
    init: Literal["random", "svd", "qr"] = "random"
    """Of the basis layers in the first phase."""
    carry: Carry = "exact"
    """What a switch does to the weights of the layers that it converts."""
    momentum_carry: MomentumCarry = "fresh"
    """What a switch does to their momentum buffers."""
    seed: int = Field(ge=0)
    precision: Precision = "float32"
    test: bool = False
    """Whether the test set is read, once, after the last step."""
    compile: bool = False
    threads: Count = 1
    # Left out at their defaults, so that no run's id changed when they were added.
    optimizer: Optimizer = Field(default="sgd", exclude_if=lambda name: name == "sgd")
    """Learning rate, momentum and weight decay are SGD's, or Muon's of kernels and factors."""
    factor_lr_ratio: float = Field(default=1.0, gt=0, exclude_if=lambda ratio: ratio == 1)
    """Muon's learning rate of factors over that of kernels."""
    processes: Count = Field(default=1, exclude_if=lambda count: count == 1)
    """How many train it together, each with a shard of every batch, and batch-norm's view of it."""
    numerics: Count = NUMERICS
    schema_version: Literal[1] = SCHEMA

    @model_validator(mode="after")
    def _equal_shards(self) -> Self:
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size={self.batch_size} for processes={self.processes}: choose a multiple, "
                "so that all take as many images."
            )
        return self

    @model_validator(mode="after")
    def _muons_own(self) -> Self:
        if self.optimizer != "muon" and self.factor_lr_ratio != 1:
            raise ValueError(
                f"factor_lr_ratio={self.factor_lr_ratio} is Muon's, and optimizer="
                f"{self.optimizer!r} has one rate: leave it at 1."
            )
        return self

    @property
    def run_id(self) -> str:
        """First 16 hex digits of the sha256 of the canonical JSON of all fields."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()[:16]

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases together."""
        return sum(phase.steps for phase in self.phases)


class Epoch(Model):
    """One line of a training's history; accuracies are fractions, losses mean cross-entropies."""

    epoch: float
    step: int
    learning_rate: float
    train_loss: float
    val_loss: float
    val_accuracy: Fraction


class Result(Model):
    """The result of a Run, the same bit for bit on the same kind of CPU."""

    steps: int
    epochs: float
    parameters: int
    """Of the network in its last phase."""
    train_loss: float
    val_loss: float
    val_accuracy: Fraction
    test_loss: float | None
    test_accuracy: Fraction | None
    history: tuple[Epoch, ...]
    # The first edition's records have none.
    test_correct: str | None = Field(default=None, exclude_if=lambda bits: bits is None)
    """Whether each test image was classified right: bits, first image first, in base64."""


class Measurement(Model):
    """What differs each time; only `device_kind` is compared, by `Store.add`."""

    seconds: dict[str, float]
    """Wall time of all sessions: "total", and its parts "train", "evaluate", "switch", "data",
    "compile", "checkpoint"."""
    environment: dict[str, str]
    """Device, its kind ("device_kind") and capabilities, versions, commit."""
    peak_memory_bytes: int
    notes: tuple[str, ...] = ()
    """What did not go as asked, and changes no result beyond rounding."""


class Record(Model):
    """One Run and what came of it."""

    run: Run
    status: Status
    result: Result | None
    measurement: Measurement
    error: str | None = None
    """A failed run's traceback; where a diverged run diverged."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.status == "done" and self.result is None:
            raise ValueError("status='done' needs a result; without one it is failed or diverged.")
        if self.status == "failed" and not (self.result is None and self.error):
            raise ValueError("status='failed' needs an error and has no result.")
        return self

    @property
    def run_id(self) -> str:
        """The id of the record's run."""
        return self.run.run_id

    def same_result(self, other: Record) -> bool:
        """Whether two records agree in everything but measurements."""
        return (self.status, self.result) == (other.status, other.result)

    def save(self, path: str | Path) -> None:
        """Write the record with its run's id and a checksum.

        Raises:
            OSError: when it cannot be written; an older file is then unchanged.
        """
        values = self.model_dump(mode="json")
        write_json(path, {"schema_version": SCHEMA, "run_id": self.run_id, **values})

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record that `save` wrote.

        Raises:
            DamagedFile: if its bytes were changed, its schema is another version's, or its run
                does not have the id that it states.
            FileNotFoundError: if there is none.
        """
        values = read_json(path)
        check_schema(path, values)
        stated = values.pop("run_id", None)
        try:
            record = cls.model_validate(values)
        except ValidationError as error:
            raise DamagedFile(f"{path} is not a record: {error}. {_REMEDY}") from error
        if record.run_id != stated:
            raise DamagedFile(
                f"{path} says run_id {stated}, but its run has {record.run_id}: it was edited. "
                f"{_REMEDY}"
            )
        return record


_REMEDY = "Put back an unchanged copy, or delete it to have the run trained again."


def check_schema(path: str | Path, values: dict[str, Any]) -> None:
    """Remove "schema_version" from a file's values and refuse another version's.

    Raises:
        DamagedFile: for another version's.
    """
    version = values.pop("schema_version", None)
    if type(version) is not int or version != SCHEMA:
        raise DamagedFile(
            f"{path} has schema version {version}, this code reads {SCHEMA}: use it with the "
            "version that wrote it, or delete it to have it made again."
        )


class Arm(Model):
    """The runs, one a seed, that make one point of a figure or one row of a table."""

    label: str
    method: Method
    """Colour key, the same in all figures."""
    run_ids: tuple[str, ...]
    budget: float | None = None
    """Dense epochs at the profile's width that the arm was given."""
    time: float | None = None
    """Training time by the cost source, in the same unit."""
    detail: dict[str, JsonValue] = {}


class Section(Model):
    """One section of the paper: its arms, and values that no run resulted in."""

    name: str
    profile: str
    arms: tuple[Arm, ...]
    facts: dict[str, JsonValue]

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The ids of all arms' runs, in order, each once."""
        return tuple(dict.fromkeys(i for arm in self.arms for i in arm.run_ids))
