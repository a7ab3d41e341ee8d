"Fast inference and export: equal answers on many networks, what may not be folded, and nothing left behind where an export fails"
import json, os, shutil, sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import needs_data
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat
from PIL import Image
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from dlcourse.core import CourseError
from dlcourse.data.blocks import dls_for
from dlcourse.data.transforms import BatchTransform
from dlcourse.insight import inference
from dlcourse.insight.evaluation import evaluate
from dlcourse.insight.inference import compare_speed, export_folder, export_onnx, fast, onnx_settings, pixel_net, run_alone, run_onnx
from dlcourse.models import folding
from dlcourse.models.folding import FastNet, fold_batchnorm, largest_map
from dlcourse.models.zoo import model_for
from dlcourse.training.learner import learner_for


def images(n=12, c=3, side=16, classes=2, seed=0):
    "Random images as bytes with labels, in memory"
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, c, side, side), dtype=np.uint8)), torch.arange(n) % classes


def seen(model, x):
    "`model` after its normalisations have seen something, in evaluation mode"
    torch.manual_seed(0)
    with torch.no_grad():
        model.train()(x)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d) and m.affine: m.weight.uniform_(0.5, 1.5); m.bias.uniform_(-0.5, 0.5)
    return model.eval()


def norms(model): return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
def state(model): return {k: v.clone() for k,v in model.state_dict().items()}
def error(a, b): return ((a - b).abs().max()/a.abs().max()).item()


def check_fold(model, left, x=None):
    "Folded, `model` answers the same and keeps `left` normalisations"
    x = torch.randn(3, 3, 12, 12) if x is None else x
    model = seen(model, x)
    was = state(model)
    quick = fold_batchnorm(model)
    with torch.no_grad(): assert error(model(x), quick(x)) < 1e-4
    assert norms(quick) == left
    assert all(torch.equal(v, was[k]) for k,v in model.state_dict().items()) and was.keys() == model.state_dict().keys()


# ---- equal answers -----------------------------------------------------------------------------

NETS = dict(mobilenet_v2=(3, 32), resnet18=(1, 32), mobilenetv3_small_050=(3, 32), cnn=(1, 28), mlp=(1, 28), residual=(3, 16), inception=(3, 16))
NETS['resnet18+squeezenet1_1'] = (3, 32)


@pytest.mark.parametrize('name', NETS)
def test_same_answers(name):
    c, side = NETS[name]
    torch.manual_seed(0)
    own = {} if name in ('cnn', 'mlp', 'residual', 'inception') else dict(pretrained=False)
    if name in ('cnn', 'residual', 'inception'): own = dict(norm='batch')
    x = torch.randn(5, c, side, side)
    model = seen(model_for(name, (c, side, side), 4, **own), x)
    was, mode = state(model), [m.training for m in model.modules()]
    quick = fast(model, x[:2])
    with torch.no_grad(): assert error(model(x), quick(x)) < 1e-4
    assert norms(model) == 0 or norms(quick) < norms(model)
    assert all(torch.equal(v, was[k]) for k,v in model.state_dict().items()) and mode == [m.training for m in model.modules()]
    assert not any(m._forward_hooks for m in model.modules())


def test_left_in_training_mode():
    model = model_for('cnn', (1, 28, 28), 3).train()
    fast(model, (1, 28, 28)), largest_map(model, torch.rand(2, 1, 28, 28)), compare_speed(dict(a=model), torch.rand(2, 1, 28, 28), rounds=1)
    assert model.training and all(m.training for m in model.modules()) and not any(m._forward_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_pieces_give_the_same(monkeypatch):
    model, x = seen(model_for('cnn', (3, 28, 28), 3, norm='batch'), torch.randn(8, 3, 28, 28)), torch.randn(11, 3, 28, 28)
    quick = fast(model, x)
    assert len(quick.pieces(x)) == 1
    monkeypatch.setattr(folding, '_largest', 1)
    assert [len(o) for o in quick.pieces(x)] == [4, 4, 3]
    with torch.no_grad(): assert error(model(x), quick(x)) < 1e-4


def test_rows_and_learner():
    "A table's rows have no pixels; a learner brings its own batch"
    model = nn.Sequential(nn.Linear(5, 3)).eval()
    x = torch.randn(4, 5)
    assert torch.allclose(fast(model, x)(x), model(x), atol=1e-6)
    learn = learner_for('mlp', data='boston_housing', seed=1)
    assert isinstance(fast(learn), FastNet)


def test_bf16_on_request():
    x = torch.randn(4, 3, 16, 16)
    model = seen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), x)
    out = fast(model, x, bf16=True)(x)
    assert out.dtype == torch.float32 and 1e-5 < error(model(x), out) < 0.05 and model[0].weight.dtype == torch.float32


