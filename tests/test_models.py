"Networks: counts, equal to other implementations, weights from files and the hub, freezing, fusion, faults and bad input"
import os, pickle, urllib.error
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import needs_data
from fastai.callback.progress import no_bar  # noqa: F401  (adds `Learner.no_bar`)
from fastai.callback.schedule import fine_tune  # noqa: F401  (adds `Learner.fine_tune`)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.layers import ConvLayer, NormType
from fastai.learner import Learner
from fastai.optimizer import Adam
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from dlcourse.core import CourseError, seed_all
from dlcourse.data.blocks import dls_for
from dlcourse.insight.inference import export_onnx, fast
from dlcourse.models import weights as weights_module, zoo
from dlcourse.models.backbones import backbone_of, cut_net, library_of, smallest_side
from dlcourse.models.blocks import (Dropout, act_layer, chain, conv_layer, count_params, dry_run, image_shape, init_layers, inits, make,
                                    n_features, norm_layer, pool_layer)
from dlcourse.models.cnn import cnn, cnn_base
from dlcourse.models.fusion import FusionBody, Rescale, fusion_net
from dlcourse.models.heads import fastai_head, linear_head
from dlcourse.models.linear import linear_from
from dlcourse.models.mlp import affordable, mlp, power_widths, spread_widths
from dlcourse.models.nets import all_conv, inception, residual
from dlcourse.models.pretrained import TransferNet, transfer_net, transfer_splitter
from dlcourse.models.registry import backbones, register, registry
from dlcourse.models.weights import find_weights, read_weights
from dlcourse.models.whitened import Whitening, whitening_filters
from dlcourse.models.zoo import archs, find_arch, match_params, model_for, size_of, smallest_input
from dlcourse.training.learner import learner_for

GREY, RGB = (1, 28, 28), (3, 32, 32)
NAMES = ['all_conv', 'block_net', 'cnn', 'cnn_base', 'cnn_v2', 'cnn_v3', 'dense_mlp', 'inception', 'mlp', 'residual', 'whitened']


# Exact counts

@pytest.mark.parametrize('arch, n_in, count', [
    ('cnn_base', RGB, 4_218_842), ('cnn_v2', RGB, 246_346), ('cnn_v3', RGB, 1_574_698),
    ('residual', GREY, 186_058), ('inception', GREY, 196_154)])
def test_counts_of_the_documents(arch, n_in, count):
    assert count_params(model_for(arch, n_in, 10)) == count == size_of(arch, n_in, 10)


def test_boston_network_has_369_parameters():
    model = mlp(13, 1, widths=(16, 8), final_activation='relu')
    assert count_params(model) == 369
    assert [type(o) for o in model.head] == [nn.Linear, nn.ReLU]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_dropout(monkeypatch, dtype):
    "Its own masks: the share, what is kept, the order in memory, the gradient; torch's where MKL draws them, inplace, and in evaluation"
    x, layer, theirs = torch.ones(64, 8, 16, 16, dtype=dtype).to(memory_format=torch.channels_last), Dropout(0.3), nn.Dropout(0.3)
    def drawn(layer, x=x):
        torch.manual_seed(3)
        return layer(x)
    monkeypatch.setattr(Dropout, 'draws', True)
    out = drawn(layer, x.requires_grad_())
    assert abs((out == 0).float().mean() - 0.3) < 0.01 and len(out.unique()) == 2 and abs(out.float().mean() - 1) < 0.01
    assert out.dtype == dtype and out.stride() == x.stride() and torch.equal(out, drawn(layer))
    out.sum().backward()
    assert torch.equal(x.grad, out) and not torch.equal(out, drawn(theirs))
    assert torch.equal(drawn(Dropout(0.3, inplace=True), x.detach().clone()), drawn(theirs)) and layer.eval()(x) is x
    monkeypatch.setattr(Dropout, 'draws', False)
    assert torch.equal(drawn(layer.train()), drawn(theirs))


def test_counts_trainable_only():
    model = mlp(4, 2, widths=(3,))
    model.body.requires_grad_(False)
    assert (count_params(model), count_params(model, trainable=True)) == (23, 8)


# Equal to something written independently

def conv(x, m, act=True):
    y = F.conv2d(x, m.weight, m.bias, padding=m.kernel_size[0]//2)
    return y.relu() if act else y


def test_residual_follows_the_keras_code_of_the_exercise():
    model, x = residual(GREY, 10), torch.rand(3, *GREY)
    h = x
    for i in range(3):
        b = model.body[2*i]
        short = h if h.shape[1] == 64 else conv(h, b.shortcut.conv)
        h = (conv(conv(h, b.convs.conv1.conv), b.convs.conv2.conv, act=False) + short).relu()
        h = F.max_pool2d(F.pad(h, [0, h.shape[3] % 2, 0, h.shape[2] % 2], value=-torch.inf), 2)
    torch.testing.assert_close(model(x), model.head.out(h.mean((2, 3))))


def test_inception_follows_the_keras_code_of_the_exercise():
    model, x = inception(GREY, 10), torch.rand(3, *GREY)
    h = x
    for i in range(2):
        b = model.body[2*i].branches
        twice = [conv(conv(h, b[k].reduce.conv), b[k].conv.conv) for k in ('conv3', 'conv5')]
        pooled = conv(F.max_pool2d(h, 3, stride=1, padding=1), b['pool'].conv.conv)
        h = F.max_pool2d(torch.cat([conv(h, b['conv1'].conv.conv), *twice, pooled], 1), 2)
    torch.testing.assert_close(model(x), model.head.out(h.mean((2, 3))))


def test_conv_layer_equals_fastais():
    ours, theirs = conv_layer(3, 8, kernel=5), ConvLayer(3, 8, ks=5, norm_type=NormType.Batch)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values())))
    x = torch.randn(4, 3, 9, 9)
    assert torch.equal(ours(x), theirs(x))


def test_last_convolution_of_all_conv_is_a_dense_layer():
    model, x = all_conv(GREY, 10), torch.rand(4, *GREY)
    out = model.head.out
    torch.testing.assert_close(model(x), F.linear(model.body(x).flatten(1), out.weight.flatten(1), out.bias))


def test_all_conv_has_no_linear_and_no_pooling():
    kinds = {type(o) for n_in in (GREY, RGB, (3, 64, 64)) for o in all_conv(n_in, 10).modules()}
    assert kinds == {nn.Sequential, nn.Conv2d, nn.ReLU, nn.Flatten}


def test_without_skip_no_shortcut_is_left():
    assert not any('shortcut' in k for k, _ in residual(GREY, 10, skip=False).named_modules())


# What holds for every architecture

@pytest.mark.parametrize('arch', NAMES)
def test_structure_and_pickle(arch):
    model = model_for(arch, RGB, 7).eval()
    assert [k for k, _ in model.named_children()] == ['body', 'head'] and model[0] is model.body and model[1] is model.head
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    assert last is model.head.out
    x = torch.rand(2, *RGB)
    y = model(x)
    assert y.shape == (2, 7)
    assert torch.equal(y, pickle.loads(pickle.dumps(model))(x))
    assert torch.equal(y, model.head(model.body(x)))


