"Faults and equalities of `dlcourse.data.blocks` that don't belong in a lesson"
import warnings

import numpy as np
import pytest
import torch
from fastai.data.core import TfmdDL
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from PIL import Image

from dlcourse.core import CourseError
from dlcourse.data.blocks import MemoryDL, block_for, check, dls_for
from dlcourse.data.transforms import CropFlip
from dlcourse.training.learner import learner_for


@pytest.fixture
def folder(tmp_path):
    "Two classes of 20 colour images, 12 by 16"
    rng = np.random.default_rng(0)
    for c, low in (('bright', 128), ('dark', 0)):
        (tmp_path/c).mkdir()
        for i in range(20): Image.fromarray(rng.integers(low, low+128, (12, 16, 3), dtype=np.uint8)).save(tmp_path/c/f'{i:02}.png')
    return tmp_path


@pytest.fixture(scope='module')
def learn():
    learn = learner_for('mlp', data='digits', seed=1, lr=1e-2)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    return learn


def test_files_and_memory_hold_the_same_images(folder):
    a, b = (dls_for(folder, bs=4, in_memory=o, size=(12, 16)) for o in (True, False))
    assert isinstance(a.train, MemoryDL) and type(b.train) is TfmdDL
    (xa, ya), (xb, yb) = a.valid.one_batch(), b.valid.one_batch()
    assert torch.equal(ya, yb.as_subclass(torch.Tensor))
    assert torch.allclose(xa, xb.as_subclass(torch.Tensor), atol=0.02)


def test_folder_too_large_for_memory_says_so(folder, capsys, monkeypatch):
    monkeypatch.setattr('dlcourse.data.blocks.memory_limit', 1000)
    assert type(dls_for(folder, bs=4).train) is TfmdDL
    assert 'stay in files' in capsys.readouterr().out


def test_file_that_is_no_image_is_named(folder):
    (folder/'dark'/'05.png').write_text('not an image')
    with pytest.raises(CourseError, match='05.png is not an image'): dls_for(folder, bs=4)
    dls = dls_for(folder, bs=4, in_memory=False, normalize=False)
    with pytest.raises(CourseError, match='05.png'): check(dls, n=None)


def test_mixed_channels_in_files(folder):
    Image.new('L', (16, 12)).save(folder/'dark'/'99.png')
    with pytest.raises(CourseError, match='channels=1 or channels=3'): dls_for(folder, bs=4)
    dls = dls_for(folder, bs=4, in_memory=False)
    with pytest.raises(CourseError, match='channels=1 or channels=3'): check(dls, n=None)
    assert check(dls_for(folder, bs=4, in_memory=False, channels=1), n=None).result.iloc[0].startswith('PILGrey')


def test_folder_learns_and_predicts_a_file(folder):
    learn = learner_for('mlp', data=folder, bs=8, lr=1e-2, seed=1)
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    label, _, probs = learn.predict(folder/'dark'/'00.png')
    assert label == 'dark' and probs.shape == (2,)


def test_train_only_transforms_leave_validation_alone():
    plain, augmented = dls_for('digits'), dls_for('digits', augment=CropFlip(pad=2))
    assert torch.equal(plain.valid.one_batch()[0], augmented.valid.one_batch()[0])
    x = [torch.cat([b[0] for b in d.train.new(shuffle=False)]) for d in (plain, augmented)]
    assert not torch.equal(*x)


def test_predictions_come_in_the_order_of_the_items(learn):
    probs, targets = learn.get_preds(ds_idx=0)
    ds = learn.dls.train_ds
    assert targets.tolist() == [int(ds[i][1]) for i in range(len(ds))]
    one = learn.get_preds(dl=learn.dls.test_dl(ds.items[:7]))[0]
    assert torch.allclose(one, probs[:7], atol=1e-6)


def test_test_dl_takes_files_images_and_rows(learn, tmp_path):
    image = learn.dls.valid_ds[0][0]
    image.save(tmp_path/'a.png')
    for items in ([tmp_path/'a.png'], [str(tmp_path/'a.png')], [Image.open(tmp_path/'a.png')], [np.asarray(image)], learn.dls.valid_ds.items[:1]):
        assert torch.allclose(learn.get_preds(dl=learn.dls.test_dl(items))[0], learn.get_preds()[0][:1], atol=1e-6)