# ---- what may and may not be folded ------------------------------------------------------------

def pair(**kw): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **kw))


class Net(nn.Module):
    "A convolution and a normalisation, used as `how` says"
    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), how

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.how == 'twice': return self.norm(self.conv(y))
        if self.how == 'weights read': return y + nn.functional.conv2d(x, self.conv.weight, padding=1)
        if self.how == 'scale read': return y * self.norm.weight.view(1, 3, 1, 1)
        if self.how == 'decides' and y.sum() > 1e9: return x
        return y


@pytest.mark.parametrize('how, left', [('once', 0), ('twice', 1), ('weights read', 1), ('scale read', 1), ('decides', 1)])
def test_how_it_is_used(how, left): check_fold(Net(how), left)


def test_not_affine(): check_fold(pair(affine=False), 0)
def test_no_statistics(): check_fold(pair(track_running_stats=False), 1)
def test_no_bias_and_groups(): check_fold(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)), 0)


def test_shared_layers():
    "One convolution for two normalisations; one normalisation for two convolutions; weights that two layers share"
    conv, norm, act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
    check_fold(nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)), 2)
    check_fold(nn.Sequential(nn.Conv2d(3, 3, 3), norm, nn.Conv2d(3, 3, 3), norm), 1)
    tied = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3))
    tied[2].weight = tied[0].weight
    check_fold(tied, 0)
    check_fold(nn.Sequential(act, conv, act, norm), 1)


