"""Training: bit-identical, comparable across arms, honest about failure."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import BASIS, make_run

import basisconv as bc
from basisconv.study.data.sets import Split, load
from basisconv.study.records.run import NUMERICS, Run
from basisconv.study.training import phases, precision
from basisconv.study.training import train as training
from basisconv.study.training.augment import TrainingStream
from basisconv.study.training.models import build_network, initialise
from basisconv.study.training.phases import initial_network
from basisconv.study.training.rng import generator
from basisconv.study.training.train import train

# Train, validation and test loss by version of the numerics.
GOLDEN = {
    1: {"sgd": (2.4714797, 2.4487671, 2.4450538), "muon": (2.5493606, 2.5265097, 2.4929236)},
}


def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in float64, with the same draws."""

    def network(run: Run, classes: int) -> torch.nn.Module:
        model = initial_network(run, classes).double()
        model.register_forward_pre_hook(lambda _, args: (args[0].double(),))
        return model

    monkeypatch.setattr(training, "initial_network", network)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_three_steps_are_those_of_this_numerics_version(
    monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """A change of the code that moves these has to raise `NUMERICS` in run.py.

    In float64, for in float32 a network like this is chaotic: kernels of two CPUs, or of one and
    two threads, round the first gradient apart, ReLUs at their kinks make 1e-4 of that and the
    third step 1e-3. Losses are cast to float32 at the end, hence the tolerance.
    """
    in_float64(monkeypatch)
    record = train(make_run((3, BASIS), test=True, optimizer=optimizer))
    assert record.result is not None
    got = (record.result.train_loss, record.result.val_loss, record.result.test_loss)
    assert got == pytest.approx(GOLDEN[NUMERICS][optimizer], abs=2e-6)


def test_one_step_is_nesterov_sgd_on_the_batch() -> None:
    """Against a plain loop written out here."""
    run = make_run((2, bc.Plan()), warmup=0.0, label_smoothing=0.1, weight_decay=0.01)
    trained = training._Training(run)
    model = build_network("resnet18", 8, 10)
    initialise(model, 0)
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    velocity = {n: torch.zeros_like(p) for n, p in weights.items()}
    stream = trained.stream
    for step in range(2):
        rate = 0.05 * (1 + math.cos(math.pi * step / 2)) / 2
        x, y = stream.batch(step)
        model.train()
        logits = torch.func.functional_call(model, weights, (x,))
        smooth = 0.9 * F.one_hot(y, 10) + 0.01
        loss = -(smooth * logits.log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, w), g in zip(weights.items(), gradients, strict=True):
                g = g + 0.01 * w if w.ndim > 1 else g
                velocity[name] = 0.9 * velocity[name] + g
                w -= rate * (g + 0.9 * velocity[name])
    trained._phase(0, 2)
    for name, parameter in trained.model.named_parameters():
        torch.testing.assert_close(parameter, weights[name], rtol=2e-3, atol=2e-5)


def test_phases_change_the_network_at_their_step_and_evaluation_keeps_its_rhythm() -> None:
    record = train(make_run((4, BASIS), (3, bc.Plan())))
    result = record.result
    assert result is not None and result.steps == 7 and result.epochs == pytest.approx(7 / 3)
    assert [e.step for e in result.history] == [3, 6, 7]
    dense = build_network("resnet18", 8, 10)
    assert result.parameters == sum(p.numel() for p in dense.parameters())
    assert result.test_loss is None and result.test_accuracy is None


def test_the_test_set_is_read_when_asked_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    evaluate = training._Training._evaluate

    def spy(self: Any, split: Any) -> tuple[float, float]:
        seen.append(len(split.labels))
        return evaluate(self, split)

    monkeypatch.setattr(training._Training, "_evaluate", spy)
    train(make_run((6, bc.Plan())))
    assert seen == [200, 200]
    seen.clear()
    train(make_run((6, bc.Plan()), test=True))
    assert seen == [200, 200, 1000]


def test_a_loss_that_is_not_finite_is_a_diverged_record() -> None:
    record = train(make_run((6, bc.Plan()), learning_rate=1e30))
    assert record.status == "diverged" and record.result is None
    assert record.error is not None and "step 3 of 6" in record.error


def test_other_data_than_the_runs_are_refused() -> None:
    run = make_run()
    other = run.model_copy(update={"data": run.data.model_copy(update={"sha256": "1" * 64})})
    with pytest.raises(ValueError, match="1111.*data verify"):
        train(other)


def test_emulated_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="emulates.*float32"):
        train(make_run(precision="bfloat16"))


def test_every_switch_of_the_protocol_changes_the_result() -> None:
    """No setting is only written down."""
    base = make_run((2, BASIS), (2, bc.Plan()))
    plain = train(base).result
    assert plain is not None
    changes: list[dict[str, Any]] = [
        {"decay": "product", "weight_decay": 0.1}, {"init": "svd"}, {"init": "qr"},
        {"carry": "reinit"}, {"momentum_carry": "carried"}, {"schedule": "restart"},
        {"label_smoothing": 0.1}, {"warmup": 0.9}, {"seed": 1}, {"momentum": 0.5},
    ]  # fmt: skip
    results = [train(base.model_copy(update=change)).result for change in changes]
    losses = [plain.val_loss, *(r.val_loss for r in results if r is not None)]
    assert len(set(losses)) == len(changes) + 1