def test_interpretation_decodes_and_shows(learn):
    interp = ClassificationInterpretation.from_learner(learn)
    assert interp.confusion_matrix().sum() == len(learn.dls.valid_ds)
    inputs, probs, targets, decoded, losses = interp[[0, 3]]
    interp.plot_top_losses(2)
    learn.show_results(max_n=2)
    assert inputs.shape == (2, 1, 8, 8) and len(probs) == len(losses) == 2
    shown = learn.dls.valid.decode(learn.dls.valid.one_batch())[0]
    assert 0 <= shown.min() and shown.max() <= 255


def test_export_leaves_the_images_behind(learn, tmp_path):
    learn.path = tmp_path
    learn.export()
    weights = sum(o.numel()*4 for o in learn.model.parameters())
    assert (tmp_path/'export.pkl').stat().st_size < weights + 50_000
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'export.pkl')
    image = learn.dls.valid_ds[0][0]
    with loaded.no_bar(): assert torch.allclose(loaded.predict(image)[2], learn.predict(image)[2], atol=1e-6)


def test_stock_learner_takes_the_loader():
    learn = learner_for('mlp', data='digits')
    stock = Learner(learn.dls, learn.model, loss_func=learn.loss_func, opt_func=learn.opt_func, metrics=learn.metrics)
    with stock.no_bar(), stock.no_logging(): stock.fit(1)
    assert stock.get_preds()[0].shape == (len(learn.dls.valid_ds), 10)


def test_check_looks_at_validation_items_too(folder):
    dls = dls_for(folder, bs=4, in_memory=False, normalize=False)
    file = dls.valid_ds.tls[0].tfms.fs[0].store.files[dls.valid_ds.items[-1]]
    file.write_text('not an image')
    with pytest.raises(CourseError, match=file.name): check(dls, n=None)


def test_loaders_start_from_their_seed():
    a, b, c = (dls_for('digits', seed=s).one_batch()[1] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_validation_on_the_test_part():
    dls = dls_for('digits', valid='test')
    assert len(dls.loaders) == 2
    with pytest.raises(CourseError, match='no test part'): dls.test


def test_a_block_of_ones_own():
    block = block_for('digits', augment=CropFlip(pad=1))
    dls = dls_for(block, bs=16)
    assert dls.one_batch()[0].shape == (16, 1, 8, 8) and dls.name == 'digits'


@pytest.mark.parametrize('data,kw,match', [
    ('digit', {}, "Did you mean 'digits'"),
    ('digits', dict(classes=['1', 'two']), 'unknown class'),
    ('digits', dict(classes=['1']), 'two different classes'),
    ('digits', dict(n_per_class=5000), 'fewer than the 5,000'),
    ('digits', dict(bs=5000), 'batch size 5000 is larger'),
    ((np.zeros((4, 8, 8), np.uint8), [0, 1, 0]), {}, '4 images but 3 labels'),
    ((np.zeros((4, 8, 8), np.uint8),), {}, 'expected arrays'),
    ((np.zeros((4, 8, 8), np.float32), [0, 1, 0, 1]), {}, 'uint8'),
    (42, {}, 'expected a name'),
])
def test_bad_data_is_one_clear_error(data, kw, match):
    with pytest.raises(CourseError, match=match): dls_for(data, **kw)


@pytest.mark.parametrize('size', [(28, 14), (14, 28), (14, 14), (56, 14)])
def test_shrinking_either_side_smooths(size):
    "Stripes of one pixel become grey wherever the side across them shrinks"
    from dlcourse.data.blocks import AtSize
    x = 255*(torch.arange(28) % 2).float().expand(1, 1, 28, 28)
    if size[1] == 28: x = x.transpose(2, 3)
    y = AtSize(size).apply(x.byte())
    assert y.shape[2:] == size and (y[..., 2:-2, 2:-2] - 127.5).abs().max() < 40
