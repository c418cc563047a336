from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from yolo_prune.datasets import batches as module
from yolo_prune.datasets.batches import Batch
from yolo_prune.datasets.config import AugmentConfig
from yolo_prune.datasets.images import fit_image, letterbox, read_image
from yolo_prune.datasets.loader import DetectionDataset, Share, count_batches, make_loader, read_in_order
from yolo_prune.datasets.spec import Sample, load_spec
from yolo_prune.errors import ConfigError, DatasetError, Interrupted

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python 3.12 on, for workers
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a machine of one core
]
SIZE = 32
COUNT = 11


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    """Make eleven images of various sizes, with 0, 1 or 2 objects each."""
    made = []
    for number in range(COUNT):
        image, label = tmp_path / f"{number}.png", tmp_path / f"{number}.txt"
        pixels = np.random.default_rng(number).integers(0, 256, (24 + 3 * number, 40, 3), np.uint8)
        cv2.imwrite(str(image), pixels)
        label.write_text("\n".join(["0 0.5 0.5 0.5 0.5", "1 0.25 0.75 0.5 0.5"][: number % 3]))
        made.append(Sample(image, label))
    return tuple(made)


def same(left: list[Batch], right: list[Batch]) -> bool:
    def parts(batches: list[Batch]) -> list[Tensor]:
        return [part for batch in batches for part in (batch.images, batch.targets, batch.indices)]

    return len(left) == len(right) and all(map(torch.equal, parts(left), parts(right)))


