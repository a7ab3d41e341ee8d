"""The loader by itself, and the augmentations, against what must be done to every batch of bytes: index, cast, normalise."""
import warnings

import numpy as np, torch

from .loops import Task
from .measure import again, clock_for, compare, interleaved

BS = (64, 512)


def drain(dl):
    for _ in dl: pass


def epochs_of(task):
    "An epoch of batches, cast and normalised, in three ways"
    from dlcourse.data.blocks import dls_for
    x, y, xv, yv = task.on_device()
    ours = dls_for((task.x, task.y, task.xv, task.yv), valid='test', bs=task.bs, device=task.device).train
    plain, _ = task.loaders(*task.floats())
    def bare():
        batches = torch.randperm(len(x), device=x.device).split(task.bs)
        drain((task.ready(x.index_select(0, i)), y.index_select(0, i)) for i in batches)
    return {'ours': lambda: drain(ours), 'bare indexing': bare, 'TensorDataset, DataLoader': lambda: drain(plain)}


def loader_rows(group, options):
    "An epoch of the in-memory loader"
    rows, detail = [], {}
    for bs in BS:
        task = Task('mlp', bs, 2*bs if options.quick else 20480, device=options.device)
        ways = {k: again(f, 1 if options.quick else 3) for k,f in epochs_of(task).items()}
        s = detail[bs] = interleaved(ways, options)
        rows += [compare(f'{group}-{bs} / {k}', group, s['ours'], s[k], t, clock=clock_for(options.device))
                 for k,t in (('bare indexing', 1.5), ('TensorDataset, DataLoader', None))]
    return rows, dict(data=task.data, seconds=detail)


def augmentations(x):
    "What is done to the batch `x`, uint8 (N, 3, 32, 32): an augmentation alone, or all it takes from bytes to normalised floats"
    from dlcourse.data.transforms import BatchAffine, CropFlip
    from fastai.data.transforms import IntToFloatTensor, Normalize
    from fastai.vision.augment import aug_transforms
    from fastai.vision.core import TensorImage
    from fasttransform import Pipeline
    def finish(x): return x.div_(255).sub_(0.5).div_(0.25)
    crop, affine, floats = CropFlip(pad=4), BatchAffine(), x.float() / 255
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        stock = Pipeline([IntToFloatTensor(), *aug_transforms(), Normalize.from_stats([0.5]*3, [0.25]*3, cuda=x.is_cuda)], split_idx=0)
    return {'cast and normalise': lambda: finish(x.float()), 'crop and flip': lambda: crop.apply(x),
            'random affine': lambda: affine.apply(floats),
            'bytes to floats with crop and flip': lambda: finish(crop.apply(x).float()),
            'bytes to floats with random affine': lambda: finish(affine.apply(x.float())),
            'bytes to floats with aug_transforms': lambda: stock(TensorImage(x))}


def augment_rows(group, options):
    "Augmentations of a batch of random bytes; those with a target are what the augmentation itself takes"
    rows, detail, targets = [], {}, {'crop and flip': 2, 'random affine': 6}
    for bs in BS:
        x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (bs, 3, 32, 32), dtype=np.uint8)).to(options.device)
        n = 1 if options.quick else 6400 // bs
        s = detail[bs] = interleaved({k: again(f, n) for k,f in augmentations(x).items()}, options, 2)
        rows += [compare(f'{group}-{bs}: {k} / cast and normalise', group, s[k], s['cast and normalise'], targets.get(k), scale=n,
                         clock=clock_for(options.device)) for k in s if k != 'cast and normalise']
    return rows, dict(data='random bytes', seconds=detail)
