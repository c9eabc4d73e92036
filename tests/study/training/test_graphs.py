"""A recorded step is used where it does what eager steps do; finding out changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basisconv.study.training.graphs import graph_if_accurate
from basisconv.study.training.optimization import momentum_of, recordable_sgd, sgd

Call = Callable[[], Tensor]


class Training:
    """A small network, its optimizer and a step of both."""

    def __init__(self, momentum: bool) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
        )
        self.optimizer = sgd(self.model, 0.1, 0.9, 5e-4)
        self.batches = [(torch.randn(6, 3, 6, 6), torch.randint(5, (6,))) for _ in range(4)]
        if momentum:
            self.step(*self.batches[3])

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Tensor]:
        momentum = {f"m.{n}": b for n, b in momentum_of(self.model, self.optimizer).items()}
        held = {n: t.clone() for n, t in (self.model.state_dict() | momentum).items()}
        # None and zero are the same momentum.
        return {n: t for n, t in held.items() if not n.startswith("m.") or t.any()}

    def graphed(self, record: Callable[[Call], Call]) -> tuple[Callable[..., Tensor], str | None]:
        return graph_if_accurate(self.step, self.model, self.optimizer, self.batches[:3], record)


def replays(call: Call) -> Call:
    """As recording does: calls it some times, and then again at each replay."""
    call()
    return call


@pytest.mark.parametrize("momentum", [False, True])
def test_a_true_recording_is_used_and_finding_out_leaves_no_trace(momentum: bool) -> None:
    training, plain = Training(momentum), Training(momentum)
    before = training.state()
    step, reason = training.graphed(replays)
    assert reason is None and step != training.step
    after = training.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert all(p.grad is None for p in training.model.parameters())
    for batch in training.batches:
        assert torch.equal(step(*batch), plain.step(*batch))
    assert all(torch.equal(t, training.state()[n]) for n, t in plain.state().items())
    with pytest.raises(ValueError, match="takes 6 images"):
        step(training.batches[0][0][:5], training.batches[0][1][:5])


def fails(call: Call) -> Call:
    call()
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def stale(call: Call) -> Call:
    """A graph in which something was not recorded: nothing is updated."""
    loss = call()
    return lambda: loss


@pytest.mark.parametrize(
    "record, reason",
    [(fails, "failed with RuntimeError: operation not permitted when stream is capturing$"),
     (stale, "off by 1")],
)  # fmt: skip
def test_a_false_recording_is_not_used_and_leaves_no_trace(
    record: Callable[[Call], Call], reason: str
) -> None:
    training, plain = Training(True), Training(True)
    with pytest.warns(UserWarning, match="No CUDA graph is used"):
        step, said = training.graphed(record)
    assert said is not None and re.search(reason, said)
    for batch in training.batches:
        assert torch.equal(step(*batch), plain.step(*batch))
    assert all(torch.equal(t, training.state()[n]) for n, t in plain.state().items())


def test_a_recording_that_forgets_one_buffer_is_not_used() -> None:
    training = Training(True)

    def forgets(call: Call) -> Call:
        call()
        kept = training.model[0].weight

        def replay() -> Tensor:
            was = kept.detach().clone()
            loss = call()
            with torch.no_grad():
                kept.copy_(was)
            return loss

        return replay

    with pytest.warns(UserWarning, match="off by"):
        assert training.graphed(forgets)[1] is not None


def test_sgd_for_graphs_takes_the_same_steps_and_reads_its_rate_from_a_tensor() -> None:
    plain, recorded = Training(False), Training(False)
    groups = [
        {"params": g["params"], "weight_decay": g["weight_decay"]}
        for g in recorded.optimizer.param_groups
    ]
    recorded.optimizer = recordable_sgd(groups, 0.1, 0.9)
    for group in recorded.optimizer.param_groups:
        group["lr"] = torch.tensor(0.1)
    for rate, batch in zip((0.1, 0.3, 0.05, 0.0), plain.batches, strict=True):
        for group in plain.optimizer.param_groups:
            group["lr"] = rate
        for group in recorded.optimizer.param_groups:
            group["lr"].fill_(rate)
        torch.testing.assert_close(recorded.step(*batch), plain.step(*batch))
    for (name, a), b in zip(
        recorded.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