@pytest.mark.parametrize('arch', NAMES)
def test_seed_governs_the_weights(arch):
    seed_all(1)
    a = model_for(arch, GREY, 10).state_dict()
    seed_all(1)
    b = model_for(arch, GREY, 10).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    c = model_for(arch, GREY, 10).state_dict()
    assert not all(torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize('arch', NAMES)
def test_trains_at_its_smallest_size_and_is_refused_below(arch):
    side = smallest_input(arch)
    model = model_for(arch, (1, side, side), 3).train()
    assert torch.isfinite(model(torch.rand(4, 1, side, side))).all()
    if side > 1:
        with pytest.raises(CourseError, match=f'at least {side}×{side} pixels, not {side-1}×40'): model_for(arch, (1, side-1, 40), 3)


@pytest.mark.parametrize('n_in', [(1, 8, 8), GREY, RGB, (3, 64, 64), (3, 17, 50), (4, 33, 21)])
@pytest.mark.parametrize('arch', [o for o in NAMES if not o.startswith(('cnn_', 'whitened'))])
def test_any_size(arch, n_in):
    assert dry_run(model_for(arch, n_in, 5), n_in).shape == (1, 5)


@pytest.mark.parametrize('arch', ['cnn', 'residual', 'inception'])
def test_same_weights_at_another_resolution(arch):
    assert model_for(arch, RGB, 5)(torch.rand(2, 3, 57, 40)).shape == (2, 5)


@pytest.mark.parametrize('arch', ['mlp', 'cnn', 'all_conv', 'residual'])
def test_learns_a_batch(arch):
    seed_all(0)
    kw = dict(widths=(32,)) if arch == 'mlp' else dict(filters=8)
    model = model_for(arch, (1, 8, 8), 4, **kw)
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 4
    opt = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(60):
        losses.append(F.cross_entropy(model(x), y))
        opt.zero_grad(); losses[-1].backward(); opt.step()
    assert losses[-1] < 0.5*losses[0]


# Every option of the family

@pytest.mark.parametrize('kw', [
    dict(depth=1), dict(depth=5, filters=4), dict(filters=(5, 7)), dict(growth=1.5), dict(kernel=1), dict(kernel=(7, 5, 3)), dict(convs=3),
    dict(activation='gelu'), dict(activation=nn.PReLU), dict(norm=None), dict(norm='layer'), dict(norm='group'),
    dict(norm='instance'), dict(norm=nn.BatchNorm2d), dict(pooling='avg'), dict(pooling='stride'), dict(pooling=None),
    dict(pooling=nn.MaxPool2d(3, 2, 1)), dict(dropout=0.2), dict(dropout=(0.1, 0.2, 0.3)), dict(bias=True),
    dict(head='max'), dict(head='flatten'), dict(grid=2), dict(dense=(20, 10), dense_dropout=0.5)]
    + [dict(init=k) for k in inits])
def test_options_of_the_family(kw):
    model = cnn(GREY, 10, **{'filters': 8, **kw})
    y = model(torch.rand(4, *GREY))
    assert y.shape == (4, 10) and torch.isfinite(y).all()


@pytest.mark.parametrize('kw', [
    dict(widths=()), dict(widths=7), dict(widths=(5, 6, 7), dropout=(0.1, 0, 0.2)), dict(norm='batch'), dict(norm='layer'),
    dict(norm='group'), dict(activation=None), dict(final_activation='softmax'), dict(init='orthogonal')])
def test_options_of_the_mlp(kw):
    assert mlp(GREY, 10, **kw)(torch.rand(4, *GREY)).shape == (4, 10)


def test_options_reach_the_networks_of_the_exercise():
    model = cnn_base(RGB, 10, dropout=0.1, activation='tanh', init='zeros')
    assert model.head.dense1.dropout.p == 0.1 and 'dropout' not in dict(model.head.dense2.named_children())
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert model.head.out.weight.abs().sum() == 0


def test_modules_given_as_options_are_copied():
    act = nn.PReLU()
    model = mlp(4, 2, widths=(3, 3), activation=act)
    acts = [m for m in model.modules() if isinstance(m, nn.PReLU)]
    assert len({id(o) for o in [act, *acts]}) == 3


def test_numpy_numbers_are_numbers():
    assert count_params(cnn(GREY, 10, filters=np.int64(8), depth=np.int64(2))) == count_params(cnn(GREY, 10, filters=8, depth=2))
    assert model_for('mlp', np.int64(5), np.int64(2))(torch.rand(3, 5)).shape == (3, 2)


def test_he_normal_is_cut_at_two_deviations():
    w = init_layers(nn.Conv2d(16, 64, 3), 'he_normal').weight.detach()
    std = (2/144)**0.5
    assert w.std().item() == pytest.approx(std, rel=0.03)
    assert w.abs().max() <= 2*std/0.8796


def test_head_keeps_its_own_initialisation():
    assert residual(GREY, 10, init='zeros').head.out.weight.abs().sum() > 0


# Sizing

@pytest.mark.parametrize('arch', NAMES)
def test_match_its_own_count(arch):
    n = size_of(arch, RGB, 10)
    kw, got = match_params(arch, n, RGB, 10)
    assert got == pytest.approx(n, rel=1e-3) and count_params(model_for(arch, RGB, 10, **kw)) == got


@pytest.mark.parametrize('target', [8_000, 50_000, 400_000, 3_000_000])
@pytest.mark.parametrize('arch', ['mlp', 'cnn', 'all_conv', 'residual', 'inception'])
def test_match_within_two_percent(arch, target):
    kw, n = match_params(arch, target, GREY, 10)
    assert abs(n/target - 1) <= 0.02 and size_of(arch, GREY, 10, **kw) == n


def test_match_a_model_and_keep_arguments():
    target = cnn(RGB, 10, filters=16)
    kw, n = match_params('cnn', target, RGB, 10, depth=4, convs=2, norm=None)
    assert (kw['depth'], kw['convs'], kw['norm'], len(kw['filters'])) == (4, 2, None, 4)
    assert n == pytest.approx(count_params(target), rel=0.02)


def test_match_counts_only_what_trains_of_a_model():
    target = mlp(GREY, 10)
    target.body.requires_grad_(False)
    assert match_params('cnn', target, (1, 8, 8), 10)[1] == pytest.approx(2_570, rel=0.02)


@pytest.mark.parametrize('call, message', [
    (lambda: match_params('mlp', 500, GREY, 10), 'nearest has 807'),
    (lambda: match_params('mlp', 500, GREY, 10, widths=()), 'no widths to change'),
    (lambda: match_params('cnn', 10_000, GREY, 10, kernle=5), "Did you mean 'kernel'"),
    (lambda: match_params('ccn', 10_000, GREY, 10), "Did you mean 'cnn'"),
    (lambda: match_params('cnn', -5, GREY, 10), 'target must be a whole number of at least 1')])
def test_match_refuses(call, message):
    with pytest.raises(CourseError, match=message): call()


def test_counting_draws_no_random_numbers():
    was = torch.get_rng_state()
    smallest_input('resnet18')
    match_params('cnn', 50_000, GREY, 10)
    assert torch.equal(was, torch.get_rng_state())


# The register

def test_a_new_architecture_is_known_everywhere(monkeypatch):
    monkeypatch.setattr(zoo, 'backbones', {})
    @register('a single dense layer', 'test')
    def one_layer(n_in, n_out, bias=True): return nn.Sequential(nn.Flatten(), nn.Linear(n_features(n_in), n_out, bias=bias))
    try:
        assert count_params(model_for('one-layer', GREY, 10, bias=False)) == 7840
        assert archs().loc['one_layer', 'params_1x28x28'] == 7850
        with pytest.raises(CourseError, match='width of one_layer is fixed'): match_params('one_layer', 100, GREY, 10)
    finally: del registry['one_layer']


@pytest.fixture(scope='module')
def table(): return archs()


def test_archs_lists_every_architecture_once(table):
    assert list(table.index) == [*NAMES, *backbones] and table.notna().all(axis=None)
    assert table.smallest[NAMES].to_dict() == dict(mlp=1, cnn=5, cnn_base=1, cnn_v2=9, cnn_v3=17, all_conv=5, residual=5, inception=3,
        whitened=9, block_net=2, dense_mlp=1)


# Networks of one's own

class Tuple(nn.Module):
    def forward(self, x): return x, x


def test_own_model_is_left_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Dropout(0.5), nn.Linear(784, 10))
    model[1].eval()
    was, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert model_for(model, GREY, 10) is model
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(was[k], v) for k, v in model.state_dict().items()) and torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_own_model_of_another_precision(dtype):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).to(dtype)
    assert model_for(model, GREY, 10) is model