class Decides(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
    def forward(self, x): return self.layers(x) if x.sum() < 1e9 else x


def test_in_parts():
    "A network that cannot be traced: the same activation before and after a convolution is no mere repetition"
    act = nn.ReLU()
    check_fold(Decides(act, nn.Conv2d(3, 3, 3), act, nn.BatchNorm2d(3)), 1)
    check_fold(Decides(act, nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), act), 0)
    class Inner(Decides): pass
    check_fold(Decides(Inner(act, nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), 0)


class Standardised(nn.Conv2d):
    "A convolution that standardises its weights at each call"
    def forward(self, x): return self._conv_forward(x, (self.weight - self.weight.mean())/self.weight.std(), self.bias)


@pytest.mark.parametrize('conv', [Standardised(3, 4, 3), spectral_norm(nn.Conv2d(3, 4, 3)), nn.ConvTranspose2d(3, 4, 3)], ids=['standardised', 'spectral', 'transposed'])
def test_other_convolutions_stay(conv): check_fold(nn.Sequential(conv, nn.BatchNorm2d(4)), 1)


@pytest.mark.parametrize('layer', [0, 1])
def test_hooked_layers_stay(layer):
    "What a hook sees stays what it was"
    model, x, got = pair(), torch.randn(3, 3, 12, 12), []
    seen(model, x)
    model[layer].register_forward_hook(lambda m, args, out: got.append((args[0], out)))
    quick = fold_batchnorm(model)
    assert norms(quick) == 1
    del got[:]
    model(x), quick(x)
    assert len(got) == 2 and all(torch.equal(a, b) for a,b in zip(*got))


# ---- what cannot be made fast ------------------------------------------------------------------

class Two(nn.Module):
    def forward(self, x): return x, x


def test_bad_input():
    with pytest.raises(CourseError, match='one tensor, not a tuple'): fast(Two(), (3, 8, 8))
    with pytest.raises(CourseError, match='pass a batch x, or the shape'): fast(pair())
    with pytest.raises(CourseError, match='only answers'): fast(pair(), (3, 8, 8)).train()


def test_other_answers_are_refused(monkeypatch):
    "If folding went wrong, nobody would get the copy"
    def wrong(model):
        model = deepcopy(model)
        model[0].bias.data += 1
        return model
    monkeypatch.setattr(folding, 'fold_batchnorm', wrong)
    with pytest.raises(CourseError, match="can't be folded safely"): fast(pair(), (3, 8, 8))


# ---- export ------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def learn(): return learner_for('cnn', data=images(c=1), norm='batch', bs=4, seed=1, filters=[4, 4], label_smoothing=0.1)


@pytest.fixture(scope='module')
def folder(learn, tmp_path_factory): return export_folder(learn, tmp_path_factory.mktemp('out')/'deep'/'net')


def test_smoothed_loss(learn):
    net = pixel_net(learn)
    assert torch.allclose(net(net.pixels), evaluate(learn).preds, atol=1e-5) and net.settings['channels'] == 1


def test_sigmoid_loss():
    learn = learner_for('cnn', data=images(), bs=4, seed=1, filters=[4, 4])
    model = nn.Sequential(learn.model, nn.Linear(2, 1))
    binary = Learner(learn.dls, model, loss_func=BCEWithLogitsLossFlat())
    net = pixel_net(binary)
    assert net(net.pixels).shape == (len(net.pixels), 2) and torch.allclose(net(net.pixels), evaluate(binary).preds, atol=1e-5)


def test_several_sizes_of_batch(learn, tmp_path):
    file = export_onnx(learn, tmp_path/'new'/'net.onnx')
    net = pixel_net(learn)
    x = images(40, 1, seed=3)[0]
    for n in (1, 3, 40): assert np.allclose(run_onnx(file, x[:n]), net(x[:n]), atol=1e-4)
    assert onnx_settings(file) == json.loads(json.dumps(net.settings)) and os.listdir(file.parent) == ['net.onnx']


def test_settings_are_readable(learn, folder):
    d = json.loads((folder/'settings.json').read_text())
    assert d['classes'] == ['0', '1'] and (d['channels'], d['height'], d['width']) == (1, 16, 16) and len(d['mean']) == len(d['std']) == 1
    assert sorted(o.name for o in folder.iterdir()) == ['predict.py', 'program.pt2', 'settings.json', 'weights.safetensors']
    assert os.listdir(folder.parent) == ['net']


def test_weights_build_the_network_again(learn, folder):
    from safetensors.torch import load_file
    saved, have = load_file(folder/'weights.safetensors'), learn.model.state_dict()
    assert saved.keys() == have.keys() and all(torch.equal(saved[k], v) for k,v in have.items())


def test_any_image_file(folder, tmp_path):
    "A colour image of another size, beside one that fits"
    Image.fromarray(images(1, 3, 40)[0][0].permute(1, 2, 0).numpy()).save(tmp_path/'a.png')
    Image.fromarray(images(1, 1)[0][0, 0].numpy()).save(tmp_path/'b.png')
    for o in run_alone(folder, [tmp_path/'a.png', tmp_path/'b.png']):
        assert o['answer'] in '01' and sum(o['probabilities'].values()) == pytest.approx(1, abs=1e-5)


def test_tampered_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path/'net')
    program = tmp_path/'net'/'program.pt2'
    program.write_bytes(program.read_bytes()[:2000])
    Image.fromarray(images(1, 1)[0][0, 0].numpy()).save(tmp_path/'b.png')
    with pytest.raises(CourseError, match='does not run by itself'): run_alone(tmp_path/'net', [tmp_path/'b.png'])


@pytest.mark.parametrize('content, why', [(None, 'is missing'), (b'no program', 'cannot read the program')])
def test_damaged_program(tmp_path, content, why):
    file = tmp_path/'net.onnx'
    if content: file.write_bytes(content)
    for f in (onnx_settings, lambda o: run_onnx(o, images(1, 1)[0])):
        with pytest.raises(CourseError, match=why): f(file)