def test_a_switch_to_basis_filters_can_fit_responses_and_does_so_repeatably() -> None:
    run = make_run((2, bc.Plan()), (2, BASIS), carry="responses")
    exact, first, second = (
        train(run.model_copy(update={"carry": carry})).result
        for carry in ("exact", "responses", "responses")
    )
    assert exact is not None and first is not None
    assert first == second and first.val_loss != exact.val_loss


def test_an_epochs_loss_is_the_mean_over_its_steps_all_in_training_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[bool] = []

    def step(self: Any, forward: Any, step: int) -> torch.Tensor:
        modes.append(self.model.training)
        return torch.tensor(float(step))

    monkeypatch.setattr(training._Training, "_one_step", step)
    result = train(make_run((7, bc.Plan()))).result
    assert result is not None
    assert [e.train_loss for e in result.history] == [1.0, 4.0, 6.0]
    assert modes == [True] * 7


def test_product_decay_adds_half_the_squared_norms_gradient_and_nothing_to_the_loss() -> None:
    plain, decayed = (
        training._Training(make_run((1, BASIS), decay="product", weight_decay=wd))
        for wd in (0.0, 0.3)
    )
    for trained in (plain, decayed):
        trained.optimizer.step = lambda: None  # SGD's own arithmetic is done in the gradients
    losses = [t._one_step(t._forward(), 0) for t in (plain, decayed)]
    assert torch.equal(*losses)
    start = initial_network(make_run((1, BASIS)), 10)
    for name in BASIS.layers:
        layer = start.get_submodule(name)
        (0.3 / 2 * layer.weight.square().sum()).backward()
        for kind, parameter in layer.named_parameters():
            first = plain.model.get_parameter(f"{name}.{kind}").grad
            second = decayed.model.get_parameter(f"{name}.{kind}").grad
            assert first is not None and second is not None
            torch.testing.assert_close(second - first, parameter.grad, rtol=1e-3, atol=1e-5)


class Constant(torch.nn.Module):
    """The same logits for every image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), 10)


def test_evaluation_is_over_all_images_and_a_loss_that_is_not_finite_ends_the_run() -> None:
    trained = training._Training(make_run(label_smoothing=0.5))
    trained.model = Constant([0.0] * 3 + [5.0] + [0.0] * 6)
    every = trained.data.validation
    loss, accuracy, _ = trained._evaluate(every)
    assert accuracy == 0.1  # of 200 images, 20 are of class 3
    assert loss == pytest.approx(math.log(math.exp(5) + 9) - 5 / 10)
    # Over all classes alike, constant logits hide what label smoothing would add; of one, not.
    threes = every.labels == 3
    loss, accuracy, _ = trained._evaluate(Split(every.images[threes], every.labels[threes]))
    assert accuracy == 1.0
    assert loss == pytest.approx(math.log(math.exp(5) + 9) - 5)
    trained.model = Constant([math.nan] * 10)
    with pytest.raises(training.Diverged, match="evaluation loss is nan"):
        trained._evaluate(trained.data.validation)


def test_the_batches_are_those_of_the_runs_seed() -> None:
    streams = [training._Training(make_run(seed=seed)).stream for seed in (0, 1)]
    wanted = TrainingStream(load("cifar10-sample", 60).train, 20, 1)
    assert torch.equal(streams[1].batch(4)[0], wanted.batch(4)[0])
    assert not torch.equal(streams[0].batch(4)[0], wanted.batch(4)[0])


def test_a_layer_that_draws_from_torchs_own_stream_gets_the_one_of_the_runs_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def with_dropout(*args: Any) -> torch.nn.Module:
        model = build_network(*args)
        dropout = torch.nn.Dropout(0.5)
        dropout.register_forward_hook(lambda _, given, out: calls.append((given[0], out)))
        model.avgpool = torch.nn.Sequential(model.avgpool, dropout)
        return model

    monkeypatch.setattr(phases, "build_network", with_dropout)
    torch.manual_seed(99)  # whatever ran before in this process
    train(make_run((1, bc.Plan()), seed=7))
    given, dropped = calls[0]
    torch.manual_seed(generator(7, "torch").initial_seed())
    assert torch.equal(dropped, F.dropout(given, 0.5))


@pytest.mark.parametrize("carry", ["exact", "reinit"])
def test_weights_momentum_and_activations_stay_channels_last_through_all_phases(
    monkeypatch: pytest.MonkeyPatch, carry: str
) -> None:
    """A kernel that silently turns contiguous costs a third of the speed."""
    contiguous: list[str] = []
    looked = 0

    def look(name: str, tensor: torch.Tensor) -> None:
        nonlocal looked
        if tensor.ndim == 4 and min(tensor.shape[1:]) > 1:  # else it is in both formats
            looked += 1
            if not tensor.is_contiguous(memory_format=torch.channels_last):
                contiguous.append(name)

    phase = training._Training._phase

    def spy(self: Any, start: int, end: int) -> None:
        hooks = [
            module.register_forward_hook(lambda m, _, out, name=name: look(f"out of {name}", out))
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Conv2d | bc.BasisConv2d | torch.nn.BatchNorm2d)
        ]
        phase(self, start, end)
        for hook in hooks:
            hook.remove()
        for name, parameter in self.model.named_parameters():
            look(name, parameter)
            look(f"momentum of {name}", self.optimizer.state[parameter]["momentum_buffer"])

    monkeypatch.setattr(training._Training, "_phase", spy)
    plans = [BASIS, bc.Plan(), bc.Plan(BASIS.layers, "full")]
    train(make_run(*[(1, plan) for plan in plans], carry=carry, momentum_carry="carried"))
    assert not contiguous and looked > 100