def test_a_function_or_a_class_makes_the_model():
    assert isinstance(model_for(lambda n_in, n_out: nn.Linear(n_in, n_out), 13, 1), nn.Linear)
    assert count_params(model_for(nn.Linear, 13, 1, bias=False)) == 13
    assert count_params(model_for(cnn, GREY, 10, filters=8)) == size_of('cnn', GREY, 10, filters=8)


@pytest.mark.parametrize('call, message', [
    (lambda: model_for('resnet', GREY, 10), "unknown architecture 'resnet'.*There are: all_conv, block_net"),
    (lambda: model_for('cnn', GREY, 10, filter=3), "unknown argument of cnn 'filter'. Did you mean 'filters'"),
    (lambda: model_for('mlp', GREY, 10, kernel=3), "unknown argument of mlp 'kernel'.*There are: widths, activation"),
    (lambda: model_for(nn.Linear(784, 9), 784, 10), 'Linear has 9 outputs for each example, but the data need 10'),
    (lambda: model_for(nn.Conv2d(1, 10, 3), GREY, 10), r'outputs of shape \(10, 26, 26\)'),
    (lambda: model_for(nn.Linear(784, 10), GREY, 10), r'does not accept an input of shape \(1, 28, 28\)'),
    (lambda: model_for(nn.Linear(784, 10), 784, 10, bias=True), 'built already takes no arguments, but got bias'),
    (lambda: model_for(Tuple(), 784, 10), 'gives a tuple, not a tensor'),
    (lambda: model_for(lambda n_in, n_out: 'no', 784, 10), 'model must be a network'),
    (lambda: model_for(3, 784, 10), 'arch must be a name, a module or a function'),
    (lambda: model_for('mlp', 784, 0), 'n_out must be a whole number from 1 to 1000000, got 0'),
    (lambda: model_for('mlp', 784, 2.5), 'n_out must be'),
    (lambda: model_for('mlp', (1, 0, 28), 10), 'n_in must be a whole number from 1 to 1000000 or a list of them'),
    (lambda: model_for('mlp', None, 10), 'n_in must be a whole number from 1 to 1000000 or a list of them'),
    (lambda: model_for('cnn', 784, 10), 'needs images, as n_in='),
    (lambda: model_for('cnn', (28, 28), 10), 'needs images, as n_in='),
    (lambda: model_for('residual', (1, 28, 4), 10), 'at least 5×5 pixels, not 28×4'),
    (lambda: cnn(GREY, 10, pooling=nn.MaxPool2d(8)), 'does not accept an input of shape'),
    (lambda: cnn(GREY, 10, kernel=4), 'odd number of pixels'),
    (lambda: cnn(GREY, 10, kernel=(3, 5)), 'kernel takes one value or one for each of the 3 layers, not 2'),
    (lambda: cnn(GREY, 10, filters=0), 'filters must be a whole number from 1'),
    (lambda: cnn(GREY, 10, depth=0), 'depth must be a whole number from 1 to 1000'),
    (lambda: cnn(GREY, 10, filters=(8, 16), depth=3), 'are for 2 blocks'),
    (lambda: cnn(GREY, 10, dropout=1), 'dropout must be a number from 0 to below 1 or a list of them, got 1'),
    (lambda: cnn(GREY, 10, head='average'), "unknown head 'average'. Did you mean 'avg'"),
    (lambda: cnn(GREY, 10, init='kaimin'), "Did you mean 'kaiming'"),
    (lambda: residual(GREY, 10, blocks=0), 'blocks must be a whole number from 1'),
    (lambda: inception(GREY, 10, modules=()), 'six numbers'),
    (lambda: inception(GREY, 10, modules=((1, 2, 3),)), 'six numbers'),
    (lambda: mlp(13, 1, widths=(8, 0)), 'widths must be a whole number from 1'),
    (lambda: mlp(13, 1, widths=(8, 8), dropout=(0.1,)*3), 'one for each of the 2 layers, not 3'),
    (lambda: mlp(13, 1, widths=(10**6,)*3), 'the limit is max_params=500,000,000'),
    (lambda: mlp(13, 1, norm='instance'), 'a dense layer has none'),
    (lambda: power_widths(3, 0), 'k must be a whole number of at least 1'),
    (lambda: power_widths(10**9, 7), 'about 10\\^845098040 neurons'),
    (lambda: spread_widths(4, 0), 'k must be a whole number of at least 1'),
    (lambda: act_layer(3), 'activation must be a name, a class, a module or None, got 3'),
    (lambda: act_layer(torch.optim.SGD.__name__), 'unknown activation'),
    (lambda: norm_layer('batsh', 3), "Did you mean 'batch'"),
    (lambda: pool_layer('maximum'), "unknown pooling 'maximum'"),
    (lambda: make(dict, {}, 'thing'), 'thing must be one of')])
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(CourseError, match=message): call()


def test_a_million_parameters_too_many_can_be_asked_for():
    assert affordable([10, 10**4, 10**4, 1], 10**9) == [10, 10**4, 10**4, 1]


def test_image_shape_takes_any_sequence():
    assert image_shape(torch.Size([3, 32, 32])) == image_shape([3, 32, 32]) == (3, 32, 32)


# Pretrained networks and fusion

SIZE = (3, 64, 64)


@pytest.fixture(autouse=True)
def no_other_weights(monkeypatch, tmp_path):
    "Weights come from where a test puts them, and no hub is reached by accident"
    def unreachable(*args, **kwargs): raise urllib.error.URLError('no network in tests')
    for k in ('DLCOURSE_WEIGHTS', 'DLCOURSE_DATA'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'hub'))
    monkeypatch.setattr('torch.hub.urlopen', unreachable)
    monkeypatch.setattr(weights_module, 'urlopen', unreachable)


def small_net(head='linear', n_out=4):
    body = chain(conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), act=nn.ReLU(), drop=nn.Dropout(0.5))
    return TransferNet(body, dict(linear=linear_head, fastai=fastai_head)[head]((8, 6, 6), n_out))


def freeze(net):
    net.body.requires_grad_(False)
    return net.train()


