"Pretrained networks and fusion: equality with the libraries' networks, weights from files and what is wrong with them, really frozen, cached features"
import os
import pickle
import urllib.error
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import needs_data
from fastai.callback.progress import no_bar  # noqa: F401  (adds `Learner.no_bar`)
from fastai.callback.schedule import fine_tune  # noqa: F401  (adds `Learner.fine_tune`)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from dlcourse.core import CourseError, seed_all
from dlcourse.models import weights as weights_module
from dlcourse.models.blocks import chain, count_params
from dlcourse.models.fusion import FusionBody, Rescale, fusion_net
from dlcourse.models.backbones import backbone_of, cut_net, library_of, smallest_side
from dlcourse.models.heads import fastai_head, linear_head
from dlcourse.models.pretrained import TransferNet, transfer_net, transfer_splitter
from dlcourse.models.weights import find_weights, read_weights
from dlcourse.models.zoo import archs, find_arch, match_params, model_for, size_of, smallest_input

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
    ('resnet18.a1_in', "Did you mean 'a1_in1k'"), ('', 'unknown architecture'), ('mobilenet_v2+squeezenet1_11', "Did you mean 'squeezenet1_1'")])
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


def test_archs_lists_the_backbones():
    table = archs()
    assert {'alexnet', 'mobilenet_v2', 'squeezenet1_1', 'tf_efficientnet_lite0', 'resnet18', 'resnet50', 'alexnet+mobilenet_v2'} <= {*table.index}
    assert (table.smallest['alexnet'], table.smallest['alexnet+mobilenet_v2']) == (63, 63)


# The libraries' networks, in parts

@pytest.mark.parametrize('name, side', [
    ('squeezenet1_1', 64), ('mobilenet_v2', 64), ('mobilenet_v3_small', 64), ('efficientnet_b0', 64), ('convnext_tiny', 64), ('resnet18', 64),
    ('regnet_x_400mf', 64), ('shufflenet_v2_x0_5', 64), ('mnasnet0_5', 64), ('densenet121', 64), ('swin_t', 64), ('alexnet', 63), ('vit_b_32', 224)])
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
    (lambda: model_for('alexnet', (3, 62, 62), 10, pretrained=False), 'alexnet does not work on images of 62×62 pixels; the smallest square ones it takes have 63×63'),
    (lambda: model_for('alexnet', (3, 32, 200), 10), 'on images of 32×200 pixels'),
    (lambda: model_for('timm:vit_tiny_patch16_224', SIZE, 10), 'have 224×224'),
    (lambda: model_for('alexnet', (4, 64, 64), 10), 'takes images of 3 channels, or grey ones, not of 4'),
    (lambda: model_for('alexnet', 13, 10), 'alexnet needs images'),
    (lambda: model_for('alexnet', SIZE, 0), 'n_out must be a whole number'),
    (lambda: model_for('resnet18', SIZE, 10, pretrained=False, head='fast'), "Did you mean 'fastai'"),
    (lambda: model_for('resnet18', SIZE, 10, pretrained=False, dropout=1.), 'dropout must be a share'),
    (lambda: model_for('resnet18', SIZE, 10, pretrained=False, weights='x'), 'pretrained=False')])
def test_refused(call, message):
    with pytest.raises(CourseError, match=message): call()


@pytest.mark.parametrize('head', ['own', 'linear', 'fastai', 'dense'])
def test_grey_images(head):
    net = model_for('squeezenet1_1', (1, 28, 28), 5, pretrained=False, head=head).eval()
    x = torch.rand(3, 1, 28, 28)
    assert net(x).shape == (3, 5) and torch.equal(net(x), net(x.repeat(1, 3, 1, 1)))


# Heads

