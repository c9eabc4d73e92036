from __future__ import annotations

import numpy as np
import pytest
import torch

from basisconv.study.data.sets import Split, load
from basisconv.study.training.augment import MEAN, STD, TrainingStream, evaluation_batches


def split_of(n: int, height: int = 32, width: int = 32) -> Split:
    """Random images whose labels are their numbers, so that a batch tells what it was made of."""
    images = np.random.default_rng(n).integers(256, size=(n, height, width, 3), dtype=np.uint8)
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.arange(n))


def normalised(images: np.ndarray) -> np.ndarray:
    """(..., 3, h, w), by the definition and in float64."""
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    return (images / 255 - mean) / std


def moves(split: Split, x: torch.Tensor, y: torch.Tensor) -> list[tuple[int, int, bool]]:
    """Which crop and flip of its source image each image of a batch is, by trying them all."""
    height, width = x.shape[2:]
    found = []
    for image, label in zip(x.double().numpy(), y.tolist(), strict=True):
        source = normalised(split.images[label].numpy())
        padded = np.pad(source, [(0, 0), (4, 4), (4, 4)], mode="reflect")
        crops = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (1, 2))
        either = np.stack([image, image[..., ::-1]], 1)[:, :, None, None]
        matching = np.argwhere(np.isclose(either, crops[:, None], atol=1e-5).all((0, 4, 5)))
        assert len(matching) == 1, matching
        flip, down, right = matching[0].tolist()
        found.append((down, right, bool(flip)))
    return found


@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 14)])
def test_a_batch_holds_crops_and_flips_of_reflect_padded_images(height, width):
    split = split_of(30, height, width)
    x, y = TrainingStream(split, 20, seed=1).batch(0)
    assert x.shape == (20, 3, height, width)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    moves(split, x, y)


def test_an_epoch_is_a_permutation_without_its_partial_batch():
    stream = TrainingStream(split_of(103), 20, seed=0)
    assert stream.steps_per_epoch == 5
    epochs = []
    for epoch in range(3):
        labels = torch.cat([stream.batch(5 * epoch + i)[1] for i in range(5)]).tolist()
        assert len(set(labels)) == 100
        epochs.append(labels)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_moves_are_uniform_and_drawn_for_each_image():
    split = split_of(1000, 10, 10)
    stream = TrainingStream(split, 1000, seed=0)
    down, right, flip = np.array(moves(split, *stream.batch(0))).T
    counts = np.histogram2d(down, right, bins=9)[0]
    chi2 = ((counts - 1000 / 81) ** 2 / (1000 / 81)).sum()
    assert 45 < chi2 < 125  # 80 degrees of freedom, either tail below 0.001
    assert abs(flip.mean() - 0.5) < 0.05


def test_flips_alternate_between_epochs():
    split = split_of(60, 10, 10)
    stream = TrainingStream(split, 60, seed=2)
    flipped = []
    for epoch in range(3):
        x, y = stream.batch(epoch)
        flips = torch.tensor([flip for *_, flip in moves(split, x, y)])
        flipped.append(flips[y.argsort()])
    assert torch.equal(flipped[0], ~flipped[1])
    assert torch.equal(flipped[0], flipped[2])


def test_batches_depend_on_seed_and_step_alone():
    split = split_of(64, 8, 8)
    stream = TrainingStream(split, 16, seed=5)
    forwards = [stream.batch(step) for step in range(12)]
    torch.manual_seed(1)
    other = TrainingStream(split, 16, seed=5)
    for step in (11, 0, 7, 8, 3):
        for a, b in zip(forwards[step], other.batch(step), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(TrainingStream(split, 16, seed=6).batch(0)[1], forwards[0][1])


def test_the_order_does_not_depend_on_the_crops():
    # Paired arms share order and crops apart: images of another size, the same order.
    small = TrainingStream(split_of(64, 8, 8), 16, seed=5)
    large = TrainingStream(split_of(64, 16, 16), 16, seed=5)
    assert torch.equal(small.batch(9)[1], large.batch(9)[1])


def test_data_order_stays_what_published_records_were_made_with():
    x, y = TrainingStream(load("cifar10-sample").train, 8, seed=0).batch(300)
    assert y.tolist() == GOLDEN_LABELS
    torch.testing.assert_close(x.double().mean().item(), GOLDEN_MEAN, rtol=0, atol=1e-5)


GOLDEN_LABELS = [8, 5, 7, 8, 0, 6, 2, 3]
GOLDEN_MEAN = 0.3616664


def test_batches_are_copies():
    split = split_of(8, 8, 8)
    before = split.images.clone()
    x, y = TrainingStream(split, 8, seed=0).batch(0)
    x.zero_()
    y.zero_()
    for images, labels in evaluation_batches(split):
        images.zero_()
        assert labels is not split.labels
    assert torch.equal(split.images, before)
    assert torch.equal(split.labels, torch.arange(8))


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_that_the_split_cannot_fill_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} with 10 training images.*1 to"):
        TrainingStream(split_of(10, 8, 8), batch_size, seed=0)


def test_evaluation_takes_every_image_once_in_order_and_as_it_is():
    split = split_of(23, 10, 7)
    batches = list(evaluation_batches(split, batch_size=10))
    assert [len(y) for _, y in batches] == [10, 10, 3]
    assert torch.cat([y for _, y in batches]).tolist() == list(range(23))
    for x, _ in batches:
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
    x = torch.cat([x for x, _ in batches])
    np.testing.assert_allclose(x.double(), normalised(split.images.numpy()), atol=1e-5)


def test_mean_and_deviation_are_those_of_the_images():
    pixels = load("cifar10-sample").train.images.double() / 255
    np.testing.assert_allclose(pixels.mean((0, 2, 3)), MEAN, atol=0.01)  # of the whole set
    np.testing.assert_allclose(pixels.std((0, 2, 3)), STD, atol=0.01)


def test_a_gpu_gets_the_batches_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    split = split_of(64)
    cpu, gpu = TrainingStream(split, 16, 3), TrainingStream(split, 16, 3, "cuda")
    for step in (0, 5):
        for a, b in zip(cpu.batch(step), gpu.batch(step), strict=True):
            torch.testing.assert_close(a, b.cpu(), rtol=0, atol=1e-6)