def state(m): return {k: v.clone() for k, v in m.state_dict().items()}
def same(a, b): return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def file_of(folder, name, only='', suffix='.pth', seed=1, **kw):
    "A file of random weights of torchvision's network `name`, those whose name starts with `only`, and the weights"
    torch.manual_seed(seed)
    found = {k: v for k, v in torchvision.models.get_model(name, **kw).state_dict().items() if k.startswith(only)}
    file = folder/f'{name}{suffix}'
    save_file(found, file) if suffix == '.safetensors' else torch.save(found, file)
    return file, found


# Names

@pytest.mark.parametrize('name, found', [
    ('alexnet', ('torchvision', 'alexnet')), ('MobileNet-V2', ('torchvision', 'mobilenet_v2')), ('timm:resnet18', ('timm', 'resnet18')),
    ('tf_efficientnet_lite0', ('timm', 'tf_efficientnet_lite0')), ('resnet18.a1_in1k', ('timm', 'resnet18.a1_in1k'))])
def test_names(name, found):
    assert library_of(name) == found


@pytest.mark.parametrize('name, message', [
    ('alexnett', "unknown architecture 'alexnett'. Did you mean 'alexnet'"), ('timm:resnet1888', 'unknown architecture'),
    ('resnet18.a1_in', "Did you mean 'a1_in1k'"), ('', 'unknown architecture'), ('mobilenet_v2+squeezenet1_11',
        "Did you mean 'squeezenet1_1'")])
def test_unknown_names(name, message):
    with pytest.raises(CourseError, match=message): model_for(name, SIZE, 10)


def test_the_zoo_knows_them():
    assert find_arch('AlexNet').name == 'alexnet' and find_arch('fusion').name == 'alexnet+mobilenet_v2'
    assert find_arch('timm:resnet18').name == 'timm:resnet18' and find_arch('timm:tf_efficientnet_lite0').name == 'tf_efficientnet_lite0'
    assert set(find_arch('resnet18').args) == {'pretrained', 'weights', 'head', 'dropout'}
    assert set(find_arch('resnet18+alexnet').args) == {'how', 'pretrained', 'weights', 'grid', 'head', 'dropout'}
    with pytest.raises(CourseError, match="Did you mean 'weights'"): model_for('resnet18', SIZE, 10, weight='x')
    with pytest.raises(CourseError, match='width of resnet18 is fixed'): match_params('resnet18', 100, SIZE, 10)


def test_counting_loads_nothing():
    assert size_of('mobilenet_v2', SIZE, 10, head='own') == 2_236_682
    assert size_of('alexnet+mobilenet_v2', (3, 224, 224), 10) == 4_693_568 + (1536*36+1)*4096 + 4097*1024 + 1025*10


def test_archs_lists_the_backbones(table):
    assert {'alexnet', 'mobilenet_v2', 'squeezenet1_1', 'tf_efficientnet_lite0', 'resnet18', 'resnet50',
        'alexnet+mobilenet_v2'} <= {*table.index}
    assert (table.smallest['alexnet'], table.smallest['alexnet+mobilenet_v2']) == (63, 63)


# The libraries' networks, in parts

@pytest.mark.parametrize('name, side', [
    ('squeezenet1_1', 64), ('mobilenet_v2', 64), ('mobilenet_v3_small', 64), ('efficientnet_b0', 64), ('convnext_tiny', 64),
    ('resnet18', 64),
    ('regnet_x_400mf', 64), ('shufflenet_v2_x0_5', 64), ('mnasnet0_5', 64), ('densenet121', 64),
    ('swin_t', 64), ('alexnet', 63), ('vit_b_32', 224)])
def test_torchvision_in_parts_is_torchvision(name, side):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=7).eval()
    torch.manual_seed(0)
    ours = transfer_net(name, (3, side, side), 7, pretrained=False).eval()
    x = torch.rand(2, 3, side, side)
    with torch.no_grad(): assert torch.allclose(ours(x), net(x), atol=1e-6)
    assert count_params(ours) == count_params(net) and ours.backbone.library == 'torchvision'


@pytest.mark.parametrize('name, side, ndim', [('tf_efficientnet_lite0', 64, 4), ('resnet18', 64, 4), ('mobilenetv3_small_050', 64, 2),
                                              ('convnext_atto', 64, 2), ('vit_tiny_patch16_224', 224, 2)])
def test_timm_in_parts_is_timm(name, side, ndim):
    import timm
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=7).eval()
    torch.manual_seed(0)
    ours = transfer_net(f'timm:{name}', (3, side, side), 7, pretrained=False).eval()
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        assert torch.allclose(ours(x), net(x), atol=1e-5)
        assert ours.body(x).ndim == ndim
    assert count_params(ours) == count_params(net)


def test_googlenet_gets_the_images_it_wants():
    torch.manual_seed(0)
    net = torchvision.models.googlenet(init_weights=True, transform_input=True, num_classes=7).eval()
    b = backbone_of('googlenet')
    body, layers, tensors = cut_net(b, 7)
    with torch.no_grad():
        for k, v in tensors.items(): v.copy_(net.state_dict()[k])
    photo = torch.rand(2, *SIZE)
    stats = [torch.tensor(o).view(3, 1, 1) for o in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), b.mean, b.std)]
    with torch.no_grad():
        theirs = net((photo - stats[0])/stats[1])
        assert torch.allclose(nn.Sequential(body, *layers).eval()((photo - stats[2])/stats[3]), theirs, atol=1e-5)


# What it takes

@pytest.mark.parametrize('name, side', [('alexnet', 63), ('squeezenet1_1', 17), ('mobilenet_v2', 1)])
def test_smallest_image(name, side):
    assert smallest_input(name) == side
    net = transfer_net(name, (3, side, side), 2, pretrained=False).train()
    assert torch.isfinite(net(torch.rand(4, 3, side, side))).all()


def test_smallest_side_of_a_network_for_multiples():
    class Even(nn.Module):
        def forward(self, x): return x.view(len(x), 3, -1, 32) if x.shape[-1] % 32 == 0 else x.nope
    assert smallest_side(Even(), 224) == 32


@pytest.mark.parametrize('call, message', [
    (lambda: model_for('alexnet', (3, 62, 62), 10, pretrained=False),
        'alexnet does not work on images of 62×62 pixels; the smallest square ones it takes have 63×63'),
    (lambda: model_for('alexnet', (3, 32, 200), 10), 'on images of 32×200 pixels'),
    (lambda: model_for('timm:vit_tiny_patch16_224', SIZE, 10), 'have 224×224'),
    (lambda: model_for('alexnet', (4, 64, 64), 10), 'takes images of 3 channels, or grey ones, not of 4'),
    (lambda: model_for('alexnet', 13, 10), 'alexnet needs images'),
    (lambda: model_for('alexnet', SIZE, 0), 'n_out must be a whole number'),
    (lambda: model_for('resnet18', SIZE, 10, pretrained=False, head='fast'), "Did you mean 'fastai'"),
    (lambda: model_for('resnet18', SIZE, 10, pretrained=False, dropout=1.), 'dropout must be a number from 0 to below 1'),
    (lambda: model_for('resnet18', SIZE, 10, pretrained=False, weights='x'), 'pretrained=False')])
def test_refused(call, message):
    with pytest.raises(CourseError, match=message): call()