def test_a_plain_batch_of_a_hand_worked_image(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 8, 3), (30, 20, 10), np.uint8))
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n0 0.25 0.25 0.5 0.5\n")
    data = DetectionDataset([Sample(tmp_path / "a.png", tmp_path / "a.txt")], 2, 8)
    (batch,) = make_loader(data, 4, shuffle=False, epoch=0)
    assert batch.images.shape == (1, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.images[0, :, 1, 0].tolist() == [114, 114, 114]
    assert batch.images[0, :, 2, 0].tolist() == [10, 20, 30]
    assert batch.targets.tolist() == [[0, 1, 0.5, 0.5, 0.5, 0.25, 0], [0, 0, 0.25, 0.375, 0.5, 0.25, 0]]
    assert batch.indices.tolist() == [0]


def test_plain_items_are_letterboxed_images(samples: tuple[Sample, ...]) -> None:
    data = DetectionDataset(samples, 2, SIZE)
    for index, sample in enumerate(samples):
        image = read_image(sample.image)
        square, box = letterbox(image, SIZE)
        item, boxes = data[index]
        np.testing.assert_array_equal(item, square)
        height, width = image.shape[:2]
        whole = np.array([[0.25, 0.25, 0.75, 0.75], [0, 0.5, 0.5, 1]], np.float32) * np.array(
            (width, height) * 2, np.float32
        )
        np.testing.assert_allclose(boxes[:, 1:5], box.to_network(whole)[: index % 3], atol=1e-4)


def test_ignored_boxes_are_marked(samples: tuple[Sample, ...]) -> None:
    samples[1].ignored.write_text("1 0.5 0.5 1 1\n")
    data = DetectionDataset(samples, 2, SIZE)
    assert data[1][1][:, 5].tolist() == [0, 1]
    (batch,) = make_loader(data, COUNT, shuffle=False, epoch=0)
    marked = batch.targets[batch.targets[:, 6] > 0]
    assert marked[:, :2].tolist() == [[1, 1]]
    assert len(batch.targets) == sum(index % 3 for index in range(COUNT)) + 1


@pytest.mark.parametrize("batch_size", [1, 3, COUNT, COUNT + 5])
def test_reading_ahead_changes_nothing(samples: tuple[Sample, ...], batch_size: int) -> None:
    for cache_bytes in (0, 1 << 20):
        data = DetectionDataset(samples, 2, SIZE, cache_bytes=cache_bytes)
        ahead = list(read_in_order(data, batch_size))
        assert same(ahead, list(make_loader(data, batch_size, shuffle=False, epoch=0)))


def test_an_image_that_cannot_be_read_ends_reading_ahead(samples: tuple[Sample, ...]) -> None:
    data = DetectionDataset(samples, 2, SIZE, cache_bytes=0)
    samples[5].image.write_text("no image")
    batches = read_in_order(data, 4)
    assert next(batches).indices.tolist() == [0, 1, 2, 3]
    with pytest.raises(DatasetError, match=r"5\.png: is not a readable image"):
        next(batches)


def test_headers_tell_the_images_sizes(samples: tuple[Sample, ...]) -> None:
    headers = DetectionDataset(samples, 2, SIZE, cache_bytes=0).headers
    assert [(header.width_px, header.height_px) for header in headers] == [(40, 24 + 3 * n) for n in range(COUNT)]


def test_targets_name_their_image_in_the_batch(samples: tuple[Sample, ...]) -> None:
    (batch,) = make_loader(DetectionDataset(samples, 2, SIZE), COUNT, shuffle=True, epoch=3)
    counts = torch.bincount(batch.targets[:, 0].long(), minlength=COUNT)
    assert counts.tolist() == [index % 3 for index in batch.indices.tolist()]
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("config", [None, AugmentConfig()])
def test_batches_do_not_depend_on_workers_or_cache(samples: tuple[Sample, ...], config: AugmentConfig | None) -> None:
    def load(workers: int, cache_bytes: int) -> list[Batch]:
        data = DetectionDataset(samples, 2, SIZE, augment=config, seed=5, cache_bytes=cache_bytes)
        return list(make_loader(data, 4, shuffle=True, epoch=2, workers=workers, sizes=[32, 64]))

    alone = load(0, 1 << 20)
    assert [len(batch.images) for batch in alone] == [4, 4, 3]
    assert same(alone, load(1, 1 << 20))
    assert same(alone, load(2, 1 << 20))
    assert same(alone, load(0, 0))
    assert same(alone, load(0, 10_000))


def test_epochs_and_seeds_change_order_and_images(samples: tuple[Sample, ...]) -> None:
    def load(seed: int, epoch: int) -> list[Batch]:
        data = DetectionDataset(samples, 2, SIZE, augment=AugmentConfig(), seed=seed)
        return list(make_loader(data, COUNT, shuffle=True, epoch=epoch))

    runs = [load(0, 0), load(0, 1), load(1, 0)]
    assert same(runs[0], load(0, 0))
    orders = [tuple(run[0].indices.tolist()) for run in runs]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    data = DetectionDataset(samples, 2, SIZE, augment=AugmentConfig())
    assert not np.array_equal(data.make_item(3, epoch=0)[0], data.make_item(3, epoch=1)[0])


def test_order_last_batch_and_length(samples: tuple[Sample, ...]) -> None:
    data = DetectionDataset(samples, 2, SIZE)
    whole = make_loader(data, 4, shuffle=False, epoch=0)
    assert [batch.indices.tolist() for batch in whole] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert len(whole) == 3
    assert same(list(whole), list(whole))


def test_a_batch_has_one_of_the_sizes(samples: tuple[Sample, ...]) -> None:
    data = DetectionDataset(samples, 2, SIZE, augment=AugmentConfig())
    shapes = [batch.images.shape[2:] for batch in make_loader(data, 1, shuffle=True, epoch=0, sizes=[32, 64])]
    assert {tuple(shape) for shape in shapes} == {(32, 32), (64, 64)}
    assert any(left != right for left, right in pairwise(shapes))


def test_augmentation_can_change_between_epochs(samples: tuple[Sample, ...]) -> None:
    data = DetectionDataset(samples, 2, SIZE, augment=AugmentConfig())
    plain = list(make_loader(DetectionDataset(samples, 2, SIZE), 4, shuffle=True, epoch=1))
    assert not same(list(make_loader(data, 4, shuffle=True, epoch=1)), plain)
    data.augment = None
    assert same(list(make_loader(data, 4, shuffle=True, epoch=1)), plain)


def test_a_single_image_makes_a_mosaic_with_itself(samples: tuple[Sample, ...]) -> None:
    image, _ = DetectionDataset(samples[:1], 2, SIZE, augment=AugmentConfig())[0]
    assert image.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_numbers_alone(samples: tuple[Sample, ...], workers: int) -> None:
    data = DetectionDataset(samples, 2, SIZE, augment=AugmentConfig())
    before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002 - it is what is tested
    list(make_loader(data, 4, shuffle=True, epoch=0, workers=workers))
    assert torch.equal(before, torch.get_rng_state())
    assert str(numpy_before) == str(np.random.get_state(legacy=False))  # noqa: NPY002 - as above


def test_a_batch_moves_as_one(samples: tuple[Sample, ...]) -> None:
    (batch,) = make_loader(DetectionDataset(samples[:2], 2, SIZE), 2, shuffle=False, epoch=0)
    moved = batch.to(torch.device("meta"))
    assert {part.device.type for part in (moved.images, moved.targets, moved.indices)} == {"meta"}


def test_bad_labels_and_images_are_named_before_training(samples: tuple[Sample, ...]) -> None:
    samples[7].label.write_text("0 0.5 0.5 0.5 0.5\n5 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DatasetError, match=r"/7\.txt:2: class 5 is out of range"):
        DetectionDataset(samples, 2, SIZE, cache_bytes=0)
    samples[7].label.unlink()
    samples[4].image.write_bytes(samples[4].image.read_bytes()[:20])
    with pytest.raises(DatasetError, match=r"/4\.png: is not a readable image"):
        DetectionDataset(samples, 2, SIZE)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_beyond_the_cache_are_read_again_and_missed_in_one_line(
    samples: tuple[Sample, ...], workers: int
) -> None:
    four_bytes = sum(fit_image(read_image(sample.image), SIZE).nbytes for sample in samples[:4])
    data = DetectionDataset(samples, 2, SIZE, cache_bytes=four_bytes)
    for sample in samples[:5]:
        sample.image.unlink()
    before = {*multiprocessing.active_children()}
    batches = iter(make_loader(data, 4, shuffle=False, epoch=0, workers=workers))
    assert next(batches).indices.tolist() == [0, 1, 2, 3]
    with pytest.raises(DatasetError) as caught:
        next(batches)
    assert str(caught.value) == f"{samples[4].image}: there is no such image; name an image that exists"
    assert caught.value.where == str(samples[4].image)
    assert {*multiprocessing.active_children()} <= before  # though `caught` holds the frames that had the loader


def test_a_batch_that_cannot_be_shared_is_an_error_with_its_cure(
    samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(tensor: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", fill_up)
    data = DetectionDataset(samples, 2, SIZE)
    said = r"workers: a batch of 0\.0 MB cannot be handed over: shared memory \(/dev/shm\) is full; make it larger"
    with pytest.raises(DatasetError, match=said):
        list(make_loader(data, 4, shuffle=False, epoch=0, workers=2))
    assert len(list(make_loader(data, 4, shuffle=False, epoch=0, workers=0))) == count_batches(len(data), 4)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a data loader wait for the end of its processes shorter than 5 s each, before it kills them."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    yield
    gc.collect()  # the loader's end, if it is not over


@pytest.mark.usefixtures("impatient")
def test_processes_that_make_no_batch_end_the_wait(
    samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolo_prune.datasets.loader.POLL_S", 0.05)
    monkeypatch.setattr(module, "POLL_S", 0.05)
    monkeypatch.setattr(module, "SILENCE_S", 0.2)
    monkeypatch.setattr(DetectionDataset, "make_item", lambda *arguments, **named: time.sleep(60))
    waited: list[None] = []
    data = DetectionDataset(samples, 2, SIZE)
    batches = make_loader(data, 4, shuffle=False, epoch=0, workers=1, while_waiting=lambda: waited.append(None))
    with pytest.raises(DatasetError, match=r"workers: no batch came for 0\.003\d* minutes; resume the run"):
        list(batches)
    assert len(waited) == 4


@pytest.mark.usefixtures("impatient")
def test_a_wait_can_be_stopped(samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("yolo_prune.datasets.loader.POLL_S", 0.05)
    monkeypatch.setattr(module, "POLL_S", 0.05)
    monkeypatch.setattr(DetectionDataset, "make_item", lambda *arguments, **named: time.sleep(60))
    data = DetectionDataset(samples, 2, SIZE)
    with pytest.raises(Interrupted):
        list(make_loader(data, 4, shuffle=False, epoch=0, workers=1, while_waiting=stop))


def test_a_worker_that_dies_is_named(samples: tuple[Sample, ...]) -> None:
    data = DetectionDataset(samples, 2, SIZE)

    def die(*arguments: Any, **named: Any) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectionDataset, "make_item", die)
        with pytest.raises(DatasetError, match="workers: a process that loads images died; resume the run, with fewer"):
            list(make_loader(data, 4, shuffle=False, epoch=0, workers=1))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_an_epoch_can_be_resumed_in_its_middle(samples: tuple[Sample, ...], start: int) -> None:
    data = DetectionDataset(samples, 2, SIZE, augment=AugmentConfig())
    whole = list(make_loader(data, 4, shuffle=True, epoch=1, sizes=[32, 64]))
    assert same(list(make_loader(data, 4, shuffle=True, epoch=1, sizes=[32, 64], start=start)), whole[start:])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_processes_share_every_batch(samples: tuple[Sample, ...], count: int) -> None:
    data = DetectionDataset(samples, 2, SIZE, augment=AugmentConfig())
    whole = list(make_loader(data, 4, shuffle=True, epoch=1, sizes=[32, 64]))
    parts = [
        list(make_loader(data, 4, shuffle=True, epoch=1, sizes=[32, 64], share=Share(rank, count)))
        for rank in range(count)
    ]
    kept = whole if count < 4 else whole[:-1]  # the last batch has three images
    assert {len(part) for part in parts} == {len(kept)} == {count_batches(COUNT, 4, Share(0, count))}
    for number, batch in enumerate(kept):
        mine = [part[number] for part in parts]
        assert [part.indices.tolist() for part in mine] == [
            batch.indices.tolist()[rank::count] for rank in range(count)
        ]
        assert all(torch.equal(part.images, batch.images[rank::count]) for rank, part in enumerate(mine))


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_a_batch_splits_without_loss(samples: tuple[Sample, ...], parts: int) -> None:
    (batch,) = make_loader(DetectionDataset(samples[:4], 2, SIZE), 4, shuffle=False, epoch=0)
    pieces = batch.split(parts)
    assert len(pieces) == min(parts, 4)
    assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
    assert torch.cat([piece.indices for piece in pieces]).tolist() == batch.indices.tolist()
    firsts = np.cumsum([0, *[len(piece.images) for piece in pieces[:-1]]]).tolist()
    rejoined = [
        piece.targets + piece.targets.new_tensor([first, *[0] * 6]) for first, piece in zip(firsts, pieces, strict=True)
    ]
    assert torch.equal(torch.cat(rejoined), batch.targets)


def test_rectangles_are_padded_no_more_than_they_must(samples: tuple[Sample, ...]) -> None:
    data = DetectionDataset(samples, 2, 64)
    seen: list[int] = []
    for batch in read_in_order(data, 3, indices=range(1, COUNT), rectangular=True):
        height, width = batch.images.shape[2:]
        for place, index in enumerate(batch.indices.tolist()):
            header = data.headers[index]
            longer = max(header.width_px, header.height_px)
            sides = [round(side * 64 / longer) for side in (header.width_px, header.height_px)]
            assert all(
                0 <= padded - side < 32 and padded % 32 == 0
                for padded, side in zip((width, height), sides, strict=True)
            )
            seen.append(index)
            square, rows = data.make_item(index)
            mine = batch.targets[batch.targets[:, 0] == place, 2:6] * torch.tensor([width, height, width, height])
            spans = torch.from_numpy(rows[:, 3:5] - rows[:, 1:3])
            torch.testing.assert_close(mine[:, 2:], spans, rtol=1e-4, atol=1e-3)
            assert square.shape == (64, 64, 3)
    assert sorted(seen) == list(range(1, COUNT))


def test_a_folder_for_temporary_files_too_deep_for_sockets_is_an_error(
    hands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (deep := tmp_path / ("d" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    data = DetectionDataset(load_spec(hands).samples("train"), 1, 64)
    with pytest.raises(
        ConfigError, match=r"^workers: the path of the folder for temporary files has more than 75 bytes"
    ):
        make_loader(data, 2, shuffle=False, epoch=0, workers=1)
    assert len(list(make_loader(data, 2, shuffle=False, epoch=0))) > 0
