"Tables of features, and the fast copy of a resting body: equal to images, and refused when they don't fit"
import copy, pickle

import pytest
import torch
from torch import nn

from dlcourse.core import CourseError
from dlcourse.data.blocks import dls_for
from dlcourse.data.loader import renormalized
from dlcourse.models.views import as_is, mirrored
from dlcourse.models.zoo import model_for
from dlcourse.training.learner import learner_for
from dlcourse.training.transfer import feature_table, concat_tables


@pytest.fixture(scope='module')
def dls(): return dls_for('digits', size=32, n_per_class=12, bs=16, seed=1)


def small(dls, arch='squeezenet1_1', **kwargs):
    learn = learner_for(arch, dls, pretrained=False, head='mean', seed=1, **kwargs)
    learn.freeze()
    return learn


@pytest.fixture(scope='module')
def learn(dls): return small(dls)


def test_trained_and_judged_as_on_images(dls):
    both = []
    for tabled in (False, True):
        learn = small(dls)
        for p in learn.model.head.modules():
            if isinstance(p, nn.Dropout): p.p = 0.
        with learn.quiet():
            if tabled:
                with learn.on_table(feature_table(learn.model, dls)):
                    learn.fit(2, 1e-3)
                    both.append((learn.history.valid_loss.tolist(), learn.validate(ds_idx=2)))
            else:
                learn.fit(2, 1e-3)
                both.append((learn.history.valid_loss.tolist(), learn.validate(ds_idx=2)))
        assert learn.dls is dls
    assert both[0][0] == pytest.approx(both[1][0], abs=1e-5) and list(both[0][1]) == pytest.approx(list(both[1][1]), abs=1e-5)


def test_kept_in_a_file(dls, learn, tmp_path):
    file = tmp_path/'a.safetensors'
    first = feature_table(learn.model, dls, file, (as_is, mirrored))
    written = file.stat().st_mtime_ns
    again = feature_table(learn.model, dls, file, (as_is, mirrored))
    assert all(torch.equal(a, b) for a,b in zip(first.xs, again.xs)) and file.stat().st_mtime_ns == written and len(first.xs) == 2
    whole = [renormalized(dls_for('digits', size=32, bs=16, seed=s), (0.5,), (0.2,)) for s in (3, 4)]
    tables = [feature_table(learn.model, o, tmp_path/'b.safetensors') for o in whole]
    assert torch.equal(tables[0].xs[0], tables[1].xs[0]), 'the split makes no difference'


@pytest.mark.parametrize('change, what', [('weights', 'weights'), ('images', 'images'), ('views', 'transforms')])
def test_a_stale_file_is_refused(dls, tmp_path, change, what):
    learn, file, views = small(dls), tmp_path/'a.safetensors', (as_is,)
    feature_table(learn.model, dls, file, views)
    if change == 'weights':
        with torch.no_grad(): next(learn.model.body.parameters())[0] += 1
    if change == 'images': dls = dls_for('digits', size=32, n_per_class=12, bs=16, seed=9)
    if change == 'views': views = (mirrored,)
    with pytest.raises(CourseError, match=f'was made from other {what}'): feature_table(learn.model, dls, file, views)


def test_what_does_not_fit(dls, learn, tmp_path):
    table = feature_table(learn.model, dls)
    others = dls_for('digits', size=32, bs=16, seed=3)
    with pytest.raises(CourseError, match='made of other images'):
        with small(others).on_table(table): pass
    with pytest.raises(CourseError, match='same images in the same views'): concat_tables([table, feature_table(learn.model, others)])
    with pytest.raises(CourseError, match='same images in the same views'): concat_tables([table, feature_table(learn.model, dls, views=(as_is, mirrored))])
    in_files = dls_for('digits', size=32, n_per_class=12, bs=16, item_tfms=[lambda o: o])
    with pytest.raises(CourseError, match='images in memory'): feature_table(learn.model, in_files)


def test_everything_is_put_back_after_an_error(dls, learn):
    net = learn.model
    with pytest.raises(KeyError), learn.on_table(feature_table(net, dls, views=(as_is, mirrored)), average=True): raise KeyError
    assert learn.model is net and learn.dls is dls and not net.takes_features


def test_fast_copy_follows_the_weights():
    net = model_for('mobilenet_v2', (3, 32, 32), 4, pretrained=False).eval()
    net.body.requires_grad_(False)
    x = torch.randn(3, 3, 32, 32)
    with net.quickly(), torch.no_grad():
        assert (net(x) - net.tail(net.features(x))).abs().max() == 0
        before = net.features(x)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in net._copy[1][0].modules())
        for o in net.body.buffers():
            if o.dtype.is_floating_point: o.mul_(1.5)
        after = net.features(x)
    with torch.no_grad(): off = (after - net.features(x)).abs().max()
    assert off < 1e-3*after.abs().max() and (after - before).abs().max() > 0.1*before.abs().max()
    assert net._copy == (None, None)


def test_a_body_that_learns_is_not_replaced():
    net = model_for('squeezenet1_1', (3, 48, 48), 4, pretrained=False).train()
    x = torch.randn(2, 3, 48, 48)
    with net.quickly():
        net(x).sum().backward()
        assert net._copy == (None, None) and next(net.body.parameters()).grad is not None


def test_copies_and_pickles_leave_the_fast_copy_behind():
    net = model_for('squeezenet1_1', (3, 48, 48), 4, pretrained=False).eval()
    net.body.requires_grad_(False)
    x = torch.randn(2, 3, 48, 48)
    with net.quickly():
        expected = net(x)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert other._copy == (None, None) and torch.allclose(other(x), expected, atol=1e-5)
    assert not [k for k in net.state_dict() if 'copy' in k]


def test_images_that_want_gradients_get_them():
    net = model_for('squeezenet1_1', (3, 48, 48), 4, pretrained=False).eval()
    net.body.requires_grad_(False)
    x = torch.randn(1, 3, 48, 48, requires_grad=True)
    with net.quickly(): net(x).sum().backward()
    assert x.grad.abs().sum() > 0