@pytest.mark.parametrize('head', ['own', 'linear', 'fastai', 'dense'])
def test_grey_images(head):
    net = model_for('squeezenet1_1', (1, 28, 28), 5, pretrained=False, head=head).eval()
    x = torch.rand(3, 1, 28, 28)
    assert net(x).shape == (3, 5) and torch.equal(net(x), net(x.repeat(1, 3, 1, 1)))


WRONG = [('resnet18', dict(head='fast'), "Did you mean 'fastai'"), ('resnet18', dict(dropout=1.),
    'dropout must be a number from 0 to below 1'),
         ('resnet18', dict(dropout='much'), "got 'much'"), ('resnet18', dict(weights='nowhere'), 'no file or folder nowhere'),
         ('resnet18', dict(weights='IMAGENET1K_V9'), "torchvision's are called IMAGENET1K_V1"),
         ('timm:resnet18', dict(head='fast'), 'unknown head'),
         ('alexnet+resnet18', dict(head='own'), "unknown head 'own'"), ('alexnet+resnet18', dict(how='early'), 'unknown fusion'),
         ('alexnet+resnet18', dict(how='late', grid=2), 'no grid=2'), ('alexnet+resnet18', dict(grid=0), 'grid must be a whole number'),
         ('alexnet+resnet18', dict(weights=dict(vgg11='x')), "unknown network of this fusion 'vgg11'"),
         ('alexnet+resnet18', dict(weights=dict(resnet18='nowhere')), 'no file or folder nowhere')]


@pytest.mark.parametrize('name, kw, message', WRONG, ids=[f'{a} {k}' for a,k,_ in WRONG])
def test_bad_settings_are_found_before_anything_is_built_or_fetched(name, kw, message, monkeypatch):
    def nothing(*args, **kwargs): raise AssertionError('a network was built, or weights were fetched')
    for module in ('pretrained', 'fusion'): monkeypatch.setattr(f'dlcourse.models.{module}.cut_net', nothing)
    monkeypatch.setattr(weights_module, 'hub_weights', nothing)
    with pytest.raises(CourseError, match=message): model_for(name, SIZE, 10, **kw)


# Heads

def test_fastai_head_is_fastais():
    from fastai.vision.learner import create_head
    ours, theirs = fastai_head((8, 3, 3), 5, dropout=0.3).eval(), create_head(8, 5, ps=0.3).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.rand(4, 8, 3, 3)
    assert torch.equal(ours(x), theirs(x))
    assert [m.p for m in ours.modules() if isinstance(m, nn.Dropout)] == [m.p for m in theirs.modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize('head', ['own', 'linear', 'fastai', 'dense'])
def test_every_head_ends_in_out_and_has_the_dropout_asked_for(head):
    net = transfer_net('mobilenet_v3_small', SIZE, 6, pretrained=False, head=head, dropout=0.4)
    last = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    assert last is net.head.out and net(torch.rand(2, *SIZE)).shape == (2, 6)
    assert {m.p for m in net.head.modules() if isinstance(m, nn.Dropout)} <= {0.4, 0.2}
    assert not any(getattr(m, 'inplace', False) for m in net.head.modules() if isinstance(m, nn.Dropout))
    assert 0.4 in {m.p for m in net.head.modules() if isinstance(m, nn.Dropout)}


def test_head_of_ones_own():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(2048, 3))
    net = transfer_net('resnet18', SIZE, 3, pretrained=False, head=head)
    assert net.head is head and net.features(torch.rand(2, *SIZE)).shape == (2, 2048)


@pytest.mark.parametrize('head, n', [(nn.Conv2d(8, 3, 6), 0), (nn.AdaptiveAvgPool2d(1), 1), (nn.Sequential(nn.Flatten(), nn.ReLU()), 2),
    (nn.Identity(), 1)])
def test_heads_of_one_layer_and_fixed_ones(head, n):
    net, x = TransferNet(small_net().body, head).eval(), torch.rand(2, 3, 8, 8)
    assert len(net.fixed_layers()) == n and torch.equal(net(x), head(net.body(x))) and torch.equal(net(x), net.tail(net.features(x)))


# Really frozen

@pytest.mark.parametrize('name', ['mobilenet_v2', 'timm:tf_efficientnet_lite0'])
def test_frozen_body_rests(name):
    net = freeze(transfer_net(name, SIZE, 4, pretrained=False, head='fastai'))
    was, x = state(net.body), torch.rand(8, *SIZE)
    for _ in range(2):
        out = net(x)
        out.sum().backward()
    assert same(was, state(net.body)) and all(p.grad is None for p in net.body.parameters())
    assert all(p.grad is not None for p in net.head.parameters())
    assert not net.body.training and net.head.training and not net.features(x).requires_grad
    with torch.no_grad(): assert torch.equal(net.features(x), deepcopy(net).eval().features(x))


def test_unfrozen_body_does_not_rest():
    net, x = freeze(small_net()), torch.rand(8, 3, 8, 8)
    net.body.requires_grad_(True)              # without a call of train()
    net(x).sum().backward()
    assert net.body.training and net.body.conv.weight.grad is not None and net.body.norm.num_batches_tracked == 1
    net.body.requires_grad_(False)
    net(x)
    assert not net.body.training and net.body.norm.num_batches_tracked == 1


def test_batch_normalisation_may_stay_trained():
    net, x = freeze(small_net()), torch.rand(8, 3, 8, 8)
    net.body.norm.requires_grad_(True)
    net.train()(x).sum().backward()
    assert net.body.norm.weight.grad is not None and net.body.conv.weight.grad is None and net.body.norm.num_batches_tracked == 1


def test_evaluation_is_left_alone():
    net, x = small_net().eval(), torch.rand(2, 3, 8, 8)
    was = state(net)
    net(x)
    assert not any(m.training for m in net.modules()) and same(was, state(net))


def test_images_that_need_a_gradient_get_one():
    net, x = freeze(small_net()), torch.rand(2, 3, 8, 8, requires_grad=True)
    net(x).sum().backward()
    assert x.grad is not None and net.body.conv.weight.grad is None


@pytest.mark.parametrize('frozen', [True, False])
@pytest.mark.parametrize('name, head', [('squeezenet1_1', 'own'), ('squeezenet1_1', 'linear'), ('resnet18', 'fastai'), ('efficientnet_b0',
    'own'), ('timm:mobilenetv3_small_050', 'fastai')])
def test_features_and_tail_are_the_network(name, head, frozen):
    net, x = transfer_net(name, SIZE, 4, pretrained=False, head=head).train(), torch.rand(4, *SIZE)
    if frozen: freeze(net)
    torch.manual_seed(3); whole = net(x)
    torch.manual_seed(3); parts = net.tail(net.features(x))
    assert torch.equal(whole, parts)


def test_training_on_features_is_training():
    "A frozen network trained on images and on features computed once: the same weights"
    def trained(cached):
        seed_all(0)
        net, x, y = freeze(small_net('fastai')), torch.rand(32, 3, 8, 8), torch.arange(32) % 4
        opt = torch.optim.Adam(net.parameters(), 0.01)
        f = net.features(x)
        for i in torch.randperm(32).split(8):
            with net.from_features() if cached else torch.enable_grad(): out = net(f[i] if cached else x[i])
            F.cross_entropy(out, y[i]).backward(); opt.step(); opt.zero_grad()
        return state(net)
    assert same(trained(True), trained(False))


