"""A DataLoader's batches of RAW images."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, StackDataset
from training_run import files, raw_image

import isp_distill
from isp_distill import ISP, View, collate, cut_view


def test_a_data_loader_makes_batches_of_a_folder(tmp_path):
    folder = files(tmp_path / "raw", count=3)
    batches = list(DataLoader(folder, batch_size=2))
    assert [len(batch.mosaic) for batch in batches] == [2, 1]
    raws = [folder[0], folder[1]]
    assert np.array_equal(batches[0].mosaic.numpy(), np.stack([r.mosaic for r in raws]))
    expected = ISP.from_raw(raws)
    assert torch.equal(batches[0].isp.black, expected.black)
    assert torch.equal(batches[0].isp.pattern, expected.pattern)
    assert batches[0].labels is None
    pairs = StackDataset(folder, [4, None, 2])
    batch = next(iter(DataLoader(pairs, 3, collate_fn=collate, num_workers=1, timeout=60)))
    assert batch.labels.tolist() == [4, -100, 2]


def test_files_of_several_sizes_need_a_view():
    data = [raw_image(0), raw_image(1, side=60)]
    with pytest.raises(ValueError, match=r"differ in size \(48 x 48, 60 x 60\).*View\(448\)"):
        next(iter(DataLoader(data, 2)))
    view = functools.partial(collate, view=View(24))
    batch = next(iter(DataLoader(data, 2, collate_fn=view)))
    mosaic, isp = cut_view(data, View(24))
    assert torch.equal(batch.mosaic, mosaic)
    assert torch.equal(batch.isp.pattern, isp.pattern)


def test_what_is_no_raw_image_is_refused():
    with pytest.raises(ValueError, match="empty"):
        collate([])
    with pytest.raises(TypeError, match="not ndarray"):
        collate([np.zeros((4, 4, 3), np.uint8)])
    for label in (3.7, "cat", np.zeros((4, 4), np.int64)):
        with pytest.raises(TypeError, match="a label must be a class"):
            collate([(raw_image(0), label)])
    assert collate([(raw_image(0), np.int64(3))]).labels.tolist() == [3]
    turned = dataclasses.replace(raw_image(1), orientation=6)
    with pytest.raises(ValueError, match="orientations"):
        collate([raw_image(0), turned])
    assert isp_distill.collate is collate