def test_fastai_head_is_fastais():
    from fastai.vision.learner import create_head
    ours, theirs = fastai_head((8, 3, 3), 5, dropout=0.3).eval(), create_head(8, 5, ps=0.3).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.rand(4, 8, 3, 3)
    assert torch.equal(ours(x), theirs(x)) and [m.p for m in ours.modules() if isinstance(m, nn.Dropout)] == [m.p for m in theirs.modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize('head', ['own', 'linear', 'fastai', 'dense'])
def test_every_head_ends_in_out_and_has_the_dropout_asked_for(head):
    net = transfer_net('mobilenet_v3_small', SIZE, 6, pretrained=False, head=head, dropout=0.4)
    last = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    assert last is net.head.out and net(torch.rand(2, *SIZE)).shape == (2, 6)
    assert {m.p for m in net.head.modules() if isinstance(m, nn.Dropout)} <= {0.4, 0.2} and not any(getattr(m, 'inplace', False) for m in net.head.modules() if isinstance(m, nn.Dropout))
    assert 0.4 in {m.p for m in net.head.modules() if isinstance(m, nn.Dropout)}


def test_head_of_ones_own():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(2048, 3))
    net = transfer_net('resnet18', SIZE, 3, pretrained=False, head=head)
    assert net.head is head and net.features(torch.rand(2, *SIZE)).shape == (2, 2048)


@pytest.mark.parametrize('head, n', [(nn.Conv2d(8, 3, 6), 0), (nn.AdaptiveAvgPool2d(1), 1), (nn.Sequential(nn.Flatten(), nn.ReLU()), 2), (nn.Identity(), 1)])
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
@pytest.mark.parametrize('name, head', [('squeezenet1_1', 'own'), ('squeezenet1_1', 'linear'), ('resnet18', 'fastai'), ('efficientnet_b0', 'own'), ('timm:mobilenetv3_small_050', 'fastai')])
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
    assert b.weights == str(tmp_path/f'alexnet{suffix}') and 'classifier.6.weight' in b.missing and b.unexpected == () and 'without classifier.1.weight' in str(b)


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
    for kept in (found, dict(epoch=3, state_dict=found), dict(model=found, opt=None), {f'module.{k}': v for k, v in found.items()}, {k: v.half().float() for k, v in found.items()}):
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
    with pytest.raises(CourseError, match='has no weights of alexnet, which would be alexnet.safetensors or .*; it has resnet18.pth'): find_weights('alexnet', tmp_path/'c')


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
        with pytest.raises(CourseError, match=f'{o}.pth holds pickled code or objects, which are never run'): transfer_net('alexnet', SIZE, 10, weights=tmp_path/f'{o}.pth')
    assert not (tmp_path/'hacked').exists()


@pytest.mark.parametrize('part', [0, 4, 0.3, 0.99])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_truncated(tmp_path, suffix, part):
    file, _ = file_of(tmp_path, 'squeezenet1_1', 'features', suffix)
    raw = file.read_bytes()
    file.write_bytes(raw[:part if part in (0, 4) else int(part*len(raw))])
    with pytest.raises(CourseError, match=f'squeezenet1_1{suffix} cannot be read as weights: it is damaged or incomplete'): transfer_net('squeezenet1_1', SIZE, 10, weights=file)


@pytest.mark.parametrize('what, message', [
    ('<html>not found</html>', 'is not a file of weights'), ([1, 2], 'holds no tensors by name'), ({'epoch': 3}, 'holds no tensors by name'),
    (torch.ones(2), 'holds no tensors by name')])
def test_no_weights(tmp_path, what, message):
    file = tmp_path/'x.pth'
    file.write_text(what) if isinstance(what, str) else torch.save(what, file)
    with pytest.raises(CourseError, match=message): read_weights(file)


def test_weights_of_another_network(tmp_path):
    file, found = file_of(tmp_path, 'squeezenet1_1')
    with pytest.raises(CourseError, match=r'squeezenet1_1.pth is not of mobilenet_v2: of the 260 weights of its body 0 are there in the right shape, features.0.0.weight, features.0.1.bias and 258 more are not; it looks like squeezenet1_1'):
        transfer_net('mobilenet_v2', SIZE, 10, weights=file)
    with pytest.raises(CourseError, match='is not of squeezenet1_0'): transfer_net('squeezenet1_0', SIZE, 10, weights=file)
    found.pop('features.0.weight')
    torch.save(found, file)
    with pytest.raises(CourseError, match='of the 50 weights of its body 49 are there in the right shape, features.0.weight is not'): transfer_net('squeezenet1_1', SIZE, 10, weights=file)