def test_from_features_ends_with_its_block():
    net, f = small_net().eval(), torch.rand(2, 8)
    with pytest.raises(KeyError):
        with net.from_features(): raise KeyError
    assert not net.takes_features
    with net.from_features(), net.from_features(): pass
    assert not net.takes_features and net.tail(f).shape == (2, 4)


def test_copies_parts_and_pickles():
    net, x = transfer_net('squeezenet1_1', SIZE, 4, pretrained=False).eval(), torch.rand(2, *SIZE)
    assert net[0] is net.body and net[1] is net.head and list(net[:1].children()) == [net.body] and len(net) == 2
    for other in (deepcopy(net), pickle.loads(pickle.dumps(net))): assert torch.equal(other(x), net(x)) and other.backbone == net.backbone


# With fastai

def learner(net, cls=Learner, opt_func=Adam, **kw):
    torch.manual_seed(0)
    data = list(zip(torch.rand(32, 3, 8, 8), torch.arange(32) % 4))
    dls = DataLoaders(DataLoader(data, bs=8, shuffle=True), DataLoader(data, bs=8))
    return cls(dls, net, loss_func=nn.CrossEntropyLoss(), opt_func=opt_func, splitter=transfer_splitter, **kw)


def quiet(learn, method, *args, **kw):
    with learn.quiet(): getattr(learn, method)(*args, **kw)


def lean():
    from dlcourse.training.lean import LeanLearner, adamw
    return dict(cls=LeanLearner, opt_func=adamw)


@pytest.mark.parametrize('kind', ['stock', 'lean'])
def test_freeze_and_unfreeze(kind):
    net = small_net()
    learn = learner(net, train_bn=False, **(lean() if kind == 'lean' else {}))
    learn.freeze()
    was, head = state(net.body), state(net.head)
    quiet(learn, 'fit', 1, 1e-2)
    assert net.frozen and same(was, state(net.body)) and not same(head, state(net.head))
    learn.unfreeze()
    quiet(learn, 'fit', 1, 1e-2)
    assert not net.frozen and not any(torch.equal(was[k], v) for k, v in state(net.body).items())


def test_fastais_own_way_trains_batch_normalisation():
    net = small_net()
    learn = learner(net, train_bn=True)
    learn.freeze()
    was = state(net.body)
    quiet(learn, 'fit', 1, 1e-2)
    assert {k for k, v in state(net.body).items() if not torch.equal(v, was[k])} == {k for k in was if k.startswith('norm')}


def test_fine_tune_and_rates_by_group():
    net = small_net()
    learn = learner(net, train_bn=False)
    was = state(net.body)
    quiet(learn, 'fine_tune', 1, 1e-2)
    assert not net.frozen and not same(was, state(net.body))
    quiet(learn, 'fit', 1, slice(1e-5, 1e-3))
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx([1e-5, 1e-3])


# Weights from files

@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.pt', '_features.safetensors'])
def test_alexnet_pretrained(tmp_path, suffix, monkeypatch):
    file, found = file_of(tmp_path, 'alexnet', 'features', '.safetensors' if suffix.endswith('safetensors') else '.pth')
    file.rename(tmp_path/f'alexnet{suffix}')
    monkeypatch.setenv('DLCOURSE_WEIGHTS', str(tmp_path))
    net = model_for('alexnet', SIZE, 10)
    assert same({f'features.{k}': v for k, v in net.body.state_dict().items()}, found)
    b = net.backbone
    assert b.weights == str(tmp_path/f'alexnet{suffix}')
    assert 'classifier.6.weight' in b.missing
    assert b.unexpected == ()
    assert 'without classifier.1.weight' in str(b)


def test_own_head_keeps_what_the_file_has(tmp_path):
    file, found = file_of(tmp_path, 'mobilenet_v3_small')
    net = transfer_net('mobilenet_v3_small', SIZE, 10, weights=file, head='own')
    assert torch.equal(net.head.dense.weight, found['classifier.0.weight']) and net.head.out.weight.shape == (10, 1024)
    assert net.backbone.missing == () and net.backbone.unexpected == ()


def test_thousand_classes_keep_the_classifier(tmp_path):
    file, found = file_of(tmp_path, 'squeezenet1_1')
    torch.manual_seed(1)
    whole, x = torchvision.models.squeezenet1_1().eval(), torch.rand(2, *SIZE)
    assert torch.equal(transfer_net('squeezenet1_1', SIZE, 1000, weights=tmp_path, head='own').eval()(x), whole(x))


def test_files_as_programs_write_them(tmp_path):
    file, found = file_of(tmp_path, 'squeezenet1_1', num_classes=3)
    bodies = []
    for kept in (found, dict(epoch=3, state_dict=found), dict(model=found, opt=None), {f'module.{k}': v for k, v in found.items()},
        {k: v.half().float() for k, v in found.items()}):
        torch.save(kept, file)
        bodies.append(state(transfer_net('squeezenet1_1', SIZE, 10, weights=file).body))
    torch.save({k: v.half() for k, v in found.items()}, file, _use_new_zipfile_serialization=False)
    bodies.append(state(transfer_net('squeezenet1_1', SIZE, 10, weights=file).body))
    assert all(same(bodies[0], o) for o in bodies[1:4]) and same(bodies[4], bodies[5])


def test_what_is_missing_and_what_is_too_much_is_named(tmp_path):
    file, found = file_of(tmp_path, 'resnet18', num_classes=10)
    torch.save({**{k: v for k, v in found.items() if 'fc' not in k and 'num_batches' not in k}, 'ema.weight': torch.ones(1)}, file)
    b = transfer_net('resnet18', SIZE, 10, weights=file).backbone
    assert (b.missing, b.unexpected) == (('fc.weight', 'fc.bias'), ('ema.weight',))
    assert 'without fc.weight, fc.bias' in str(b) and 'not using its ema.weight' in str(b)


def test_old_names_of_densenet(tmp_path):
    file, found = file_of(tmp_path, 'densenet121', 'features')
    torch.save({k.replace('norm1', 'norm.1').replace('conv2', 'conv.2') if 'denselayer' in k else k: v for k, v in found.items()}, file)
    net = transfer_net('densenet121', SIZE, 10, weights=file)
    assert torch.equal(net.body.denseblock1.denselayer1.conv2.weight, found['features.denseblock1.denselayer1.conv2.weight'])


def test_where_weights_are_looked_for(tmp_path, monkeypatch):
    for o in ('a', 'b', 'b/weights', 'c'): (tmp_path/o).mkdir()
    monkeypatch.setenv('DLCOURSE_DATA', str(tmp_path/'b'))
    assert find_weights('resnet18') is None
    for o in ('b/weights', 'a', 'c'):
        (tmp_path/o/'resnet18.pth').touch()
        if o == 'a': monkeypatch.setenv('DLCOURSE_WEIGHTS', str(tmp_path/'a'))
        place = tmp_path/'c' if o == 'c' else None
        assert find_weights('resnet18', place) == tmp_path/o/'resnet18.pth'
    with pytest.raises(CourseError, match='no file or folder .*nowhere'): find_weights('resnet18', tmp_path/'nowhere')
    with pytest.raises(CourseError, match='has no weights of alexnet, which would be alexnet.safetensors or .*; it has resnet18.pth'):
        find_weights('alexnet', tmp_path/'c')


