"Networks: equalities with independent implementations, exact counts, faults and bad input"
import pickle, subprocess, sys

import numpy as np
import pytest
import torch
from fastai.layers import ConvLayer, NormType
from torch import nn
from torch.nn import functional as F

from dlcourse.core import CourseError, seed_all
from dlcourse.models.blocks import (act_layer, conv_layer, count_params, dry_run, image_shape, init_layers, inits, make,
                                    n_features, norm_layer, pool_layer)
from dlcourse.models.cnn import cnn, cnn_base
from dlcourse.models.mlp import affordable, mlp, power_widths, spread_widths
from dlcourse.models.nets import all_conv, inception, residual
from dlcourse.models.registry import backbones, register, registry
from dlcourse.models.zoo import archs, find_arch, match_params, model_for, size_of, smallest_input

GREY, RGB = (1, 28, 28), (3, 32, 32)
NAMES = ['all_conv', 'cnn', 'cnn_base', 'cnn_v2', 'cnn_v3', 'inception', 'mlp', 'residual', 'whitened']


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
    (lambda: match_params('cnn', -5, GREY, 10), 'within 2.0% of -5')])
def test_match_refuses(call, message):
    with pytest.raises(CourseError, match=message): call()


def test_counting_draws_no_random_numbers():
    was = torch.get_rng_state()
    archs()
    match_params('cnn', 50_000, GREY, 10)
    assert torch.equal(was, torch.get_rng_state())


# The register

def test_a_new_architecture_is_known_everywhere():
    @register('a single dense layer', 'test')
    def one_layer(n_in, n_out, bias=True): return nn.Sequential(nn.Flatten(), nn.Linear(n_features(n_in), n_out, bias=bias))
    try:
        assert count_params(model_for('one-layer', GREY, 10, bias=False)) == 7840
        assert archs().loc['one_layer', 'params_1x28x28'] == 7850
        with pytest.raises(CourseError, match='width of one_layer is fixed'): match_params('one_layer', 100, GREY, 10)
    finally: del registry['one_layer']


def test_archs_lists_every_architecture_once():
    table = archs()
    assert list(table.index) == [*NAMES, *backbones] and table.notna().all(axis=None)
    assert table.smallest[NAMES].to_dict() == dict(mlp=1, cnn=5, cnn_base=1, cnn_v2=9, cnn_v3=17, all_conv=5, residual=5, inception=3, whitened=9)


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
    (lambda: model_for('resnet', GREY, 10), "unknown architecture 'resnet'.*There are: all_conv, cnn"),
    (lambda: model_for('cnn', GREY, 10, filter=3), "unknown argument of cnn 'filter'. Did you mean 'filters'"),
    (lambda: model_for('mlp', GREY, 10, kernel=3), "unknown argument of mlp 'kernel'.*There are: widths, activation"),
    (lambda: model_for(nn.Linear(784, 9), 784, 10), 'Linear has 9 outputs for each example, but the data need 10'),
    (lambda: model_for(nn.Conv2d(1, 10, 3), GREY, 10), r'outputs of shape \(10, 26, 26\)'),
    (lambda: model_for(nn.Linear(784, 10), GREY, 10), r'does not accept an input of shape \(1, 28, 28\)'),
    (lambda: model_for(nn.Linear(784, 10), 784, 10, bias=True), 'built already takes no arguments, but got bias'),
    (lambda: model_for(Tuple(), 784, 10), 'gives a tuple, not a tensor'),
    (lambda: model_for(lambda n_in, n_out: 'no', 784, 10), 'must be an nn.Module, not str'),
    (lambda: model_for(3, 784, 10), 'arch must be a name, a module or a function'),
    (lambda: model_for('mlp', 784, 0), 'n_out must be a whole number of outputs, at least 1, not 0'),
    (lambda: model_for('mlp', 784, 2.5), 'n_out must be'),
    (lambda: model_for('mlp', (1, 0, 28), 10), 'n_in must be a number of features or a shape'),
    (lambda: model_for('mlp', None, 10), 'n_in must be a number of features or a shape'),
    (lambda: model_for('cnn', 784, 10), 'needs images, as n_in='),
    (lambda: model_for('cnn', (28, 28), 10), 'needs images, as n_in='),
    (lambda: model_for('residual', (1, 28, 4), 10), 'at least 5×5 pixels, not 28×4'),
    (lambda: cnn(GREY, 10, pooling=nn.MaxPool2d(8)), 'does not accept an input of shape'),
    (lambda: cnn(GREY, 10, kernel=4), 'odd number of pixels'),
    (lambda: cnn(GREY, 10, kernel=(3, 5)), 'kernel takes one value or one for each of the 3 layers, not 2'),
    (lambda: cnn(GREY, 10, filters=0), 'at least one block with one filter'),
    (lambda: cnn(GREY, 10, depth=0), 'at least one block with one filter'),
    (lambda: cnn(GREY, 10, filters=(8, 16), depth=3), 'are for 2 blocks'),
    (lambda: cnn(GREY, 10, dropout=1), 'from 0 to below 1, got 1'),
    (lambda: cnn(GREY, 10, head='average'), "unknown head 'average'. Did you mean 'avg'"),
    (lambda: cnn(GREY, 10, init='kaimin'), "Did you mean 'kaiming'"),
    (lambda: residual(GREY, 10, blocks=0), 'at least one block, not blocks=0'),
    (lambda: inception(GREY, 10, modules=()), 'six numbers'),
    (lambda: inception(GREY, 10, modules=((1, 2, 3),)), 'six numbers'),
    (lambda: mlp(13, 1, widths=(8, 0)), 'at least one neuron, not widths='),
    (lambda: mlp(13, 1, widths=(8, 8), dropout=(0.1,)*3), 'one for each of the 2 layers, not 3'),
    (lambda: mlp(13, 1, widths=(10**6,)*3), 'the limit is max_params=500,000,000'),
    (lambda: mlp(13, 1, norm='instance'), 'a dense layer has none'),
    (lambda: power_widths(3, 0), 'n=3, k=0'),
    (lambda: power_widths(10**9, 7), 'about 10\\^845098040 neurons'),
    (lambda: spread_widths(4, 0), 'go into 1 to 8 layers, not 0'),
    (lambda: act_layer(3), 'activation must be one of relu'),
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


def test_importing_the_models_imports_no_heavy_package():
    code = "import sys, dlcourse.models.zoo; print([m for m in ('torchvision', 'timm', 'sklearn', 'dlcourse.data') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