# ---- where an export fails nothing is left -----------------------------------------------------

def test_missing_package(learn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(CourseError, match=r"needs onnxscript, which is not installed: pip install 'dlcourse\[export\]'"): export_onnx(learn, tmp_path/'net.onnx')
    assert not os.listdir(tmp_path)


def test_existing_folder(learn, tmp_path):
    (tmp_path/'net').mkdir()
    (tmp_path/'net'/'mine.txt').write_text('mine')
    with pytest.raises(CourseError, match='exists already'): export_folder(learn, tmp_path/'net')
    assert os.listdir(tmp_path/'net') == ['mine.txt'] and os.listdir(tmp_path) == ['net']


def test_disk_error(learn, tmp_path, monkeypatch):
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(inference, 'save_file', full)
    with pytest.raises(CourseError, match='cannot write .*net: No space left'): export_folder(learn, tmp_path/'net')
    assert not os.listdir(tmp_path)
    (tmp_path/'file').write_text('')
    with pytest.raises(CourseError, match='cannot write'): export_folder(learn, tmp_path/'file'/'net')
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('write', [export_folder, export_onnx])
def test_wrong_program(learn, tmp_path, monkeypatch, write):
    "A program that answers differently is not kept, and what was there stays"
    monkeypatch.setattr(inference, 'run_onnx', lambda program, x: np.zeros((len(x), 2)))
    monkeypatch.setattr(inference, 'run_alone', lambda folder, files: [dict(probabilities={'0': 0., '1': 0.}) for _ in files])
    monkeypatch.setattr(inference, '_onnx_bytes', lambda net: b'')
    monkeypatch.setattr(inference, '_exported', lambda *_, **__: None)
    monkeypatch.setattr(torch.export, 'save', lambda *_: None)
    (tmp_path/'old.onnx').write_text('old')
    with pytest.raises(CourseError, match='does not give what the learner gives'): write(learn, tmp_path/('old.onnx' if write is export_onnx else 'net'))
    assert os.listdir(tmp_path) == ['old.onnx'] and (tmp_path/'old.onnx').read_text() == 'old'


class Stubborn(nn.Module):
    "A network that torch cannot export: it decides by what it sees"
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(256, 2)
    def forward(self, x): return self.out(x.flatten(1)) if x.sum() < 1e9 else self.out(-x.flatten(1))


def test_network_that_cannot_be_exported(learn, tmp_path):
    with pytest.raises(CourseError, match='torch cannot export this network'): export_folder(Learner(learn.dls, Stubborn(), loss_func=learn.loss_func), tmp_path/'net')
    assert not os.listdir(tmp_path)


class Darker(BatchTransform):
    def __init__(self): super().__init__(train_only=False)
    def apply(self, x): return x * 0.5


def test_data_that_cannot_be_exported():
    x, y = images(c=1)
    dark = learner_for('cnn', data=(x, y), bs=4, filters=[4, 4], batch_tfms=[Darker()])
    with pytest.raises(CourseError, match='Darker.* changes validation images'): pixel_net(dark)
    with pytest.raises(CourseError, match='takes images as bytes'): pixel_net(learner_for('mlp', data='boston_housing'))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(8, 1, 16, 16), y[:8]), 4)
    plain = Learner(DataLoaders(data, data), dark.model, loss_func=nn.CrossEntropyLoss())
    with pytest.raises(CourseError, match="don't say how pixels become its input"): pixel_net(plain)


def test_augmented_loader_is_exported_plain():
    learn = learner_for('cnn', data=images(), bs=4, seed=1, filters=[4, 4], augment=True)
    net = pixel_net(learn)
    assert torch.allclose(net(net.pixels), evaluate(learn).preds, atol=1e-5)


@needs_data('weights')
def test_real_weights():
    x = torch.randn(4, 3, 96, 96)
    model = model_for('mobilenet_v2', (3, 96, 96), 10).eval()
    with torch.no_grad(): assert error(model(x), fast(model, x[:2])(x)) < 1e-4