# Files that cannot be used

class Code:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)


def test_pickled_code_is_refused_and_never_run(tmp_path):
    torch.save({'features.0.weight': Code(str(tmp_path/'hacked'))}, tmp_path/'a.pth')
    (tmp_path/'b.pth').write_bytes(pickle.dumps({'x': Code(str(tmp_path/'hacked'))}))
    torch.save(nn.Linear(2, 2), tmp_path/'c.pth')
    torch.save(nn.Linear(2, 2), tmp_path/'d.pth', _use_new_zipfile_serialization=False)
    for o in 'abcd':
        with pytest.raises(CourseError, match=f'{o}.pth holds pickled code or objects, which are never run'):
            transfer_net('alexnet', SIZE, 10, weights=tmp_path/f'{o}.pth')
    assert not (tmp_path/'hacked').exists()


@pytest.mark.parametrize('part', [0, 4, 0.3, 0.99])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_truncated(tmp_path, suffix, part):
    file, _ = file_of(tmp_path, 'squeezenet1_1', 'features', suffix)
    raw = file.read_bytes()
    file.write_bytes(raw[:part if part in (0, 4) else int(part*len(raw))])
    with pytest.raises(CourseError, match=f'squeezenet1_1{suffix} cannot be read as weights: it is damaged or incomplete'):
        transfer_net('squeezenet1_1', SIZE, 10, weights=file)


@pytest.mark.parametrize('what, message', [
    ('<html>not found</html>', 'is not a file of weights'), ([1, 2], 'holds no tensors by name'), ({'epoch': 3},
        'holds no tensors by name'),
    (torch.ones(2), 'holds no tensors by name')])
def test_no_weights(tmp_path, what, message):
    file = tmp_path/'x.pth'
    file.write_text(what) if isinstance(what, str) else torch.save(what, file)
    with pytest.raises(CourseError, match=message): read_weights(file)


def test_weights_of_another_network(tmp_path):
    file, found = file_of(tmp_path, 'squeezenet1_1')
    with pytest.raises(CourseError, match=r'squeezenet1_1.pth is not of mobilenet_v2: of the 260 weights of its body 0 are there in '
                       r'the right shape, features.0.0.weight, features.0.1.bias and 258 more are not; it looks like squeezenet1_1'):
        transfer_net('mobilenet_v2', SIZE, 10, weights=file)
    with pytest.raises(CourseError, match='is not of squeezenet1_0'): transfer_net('squeezenet1_0', SIZE, 10, weights=file)
    found.pop('features.0.weight')
    torch.save(found, file)
    with pytest.raises(CourseError, match='of the 50 weights of its body 49 are there in the right shape, features.0.weight is not'):
        transfer_net('squeezenet1_1', SIZE, 10, weights=file)


# The hub

@pytest.mark.parametrize('name, url', [('squeezenet1_1', 'https://download.pytorch.org/models/squeezenet1_1'),
    ('timm:mobilenetv3_small_050', 'https://huggingface.co/timm/mobilenetv3')])
def test_hub_that_cannot_be_reached(name, url, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path/'hf'))
    plain = name.removeprefix('timm:')
    with pytest.raises(CourseError, match=f'weights of {plain} cannot be fetched from {url}.*no network in tests.*'
                       f'put a file {plain}.safetensors or {plain}.pth into .DLCOURSE_WEIGHTS'):
        model_for(name, SIZE, 10)
    monkeypatch.setenv('DLCOURSE_WEIGHTS', str(tmp_path))
    with pytest.raises(CourseError, match=f'into {tmp_path}'): model_for(name, SIZE, 10)


def test_hub_weights_by_name(monkeypatch):
    asked = []
    def get(self, **kw):
        asked.append((self.name, kw['weights_only']))
        return torchvision.models.mobilenet_v2().state_dict()
    monkeypatch.setattr(torchvision.models.MobileNet_V2_Weights, 'get_state_dict', get)
    nets = [transfer_net('mobilenet_v2', SIZE, 10, weights=o) for o in (None, 'IMAGENET1K_V1')]
    assert asked == [('IMAGENET1K_V2', True), ('IMAGENET1K_V1', True)]
    assert nets[1].backbone.weights == 'MobileNet_V2_Weights.IMAGENET1K_V1'


# Fusion

def test_rescale():
    a, b = backbone_of('resnet18'), backbone_of('tf_efficientnet_lite0')
    photo = torch.rand(2, 3, 4, 4)
    norm = lambda o: (photo - torch.tensor(o.mean).view(3, 1, 1))/torch.tensor(o.std).view(3, 1, 1)
    torch.testing.assert_close(Rescale(a, b)(norm(a)), norm(b))


@pytest.mark.parametrize('how, grid, shape', [('middle', None, (1792, 2, 2)), ('middle', 3, (1792, 3, 3)), ('late', None, (1792,))])
def test_what_is_joined(how, grid, shape):
    net = fusion_net(['squeezenet1_1', 'tf_efficientnet_lite0'], SIZE, 5, how, pretrained=False, grid=grid, head='linear').eval()
    x = torch.rand(2, *SIZE)
    with torch.no_grad():
        a, b = net.body.bodies['squeezenet1_1'](x), net.body.bodies['tf_efficientnet_lite0'](x)
        pool = nn.AdaptiveAvgPool2d(shape[1] if len(shape) == 3 else 1)
        joined = torch.cat([pool(a), pool(b)], 1)
        assert torch.equal(net.body(x), joined if len(shape) == 3 else joined.flatten(1)) and net.body(x).shape == (2, *shape)
        assert net(x).shape == (2, 5)
    assert (net.backbone.name, net.backbone.n_features) == ('squeezenet1_1+tf_efficientnet_lite0', 1792)


def test_second_network_sees_its_own_normalisation():
    net = fusion_net(['squeezenet1_1', 'tf_efficientnet_lite0'], SIZE, 5, 'late', pretrained=False).eval()
    parts = net.body.bodies
    assert not any(isinstance(m, Rescale) for m in parts['squeezenet1_1'].modules())
    assert isinstance(parts['tf_efficientnet_lite0'].rescale, Rescale)


def test_network_of_the_document():
    with torch.device('meta'):
        net = fusion_net('alexnet+mobilenet_v2', (3, 224, 224), 10)
        assert net.body(torch.zeros(1, 3, 224, 224)).shape == (1, 1536, 6, 6)
    sizes = [(m.in_features, m.out_features) for m in net.head if isinstance(m, nn.Linear)]
    assert sizes == [(55296, 4096), (4096, 1024), (1024, 10)] and {m.p for m in net.head if isinstance(m, nn.Dropout)} == {0.5}


def test_three_networks_freeze_split_and_pickle():
    net = freeze(model_for('squeezenet1_1+resnet18+timm:mobilenetv3_small_050', SIZE, 4, how='late', pretrained=False))
    was, x = state(net.body), torch.rand(4, *SIZE)
    net(x).sum().backward()
    assert same(was, state(net.body)) and all(p.grad is None for p in transfer_splitter(net)[0])
    assert len(transfer_splitter(net)[0]) == len(list(net.body.parameters()))
    net.eval()
    with net.from_features(): assert torch.equal(net(net.features(x)), net.tail(net.features(x)))
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))