# The hub

@pytest.mark.parametrize('name, url', [('squeezenet1_1', 'https://download.pytorch.org/models/squeezenet1_1'), ('timm:mobilenetv3_small_050', 'https://huggingface.co/timm/mobilenetv3')])
def test_hub_that_cannot_be_reached(name, url, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path/'hf'))
    plain = name.removeprefix('timm:')
    with pytest.raises(CourseError, match=f'weights of {plain} cannot be fetched from {url}.*no network in tests.*put a file {plain}.safetensors or {plain}.pth into .DLCOURSE_WEIGHTS'):
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
    assert not any(isinstance(m, Rescale) for m in parts['squeezenet1_1'].modules()) and isinstance(parts['tf_efficientnet_lite0'].rescale, Rescale)


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
        assert torch.equal(net.body.bodies['squeezenet1_1'][0].weight, one['features.0.weight']) and torch.equal(net.body.bodies['resnet18'].conv1.weight, two['conv1.weight'])
        assert net.backbone.weights == f"{file}; {tmp_path/'resnet18.pth'}" and net.backbone.missing == ('squeezenet1_1.classifier.1.weight', 'squeezenet1_1.classifier.1.bias')
    with pytest.raises(CourseError, match="unknown network of this fusion 'alexnet'"): fusion_net('squeezenet1_1+resnet18', SIZE, 3, weights=dict(alexnet=file))


@pytest.mark.parametrize('names, n_in, kw, message', [
    ('alexnet+timm:vit_tiny_patch16_224', SIZE, {}, 'alexnet.vit_tiny_patch16_224 cannot share images of 64×64 pixels: vit_tiny_patch16_224 does not work on images of 64×64 pixels; the smallest square ones it takes have 224×224'),
    ('alexnet+timm:vit_tiny_patch16_224', (3, 32, 32), {}, '63×63; vit_tiny_patch16_224 does not'),
    ('resnet18+timm:vit_tiny_patch16_224', (3, 224, 224), {}, "vit_tiny_patch16_224 give no feature maps to join in the middle: choose how='late'"),
    ('resnet18', SIZE, {}, 'two or more different networks, not resnet18'), (['resnet18', 'resnet18'], SIZE, {}, 'two or more different'),
    ('resnet18+squeezenet1_1', SIZE, dict(how='early'), 'unknown fusion'), ('resnet18+squeezenet1_1', SIZE, dict(how='late', grid=2), 'no grid=2'),
    ('resnet18+squeezenet1_1', SIZE, dict(grid=0), 'whole number of positions'), ('resnet18+squeezenet1_1', SIZE, dict(head='own'), "unknown head 'own'")])
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
    assert Path(net.backbone.weights).parent == Path(REAL)/'weights' and len(net.backbone.missing) == missing and net.backbone.unexpected == ()
    with torch.no_grad(): assert torch.isfinite(net(torch.randn(2, *SIZE))).all()
    with pytest.raises(CourseError, match='is not of resnet18.*it looks like'): model_for('resnet18', SIZE, 10, weights=net.backbone.weights)


def test_alexnet_from_a_checkpoint_of_ones_own(tmp_path, monkeypatch):
    "As with torchvision's download: all layers but the last are taken over, the head trains on cached features, alone and fused"
    from torchvision.models import alexnet
    from dlcourse.data.blocks import dls_for
    from dlcourse.training.learner import learner_for
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
    assert all(torch.equal(was[k], now[k]) for k in was if k.startswith('body')) and not torch.equal(was['head.out.weight'], now['head.out.weight'])
    dense = [m for m in learn.model.head if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in dense] == [(4096, 9216), (4096, 4096), (10, 4096)]
    fused = fusion_net('alexnet+squeezenet1_1', (3, 64, 64), 10, how='late', weights=dict(alexnet=tmp_path/'alexnet.pth', squeezenet1_1=file_of(tmp_path, 'squeezenet1_1')[0]))
    assert torch.equal(next(fused.body.bodies['alexnet'].parameters()), theirs.features[0].weight)
