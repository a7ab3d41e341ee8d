"Transforms of whole batches: equalities, seeds, types, bad input"
import os
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dlcourse.core import CourseError, seed_all
from dlcourse.data.sources import image_files, load_folder, read_images
from dlcourse.data.transforms import (BatchAffine, BatchTransform, CropFlip, RandomPosition, RandomScale, SaltAndPepper, _axes, affine_grid,
    as_range, perturb, save_images, stretches, take_window)
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import Normalize
from fastai.torch_core import TensorImage, TensorImageBW, TensorMask
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fasttransform import Pipeline

x = torch.randint(0, 256, (20, 3, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
every = [lambda **k: SaltAndPepper((0.1, 0.5), **k), lambda **k: RandomScale((0.5, 2), **k), lambda **k: RandomPosition(3, **k),
         lambda **k: RandomPosition(canvas=(20, 18), **k), lambda **k: CropFlip(3, **k), lambda **k: CropFlip(3, mode='reflect', **k),
         lambda **k: BatchAffine(shear=(-9, 9), fill=0.5, **k), lambda **k: BatchAffine(mode='nearest', **k)]
each = pytest.mark.parametrize('make', every)


def fails(words, f, *args, **kwargs):
    "`f` raises a `CourseError` of one line that has `words`"
    with pytest.raises(CourseError) as e: f(*args, **kwargs)
    assert words in str(e.value) and '\n' not in str(e.value)


@each
def test_type_and_input_are_kept(make):
    for o in (x, x/255, (x/255).double(), (x/255).bfloat16()):
        kept, got = o.clone(), make().apply(o)
        assert got.dtype == o.dtype and got.shape[:2] == o.shape[:2] and torch.equal(o, kept)
        if o.is_floating_point(): assert got.min() >= 0 and got.max() <= 1.001


@each
def test_bytes_and_floats_agree(make):
    a, b = make(seed=1).apply(x), make(seed=1).apply(x/255)*255
    assert (a.float() - b).abs().max() < 0.51


@each
def test_seeds(make):
    tfm = make(seed=3)
    first, second = tfm.apply(x), tfm.apply(x)
    tfm.reset()
    assert torch.equal(tfm.apply(x), first) and not torch.equal(first, second) and not torch.equal(make(seed=4).apply(x), first)
    torch.manual_seed(0)
    was = torch.get_rng_state()
    tfm.apply(x)
    assert torch.equal(torch.get_rng_state(), was)


@each
def test_seed_all_governs(make):
    tfm, got = make(), []
    for _ in range(2):
        seed_all(5)
        got.append(tfm.apply(x))
    assert torch.equal(*got)


@each
def test_images_differ_by_their_own_draw(make):
    same = make(seed=1).apply(x[:1].expand(20, -1, -1, -1))
    assert sum(not torch.equal(o, same[0]) for o in same) > 10


@each
def test_in_a_pipeline(make):
    img = TensorImageBW(x[:, :1])
    got = Pipeline(make(), split_idx=0)(img)
    assert type(got) is TensorImageBW
    item = Pipeline(make(), split_idx=0)(TensorImage(x[0]))
    assert type(item) is TensorImage and item.ndim == 3
    mask = TensorMask(x[:, 0])
    assert Pipeline(make(), split_idx=0)((img, mask))[1] is mask
    assert type(make()).__name__ in repr(Pipeline(make())) and "'seed': None" in repr(Pipeline(make()))


@each
def test_copies_and_files(make):
    tfm = make(seed=1)
    tfm.apply(x)
    for o in (pickle.loads(pickle.dumps(tfm)), deepcopy(tfm)):
        assert not o._tables and torch.equal(o.apply(x), deepcopy(tfm).apply(x))


@each
def test_other_memory_layouts(make):
    for o in (x.contiguous(memory_format=torch.channels_last), torch.cat([x, x], 2)[:, :, :12], x[:, :1].expand(-1, 3, -1, -1)):
        assert torch.equal(make(seed=1).apply(o), make(seed=1).apply(o.contiguous()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA device')
@each
def test_on_a_gpu(make):
    got = make(seed=1).apply(x.cuda())
    assert got.is_cuda and got.dtype == torch.uint8
    assert torch.equal(make(seed=1).apply(x.cuda()), got)


def test_train_only():
    img = TensorImage(x)
    for tfm in (CropFlip(3), BatchAffine(), SaltAndPepper(train_only=True)):
        assert Pipeline(tfm, split_idx=1)(img) is img and not torch.equal(Pipeline(tfm, split_idx=0)(img), img)
    for tfm in (SaltAndPepper(), RandomScale(0.5), RandomPosition(3), CropFlip(3, train_only=False)):
        assert not torch.equal(Pipeline(tfm, split_idx=1)(img), img)


@pytest.mark.parametrize('where', ['item_tfms', 'batch_tfms'])
def test_in_a_data_block(where):
    tfms = [SaltAndPepper(0.3), CropFlip(2, train_only=False), BatchAffine(train_only=False)]
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda i: PILImage.create(x[i].permute(1, 2, 0).numpy()), get_y=lambda i: i % 2,
                      **{where: tfms}).dataloaders(range(20), bs=4)
    xb, yb = block.one_batch()
    assert xb.shape == (4, 3, 12, 16) and xb.dtype == torch.float32 and type(xb) is TensorImage and 0 <= xb.min() and xb.max() <= 1


def test_orders():
    names = [type(o).__name__ for o in Pipeline([Normalize.from_stats([.5], [.5], cuda=False), BatchAffine(), SaltAndPepper(), RandomScale(0.5), CropFlip()]).fs]
    assert names == ['SaltAndPepper', 'RandomScale', 'CropFlip', 'BatchAffine', 'Normalize']


# ranges
@pytest.mark.parametrize('v', [-0.1, 1.1, (0, 2), (0.5, 0.2), (0.1,), 'a', None, True, float('nan'), (0, None)])
def test_ranges(v): fails('amount is a number from 0 to 1', as_range, v, 'amount', 0, 1)


# salt and pepper
def test_pixels_are_hit_in_all_channels():
    got = SaltAndPepper(0.5).apply(torch.full((50, 3, 12, 16), 7, dtype=torch.uint8))
    assert (got == got[:, :1]).all() and set(got.unique().tolist()) == {0, 7, 255}


def test_none_and_all_of_the_pixels():
    assert torch.equal(SaltAndPepper(0).apply(x), x)
    assert (SaltAndPepper(1, salt=1).apply(x) == 255).all() and (SaltAndPepper(1, salt=0).apply(x/255) == 0).all()


def test_amounts_are_drawn_for_each_image():
    hit = (SaltAndPepper((0.2, 0.6), seed=1).apply(torch.full((2000, 1, 20, 20), 7, dtype=torch.uint8)) != 7).float().mean((1, 2, 3))
    assert abs(hit.mean() - 0.4) < 0.01 and abs(hit.std() - 0.4/12**.5) < 0.02


@pytest.mark.parametrize('args', [(1.2,), (-0.1,), ((0.1, 1.2),), (0.1, 1.5), (0.1, -1)])
def test_amounts_out_of_range(args): fails('from 0 to 1', SaltAndPepper, *args)


# position
def test_a_window_is_a_slice():
    padded = F.pad(x, (20,)*4, value=255)
    top, left = torch.randint(-14, 14, (2, 20))
    got = take_window(x, top, left, (9, 21), fill=1)
    for o, p, t, l in zip(got, padded, top, left): assert torch.equal(o, p[:, t+20:t+29, l+20:l+41])


def test_places_are_equally_likely():
    dots = torch.zeros(4900, 1, 9, 9)
    dots[:, :, 4, 4] = 1
    seen = RandomPosition(3, seed=0).apply(dots).sum((0, 1))
    assert (seen[1:8, 1:8] > 60).all() and seen[1:8, 1:8].sum() == 4900


@pytest.mark.parametrize('kw, side', [(dict(shift=0.25), 3), (dict(shift=2), 2), (dict(shift=0), 0), (dict(shift=100), 11)])
def test_how_far_it_may_move(kw, side): assert RandomPosition(**kw).places(12, 0) == (-side, side, 12)


def test_every_pixel_is_on_the_canvas():
    got = RandomPosition(canvas=(30, 20), fill=1).apply(x)
    assert got.shape == (20, 3, 30, 20)
    assert ((got.long().sum((1, 2, 3)) - x.long().sum((1, 2, 3))) == 255*3*(30*20 - 12*16)).all()


@pytest.mark.parametrize('kw', [dict(), dict(shift=3, canvas=40), dict(shift=3, at=(1, 1)), dict(shift=-1), dict(shift='far'),
                                dict(canvas=40, train_only=True), dict(shift=1, fill=2)])
def test_positions_that_are_none(kw): fails('', RandomPosition, **kw)


@pytest.mark.parametrize('kw', [dict(canvas=12), dict(canvas=(40, 15)), dict(canvas=20, at=(9, 0)), dict(at=(12, 0)), dict(canvas=20, at=(-1, 0))])
def test_positions_that_do_not_fit(kw): fails('one side', RandomPosition(**kw).apply, x)


# affine maps
def test_the_grid_is_that_of_torch():
    deg, s, k, t = torch.tensor([0.3, -1.2]), torch.tensor([1.3, 0.6]), torch.tensor([0.2, -0.5]), torch.tensor([[0.1, -0.2], [0., 0.3]])
    got = affine_grid(_axes(12, 12, deg.device), torch.stack([s, deg, *t, k]))
    slant = torch.eye(2).repeat(2, 1, 1)
    slant[:, 0, 1] = k
    turn = torch.stack([deg.cos(), -deg.sin(), deg.sin(), deg.cos()], 1).view(2, 2, 2)
    theta = torch.cat([slant @ turn / s[:, None, None], -2*t.T[:, :, None]], 2)
    assert torch.allclose(got, F.affine_grid(theta, (2, 1, 12, 12), align_corners=False), atol=1e-5)


def test_turns_of_other_shapes_keep_their_proportions():
    assert torch.equal(BatchAffine(180, 1, 0).apply(x), x.flip(-1, -2))
    disc = (((torch.arange(41) - 20)[:, None]**2 + (torch.arange(61) - 30)**2) < 225).float()[None, None]
    assert (BatchAffine(37, 1, 0).apply(disc) - disc).abs().mean() < 0.02


def test_fixed_strengths_do_not_vary():
    for tfm in (BatchAffine(20, 0.8, 0.1, 10), RandomScale(0.7)): assert torch.equal(tfm.apply(x), tfm.apply(x))


def test_background_of_small_images():
    for o, white in ((x, 255), (x/255, 1)):
        got = RandomScale(0.25, fill=1).apply(o)
        assert (got[:, :, :4] == white).all() and (got[..., :5] == white).all()


@pytest.mark.parametrize('kw', [dict(degrees=400), dict(scale=0), dict(scale=(-1, 1)), dict(shear=90), dict(translate=2), dict(fill=-1), dict(mode='cubic')])
def test_affine_maps_that_are_none(kw): fails('', BatchAffine, **kw)


# crop and flip
@pytest.mark.parametrize('mode', ['zeros', 'reflect'])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('pad', [0, 1, 5, 11])
def test_each_result_is_a_crop(mode, dtype, pad):
    img = x.to(dtype)
    got, seen = CropFlip(pad, mode=mode).apply(img), set()
    for o, i in zip(got.double(), img.double()):
        padded = F.pad(torch.stack([i, i.flip(-1)]), (pad,)*4, mode='reflect' if mode == 'reflect' else 'constant')
        same = (padded.unfold(2, 12, 1).unfold(3, 16, 1) == o[None, :, None, None]).all((1, 4, 5))
        assert same.any()
        seen.add(same.nonzero()[0, 0].item())
    assert seen == {0, 1}


def test_moves_and_flips_are_equally_likely():
    img = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(9000, -1, -1, -1)
    for flip, mode in ((0.5, 'zeros'), (0.5, 'reflect'), (0.1, 'zeros'), (0, 'zeros'), (1, 'zeros')):
        kinds, n = CropFlip(1, flip, mode, seed=1).apply(img).flatten(1).unique(dim=0, return_counts=True)
        want = {0: 9, 1: 9}.get(flip, 18)
        if mode == 'zeros': assert len(kinds) == want
        if flip == 0.5 and mode == 'zeros': assert (n - 500).abs().max() < 110
        plain = (CropFlip(0, flip, mode, seed=1).apply(img) == img).all((1, 2, 3)).float().mean()
        assert abs(plain - (1 - flip)) < 0.02


def test_not_a_number_is_masked():
    got = CropFlip(3, 0, seed=1).apply(torch.full((50, 1, 8, 8), float('nan')))
    assert set(got.nan_to_num(7.).unique().tolist()) == {0., 7.}


@pytest.mark.parametrize('args', [(-1,), (1.5,), (4, 1.5), (4, 0.5, 'wrap')])
def test_crops_that_are_none(args): fails('', CropFlip, *args)


def test_pad_too_large(): fails('too much for images of 12×16', CropFlip(12).apply, x)


def test_stretches_are_the_same_by_index():
    flat, start = torch.arange(50), torch.tensor([0, 43, 7])
    assert torch.equal(stretches(flat, start, 7), flat[start[:, None] + torch.arange(7)])


# whole sets
def test_perturb_leaves_no_trace():
    tfms = [SaltAndPepper((0, 0.3), train_only=True), RandomPosition(3, seed=7)]
    torch.manual_seed(1)
    was, before = torch.get_rng_state(), deepcopy(tfms[1]).apply(x)
    a = perturb(x, tfms, seed=2, chunk=7)
    assert torch.equal(torch.get_rng_state(), was) and torch.equal(tfms[1].apply(x), before)
    assert a.dtype == torch.uint8 and torch.equal(a, perturb(x, tfms, seed=2, chunk=7)) and not torch.equal(a, perturb(x, tfms, seed=3, chunk=7))


def test_perturb_takes_one_and_arrays():
    got = perturb(x.numpy(), RandomPosition(canvas=20))
    assert isinstance(got, np.ndarray) and got.dtype == np.uint8 and got.shape == (20, 3, 20, 20)


def test_perturb_refuses():
    fails('images are uint8', perturb, x/255, SaltAndPepper())
    fails('images are uint8', perturb, x[0], SaltAndPepper())
    fails('is no BatchTransform', perturb, x, [Normalize.from_stats([.5], [.5], cuda=False)])


def test_a_subclass_gives_apply():
    with pytest.raises(NotImplementedError): BatchTransform().apply(x)


@pytest.mark.parametrize('channels', [1, 3])
def test_saved_images_come_back(tmp_path, channels):
    y = torch.arange(20) % 3
    found = image_files(save_images(tmp_path/'a'/'set', x[:, :channels], y, ['a/b', 'c d', 'é']))
    assert found.vocab == ['a-b', 'c d', 'é'] and len(found.files) == 20
    order = [int(o.stem) for o in found.files]
    assert torch.equal(read_images(found.files), x[order, :channels]) and (found.y == y.numpy()[order]).all()
    assert load_folder(tmp_path/'a'/'set').x.shape[1] == channels


def test_saving_refuses(tmp_path):
    y = torch.zeros(20, dtype=torch.long)
    fails('there already', save_images, tmp_path, x, y)
    fails('images are uint8', save_images, tmp_path/'a', x/255, y)
    fails('images are uint8', save_images, tmp_path/'a', x[:, :2], y)
    fails('one for each label', save_images, tmp_path/'a', x, y[:3])
    fails('different folder names', save_images, tmp_path/'a', x, y, ['a/b', 'a:b'])
    fails('different folder names', save_images, tmp_path/'a', x, y, ['..', 'b'])
    fails('labels go from', save_images, tmp_path/'a', x, y - 1, ['a', 'b'])
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    def full(self, path, *args): raise OSError(28, os.strerror(28))
    monkeypatch.setattr('PIL.Image.Image.save', full)
    fails('No space left', save_images, tmp_path/'set', x, torch.arange(20) % 2)
    assert not list(tmp_path.iterdir())