def test_weights_for_each(tmp_path):
    file, one = file_of(tmp_path, 'squeezenet1_1', 'features')
    _, two = file_of(tmp_path, 'resnet18')
    for weights in (tmp_path, dict(squeezenet1_1=file, resnet18=tmp_path)):
        net = fusion_net('squeezenet1_1+resnet18', SIZE, 3, how='late', weights=weights)
        assert torch.equal(net.body.bodies['squeezenet1_1'][0].weight, one['features.0.weight'])
        assert torch.equal(net.body.bodies['resnet18'].conv1.weight, two['conv1.weight'])
        assert net.backbone.weights == f"{file}; {tmp_path/'resnet18.pth'}"
        assert net.backbone.missing == ('squeezenet1_1.classifier.1.weight', 'squeezenet1_1.classifier.1.bias')
    with pytest.raises(CourseError, match="unknown network of this fusion 'alexnet'"):
        fusion_net('squeezenet1_1+resnet18', SIZE, 3, weights=dict(alexnet=file))


@pytest.mark.parametrize('names, n_in, kw, message', [
    ('alexnet+timm:vit_tiny_patch16_224', SIZE, {}, 'alexnet.vit_tiny_patch16_224 cannot share images of 64×64 pixels: '
     'vit_tiny_patch16_224 does not work on images of 64×64 pixels; the smallest square ones it takes have 224×224'),
    ('alexnet+timm:vit_tiny_patch16_224', (3, 32, 32), {}, '63×63; vit_tiny_patch16_224 does not'),
    ('resnet18+timm:vit_tiny_patch16_224', (3, 224, 224), {},
        "vit_tiny_patch16_224 give no feature maps to join in the middle: choose how='late'"),
    ('resnet18', SIZE, {}, 'two or more different networks, not resnet18'), (['resnet18', 'resnet18'], SIZE, {}, 'two or more different'),
    ('resnet18+squeezenet1_1', SIZE, dict(how='early'), 'unknown fusion'), ('resnet18+squeezenet1_1', SIZE, dict(how='late', grid=2),
        'no grid=2'),
    ('resnet18+squeezenet1_1', SIZE, dict(grid=0), 'grid must be a whole number from 1'), ('resnet18+squeezenet1_1', SIZE, dict(head='own'),
        "unknown head 'own'")])
def test_fusions_refused(names, n_in, kw, message):
    with pytest.raises(CourseError, match=message): fusion_net(names, n_in, 10, **{'pretrained': False, **kw})


def test_own_is_no_head_of_a_fusion_and_vectors_can_be_joined():
    net = fusion_net('resnet18+timm:vit_tiny_patch16_224', (3, 224, 224), 3, how='late', pretrained=False).eval()
    assert net.features(torch.rand(1, 3, 224, 224)).shape == (1, 512 + 192)


def test_fusion_body_leaves_maps_of_the_size_alone():
    body, x = FusionBody({'a': nn.Identity()}, grid=5), torch.rand(2, 3, 5, 5)
    assert torch.equal(body(x), x)


# With the real weights

REAL = os.environ.get('DLCOURSE_DATA')

@needs_data('weights')
@pytest.mark.parametrize('name, missing', [('mobilenet_v2', 2), ('squeezenet1_1', 2), ('tf_efficientnet_lite0', 0)])
def test_real_weights(name, missing, monkeypatch):
    monkeypatch.setenv('DLCOURSE_DATA', REAL)
    net = model_for(name, SIZE, 10).eval()
    assert Path(net.backbone.weights).parent == Path(REAL)/'weights'
    assert len(net.backbone.missing) == missing
    assert net.backbone.unexpected == ()
    with torch.no_grad(): assert torch.isfinite(net(torch.randn(2, *SIZE))).all()
    with pytest.raises(CourseError, match='is not of resnet18.*it looks like'):
        model_for('resnet18', SIZE, 10, weights=net.backbone.weights)


def test_alexnet_from_a_checkpoint_of_ones_own(tmp_path, monkeypatch):
    "As with torchvision's download: all layers but the last are taken over, the head trains on cached features, alone and fused"
    from torchvision.models import alexnet
    torch.manual_seed(3)
    theirs = alexnet()
    torch.save(theirs.state_dict(), tmp_path/'alexnet.pth')
    monkeypatch.setenv('DLCOURSE_WEIGHTS', str(tmp_path))
    dls = dls_for('fashion_mini', size=64, n_per_class=6, bs=16, seed=1)
    learn = learner_for('alexnet', dls, seed=1, cache=True, head='own')
    was = {k: v.clone() for k,v in learn.model.state_dict().items()}
    body = [v for k,v in was.items() if k.startswith('body')]
    assert all(torch.equal(a, b) for a,b in zip(body, theirs.features.state_dict().values())) and learn.model.backbone.missing == ()
    with learn.quiet(): learn.fit_one_cycle(2, 1e-3)
    now = learn.model.state_dict()
    assert all(torch.equal(was[k], now[k]) for k in was if k.startswith('body'))
    assert not torch.equal(was['head.out.weight'], now['head.out.weight'])
    dense = [m for m in learn.model.head if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in dense] == [(4096, 9216), (4096, 4096), (10, 4096)]
    fused = fusion_net('alexnet+squeezenet1_1', (3, 64, 64), 10, how='late', weights=dict(alexnet=tmp_path/'alexnet.pth',
        squeezenet1_1=file_of(tmp_path, 'squeezenet1_1')[0]))
    assert torch.equal(next(fused.body.bodies['alexnet'].parameters()), theirs.features[0].weight)


# The whitening layer: lr_find, saved weights, faster answers, precision

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
    with learn.quiet(): learn.lr_find(show_plot=False, num_it=25)
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


# ---- linear models as a layer ----

def test_linear_from():
    "Scalers in every mode, an intercept that is left out, nested pipelines and one without steps"
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    rng = np.random.default_rng(1)
    x = rng.normal(5, 3, (40, 6))
    x[:, 2] = 1
    y = x @ rng.normal(size=(6, 2)) + rng.normal(size=(40, 2))
    for mean,std in [(True, True), (False, True), (True, False), (False, False)]:
        scaler = StandardScaler(with_mean=mean, with_std=std)
        for model in (scaler, make_pipeline(make_pipeline(scaler, 'passthrough'), PCA(3), LinearRegression(fit_intercept=mean))):
            model.fit(x, y)
            right = model.predict(x) if hasattr(model, 'predict') else model.transform(x)
            layer = linear_from(model, torch.float64)
            assert np.abs(layer(torch.from_numpy(x)).detach().numpy() - right).max() < 1e-10
    with pytest.raises(CourseError, match='at least one step'): linear_from(make_pipeline('passthrough'))
    with pytest.raises(CourseError, match='got a PCA without weights: call fit first'): linear_from(make_pipeline(PCA()))
    with pytest.raises(CourseError, match='estimator must be StandardScaler, .* got Linear:'): linear_from(torch.nn.Linear(2, 2))


def test_linear_from_draws_no_random_numbers():
    from sklearn.decomposition import PCA
    pca, state = PCA(2).fit(np.random.default_rng(1).normal(size=(9, 4))), torch.get_rng_state()
    linear_from(pca)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_fused_is_said():
    with pytest.raises(CourseError, match="'cnn' has no body that another network can share"): find_arch('cnn+mlp')
