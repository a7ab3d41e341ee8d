"Activations, separability and pictures of them: equality with what the model gives, faults and bad input"
import matplotlib
matplotlib.use('Agg')
import numpy as np
import pytest
import torch
from fastai.basics import DataLoaders, Learner
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import silhouette_score
from torch import nn
from torch.utils.data import TensorDataset

from dlcourse.core import CourseError
from dlcourse.data.blocks import dls_for
from dlcourse.insight.embedding import fisher_ratio, layer_activations, plot_embedding, probe_accuracy
from dlcourse.insight.layers import layer_shapes, main_layers
from dlcourse.models.zoo import model_for
from dlcourse.training.learner import learner_for

digits = load_digits()
x, y = (digits.images[:300, None]*15).astype(np.uint8), digits.target[:300]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


@pytest.fixture(scope='module')
def learn():
    learn = learner_for('cnn', dls_for((x, y), bs=32, valid=0.5, seed=1), filters=8, seed=1)
    with learn.quiet(): learn.fit(2, 0.01)
    return learn


def test_features_are_what_the_layers_give(learn):
    acts = layer_activations(learn, ['input', 'block2', 'head.out'], n=40)
    dl = learn.dls.valid.new(get_idxs=lambda: acts.index.tolist(), n=40, bs=40)
    images, labels = dl.one_batch()
    learn.model.eval()
    with torch.no_grad(): maps, out = learn.model.body[:2](images), learn.model(images)
    np.testing.assert_allclose(acts.features['body.block2'], maps.mean((2, 3)), atol=1e-5)
    np.testing.assert_allclose(acts.features['head.out'], out, atol=1e-5)
    np.testing.assert_allclose(acts.features['input'], images.flatten(1), atol=1e-6)
    assert (acts.targets == labels.numpy()).all() and (acts.preds == out.argmax(1).numpy()).all()
    whole = layer_activations(learn, 'block2', n=40, pool=False)
    np.testing.assert_allclose(whole.features['body.block2'], maps.flatten(1), atol=1e-5)


def test_draw_is_seeded_and_leaves_no_trace(learn):
    learn.model.train()
    learn.model.body.block1.eval()
    modes, numbers, rows = [m.training for m in learn.model.modules()], torch.get_rng_state(), len(learn.history)
    a, b, c = (layer_activations(learn, 'head.out', n=30, seed=s).index.tolist() for s in (1, 1, 2))
    assert a == b != c and a == sorted(set(a))
    with pytest.raises(CourseError): layer_activations(learn, 'nothing')
    assert modes == [m.training for m in learn.model.modules()] and torch.equal(numbers, torch.get_rng_state()) and rows == len(learn.history)
    assert not any(m._forward_hooks for m in learn.model.modules())


@pytest.mark.parametrize('part', ['train', 'valid'])
def test_all_of_a_small_part(learn, part):
    acts = layer_activations(learn, 'head.out', part=part)
    assert len(acts) == 150 and (acts.targets == learn.dls.labels(part)).all()


def test_separability(learn):
    acts = layer_activations(learn)
    table = acts.separability()
    assert list(table.index) == ['input', 'body.block1', 'body.block2', 'body.block3', 'head.out']
    assert table.silhouette['head.out'] == pytest.approx(silhouette_score(acts.features['head.out'], acts.targets), abs=1e-6)
    assert ((0 <= table.probe) & (table.probe <= 1)).all() and table.equals(acts.separability())


def test_fisher_ratio_is_of_variances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), np.arange(60) % 3
    total, within = ((x - x.mean(0))**2).sum(), sum(((x[y == c] - x[y == c].mean(0))**2).sum() for c in range(3))
    assert fisher_ratio(x, y) == pytest.approx((total - within)/within)
    assert fisher_ratio(np.array([[0.], [0.], [1.], [1.]]), np.array([0, 0, 1, 1])) == float('inf')


def test_probe_is_not_tested_on_what_it_knows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 200)), rng.permutation(np.arange(90) % 2)
    assert probe_accuracy(x, y) < 0.7
    assert probe_accuracy(x + 3*y[:, None], y) > 0.95
    with pytest.raises(CourseError, match='folds=1'): probe_accuracy(x, y, folds=1)
    with pytest.raises(CourseError, match='rarest class has 2'): probe_accuracy(x, np.array([0]*88 + [1]*2))


@pytest.mark.parametrize('method', ['tsne', 'pca'])
def test_picture_marks_what_is_wrong(learn, method):
    acts = layer_activations(learn, ['input', 'head.out'], n=150)
    fig = acts.plot(method)
    assert len(fig.axes) == 2 and 'silhouette' in fig.axes[0].get_title() and 'probe' in fig.axes[0].get_title()
    crosses = [o for o in fig.axes[1].collections if o.get_label() == 'predicted wrongly']
    assert len(crosses) == bool(acts.wrong.any()) and all(len(o.get_offsets()) == acts.wrong.sum() for o in crosses)


def test_same_call_same_picture(learn):
    a, b = (layer_activations(learn, ['block1', 'head.out'], n=60).embed('tsne') for _ in range(2))
    for k in a: assert np.array_equal(a[k][0], b[k][0])


@pytest.mark.parametrize('arch', ['mlp', 'residual', 'inception', 'all_conv', 'resnet18'])
def test_layers_of_any_network(arch):
    shape = (3, 32, 32)
    model = model_for(arch, shape, 4, **(dict(pretrained=False) if arch == 'resnet18' else {}))
    found = layer_shapes(model, torch.rand(2, *shape))
    names = main_layers(model, found)
    assert 2 <= len(names) <= 5 and len(set(names)) == len(names) and found[names[-1]][1][0] == 4
    assert names == [o for o in found if o in names]


def test_plain_torch_learner():
    data = TensorDataset(torch.tensor(digits.data[:120]).float()/16, torch.tensor(y[:120]))
    learn = Learner(DataLoaders.from_dsets(data, data, bs=16, num_workers=0), nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), nn.CrossEntropyLoss())
    acts = layer_activations(learn)
    assert list(acts.features) == ['input', '0', '2'] and len(acts) == 120
    plot_embedding(learn, 'pca')


@pytest.mark.parametrize('kwargs, says', [(dict(layers='body.blok1'), "Did you mean 'body.block1'"), (dict(part='test'), 'no test part'), (dict(layers=[]), 'at least one layer'),
                                          (dict(n=1), 'from 2'), (dict(n=10.5), 'whole number of examples'), (dict(ncols=0, method='pca', n=30), 'panels from 1'), (dict(method='umap'), 'unknown method'), (dict(n=4), 'at least five')])
def test_bad_input(learn, kwargs, says):
    with pytest.raises(CourseError, match=says): plot_embedding(learn, **kwargs)


def test_a_network_alone_has_no_data(learn):
    with pytest.raises(CourseError, match='needs a Learner'): layer_activations(learn.model)


def test_a_rare_class_has_a_picture_without_a_probe(learn):
    acts = layer_activations(learn, 'head.out', n=60)
    acts.targets[:] = [0]*58 + [1]*2
    assert np.isnan(acts.separability().probe.item()) and 'probe –' in acts.plot('pca').axes[0].get_title()


def test_no_classes():
    numbers = learner_for('cnn', dls_for((x, y.astype(np.float32)), bs=8, seed=1), filters=4)
    with pytest.raises(CourseError, match='predicts numbers'): layer_activations(numbers)


def test_one_class(learn):
    acts = layer_activations(learn, 'head.out')
    acts.targets[:] = 3
    with pytest.raises(CourseError, match='all of one'): acts.separability()
