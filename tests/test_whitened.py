"The whitening layer beyond its page: lr_find, saved weights, faster answers, precision"
import pytest
import torch

from dlcourse.data.blocks import dls_for
from dlcourse.insight.inference import export_onnx, fast
from dlcourse.models.whitened import Whitening, whitening_filters
from dlcourse.training.learner import learner_for


@pytest.fixture(scope='module')
def learn():
    learn = learner_for('whitened', dls_for('fashion_mini', n_per_class=20, bs=32), seed=1, filters=(8, 8, 8))
    with learn.quiet(): learn.fit(1)
    return learn


def test_fitted_to_the_first_batch_and_to_no_other(learn):
    layer = learn.model.body.whiten
    was = layer.filters.clone()
    assert layer.fitted and not torch.equal(was, Whitening(1).filters)
    with learn.quiet(): learn.fit(1)
    assert torch.equal(layer.filters, was)


def test_lr_find_leaves_the_layer_to_the_first_fit():
    learn = learner_for('whitened', dls_for('fashion_mini', n_per_class=20, bs=32), seed=1, filters=(8, 8, 8))
    with learn.quiet(): learn.lr_find(show_plot=False, num_it=6)
    layer = learn.model.body.whiten
    assert not layer.fitted
    x = learn.dls.train.one_batch()[0]
    learn.model.train()(x)
    assert layer.fitted and torch.equal(layer.filters, whitening_filters(x))


def test_bfloat16_does_not_reach_the_filters():
    x, layers = torch.rand(40, 3, 16, 16), [Whitening(3), Whitening(3)]
    with torch.autocast('cpu', dtype=torch.bfloat16): layers[0](x)
    layers[1](x)
    assert torch.equal(layers[0].filters, layers[1].filters)


def test_the_same_answers_sooner_and_elsewhere(learn, tmp_path):
    x = learn.dls.valid.one_batch()[0]
    learn.model.eval()
    with torch.no_grad(): y, quick = learn.model(x), fast(learn).model(x)
    assert torch.allclose(y.softmax(1), quick.softmax(1), atol=1e-4)
    assert export_onnx(learn, tmp_path/'net.onnx').exists()


@pytest.mark.parametrize('n', [1, 2, 65])
def test_few_images_give_finite_filters(n):
    assert whitening_filters(torch.zeros(n, 3, 8, 8)).isfinite().all()
