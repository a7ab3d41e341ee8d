"Networks of your own, and a Learner as an ordinary object: copies, pickles, compiled and scripted networks"
import pickle, random, warnings
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from fastai.basics import (DataBlock, DataLoaders, MultiCategoryBlock, RandomSplitter, RegressionBlock, TransformBlock, load_learner,
                           noop)
from fastai.data.transforms import get_image_files
from fastai.losses import BCEWithLogitsLossFlat
from fastai.vision.augment import Resize
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock, PointBlock
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.models import ResNet, resnet18

from dlcourse.core import CourseError, notice
from dlcourse.insight.cost import cost
from dlcourse.insight.embedding import layer_activations
from dlcourse.insight.evaluation import evaluate
from dlcourse.insight.explain import grad_cam, saliency
from dlcourse.insight.inference import fast, pixel_net
from dlcourse.insight.layers import evaluating, layer_table
from dlcourse.insight.resolution import at_sizes
from dlcourse.models.folding import FastNet
from dlcourse.models.own import check_training
from dlcourse.report.pages import report
from dlcourse.training.learner import learner_for
from dlcourse.training.losses import CrossEntropy, SquaredError

grey_images, two_classes = np.arange(24*64, dtype=np.uint8).reshape(24, 8, 8), np.arange(24) % 2

def own_net(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def on_arrays(arch, bs=8, n=24, **kwargs): return learner_for(arch, data=(grey_images[:n], two_classes[:n]), bs=bs, **kwargs)


def fitted(learn):
    with learn.quiet(): learn.fit(1)
    return learn


@pytest.fixture(scope='module')
def image_folder(tmp_path_factory):
    "A folder with four images of each of two classes"
    root = tmp_path_factory.mktemp('folder')
    for i,name in enumerate(['a', 'b']):
        (root/name).mkdir()
        for k in range(4): Image.fromarray(np.full((8, 8), 100*i + k, 'uint8')).save(root/name/f'{k}.png')
    return root


copies = dict(deepcopy=deepcopy, pickle=lambda o: pickle.loads(pickle.dumps(o)))

@pytest.mark.parametrize('how', copies)
@pytest.mark.parametrize('kind', ['memory', 'files', 'items', 'cached', 'compiled'])
def test_a_copy_has_its_data_and_trains(kind, how, image_folder):
    make = dict(memory=lambda: on_arrays('mlp', seed=1), files=lambda: learner_for('mlp', data=image_folder, bs=2, in_memory=False, seed=1),
                items=lambda: on_arrays('mlp', item_tfms=Resize(8), seed=1),
                compiled=lambda: on_arrays(torch.compile(own_net(), backend='eager')),
                cached=lambda: on_arrays('squeezenet1_1', pretrained=False, size=32, cache=True, seed=1))
    learn = fitted(make[kind]())
    learn.dls.train.rng = random.Random(3)
    copy = copies[how](learn)
    assert copy.model is not learn.model and copy.recorder.learn is copy and len(copy.dls.valid_ds) == len(learn.dls.valid_ds)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        fitted(copy)
    torch.manual_seed(1)
    fitted(learn)
    assert all(torch.equal(*o) for o in zip(copy.model.parameters(), learn.model.parameters()))
    assert copy.history.valid_loss.tolist() == learn.history.valid_loss.tolist()


@pytest.mark.parametrize('in_memory', [True, False])
def test_an_export_leaves_the_data_out(in_memory, image_folder, tmp_path):
    learn = learner_for('mlp', data=image_folder, bs=2, in_memory=in_memory)
    n = len(learn.dls.train_ds)
    learn.export(tmp_path/'e.pkl')
    store = load_learner(tmp_path/'e.pkl').dls.valid_ds.tls[0].tfms.fs[0].store
    assert len(store) == 0 and store.shape == (1, 8, 8) and b'3.png' not in (tmp_path/'e.pkl').read_bytes()
    assert len(learn.dls.train_ds) == n and learn.dls.train.one_batch()[0].shape == (2, 1, 8, 8)


def test_a_loader_of_files_is_whole_in_another_process(image_folder):
    dl = learner_for('mlp', data=image_folder, bs=2, in_memory=False).dls.valid
    copy = pickle.loads(pickle.dumps(dl)) # What spawn and forkserver send to a worker
    assert torch.equal(next(iter(copy))[0], next(iter(dl))[0])


@pytest.mark.parametrize('arch, said', [
    (resnet18, "'resnet18'"), (partial(resnet18, weights=None), "'resnet18'"), (ResNet, "'ResNet'"), (timm.create_model, "'create_model'"),
    (own_net, r'must take \(n_in, n_out\), but own_net takes \(\)'), (nn.Conv2d, 'must take'),
    (nn.Linear, 'Linear made no network from n_in='),
    (lambda n_in, n_out: 'net', 'must be (a network|an nn.Module)'),
    (lambda n_in, n_out: nn.Linear(n_in, n_out, bad=1), 'made no network')])
def test_functions_that_make_no_network(arch, said, monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError('a download')
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', refuse)
    with pytest.raises(CourseError, match=said): on_arrays(arch)


class Outputs(nn.Module):
    "A network that gives more than its scores, `always` or in training only"
    def __init__(self, always, kind=tuple):
        super().__init__()
        self.net, self.always, self.kind = own_net(), always, kind
    def forward(self, x):
        out = self.net(x)
        if not (self.training or self.always): return out
        return dict(out=out) if self.kind is dict else self.kind([out, out])


@pytest.mark.parametrize('always', [True, False])
@pytest.mark.parametrize('kind', [tuple, list, dict])
def test_auxiliary_outputs(always, kind):
    with pytest.raises(CourseError, match=f'a {kind.__name__}'): on_arrays(Outputs(always, kind))
    with pytest.raises(CourseError, match=f'a {kind.__name__}'): on_arrays(Outputs(always, kind), loss_func=nn.CrossEntropyLoss())


def test_a_loss_may_take_auxiliary_outputs():
    def loss(out, y): return sum(F.cross_entropy(o, y) for o in out) if isinstance(out, tuple) else F.cross_entropy(out, y)
    assert fitted(on_arrays(Outputs(False), loss_func=loss)).n_done == 1


@pytest.mark.parametrize('arch, kwargs', [('mlp', dict(norm='batch')), ('squeezenet1_1', dict(pretrained=False, size=32, head='fastai')),
                                          (lambda n_in, n_out: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, n_out)), {})])
def test_batches_of_one(arch, kwargs):
    with pytest.raises(CourseError, match='single example'): on_arrays(arch, bs=1, **kwargs)
    assert on_arrays(arch, bs=2, **kwargs).dls.train.bs == 2
    dls = on_arrays('mlp').dls
    dls.train = dls.train.new(bs=len(dls.train_ds) - 1, drop_last=False)
    if not kwargs.get('size'):
        with pytest.raises(CourseError, match='single example'): learner_for(arch, dls, **kwargs)


@pytest.mark.parametrize('arch', ['mlp', 'cnn', own_net()], ids=str)
def test_batches_of_one_that_can_be_trained(arch):
    learn = fitted(on_arrays(arch, bs=1, n=6, valid=[5]))
    assert len(learn.dls.valid_ds) == 1 and len(evaluate(learn)) == 1 and learn.n_done == 1


def test_a_dry_run_leaves_no_trace():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, 2))
    net[1].eval()
    before, state = deepcopy(net.state_dict()), torch.get_rng_state()
    check_training(net, (1, 8, 8))
    assert all(torch.equal(before[k], v) for k,v in net.state_dict().items()) and torch.equal(state, torch.get_rng_state())
    assert net.training and not net[1].training and net[2].training


@pytest.mark.parametrize('wrap', [lambda o: torch.compile(o, backend='eager'), lambda o: o.compile(backend='eager') or o, nn.DataParallel])
def test_wrapped_networks_are_looked_into(wrap, tmp_path):
    learn, net = fitted(on_arrays(own_net(), path=tmp_path)), None
    plain = layer_table(learn)
    cam, rows = grad_cam(learn, 2), layer_activations(learn).features
    learn.model = wrap(learn.model)
    assert layer_table(learn).equals(plain) and torch.equal(grad_cam(learn, 2).maps, cam.maps) and len(cost(learn))
    for k,v in layer_activations(learn).features.items(): assert np.array_equal(v, rows[k])
    assert isinstance(fast(learn), FastNet)
    learn.save('wrapped')
    other = on_arrays(own_net(), path=tmp_path).load('wrapped')
    assert all(torch.equal(*o) for o in zip(other.model.parameters(), learn.model.parameters()))
    other.save('plain')
    learn.load('plain')
    evaluate(fitted(learn))


@pytest.fixture(scope='module')
def scripted():
    "A fitted learner of a scripted network"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return fitted(on_arrays(torch.jit.script(own_net())))


@pytest.mark.parametrize('look', [grad_cam, layer_table, layer_activations, fast, cost, lambda o: at_sizes(o, [8, 16]), pixel_net])
def test_a_scripted_network_does_not_show_its_layers(scripted, look):
    with pytest.raises(CourseError, match='does not show its layers'): look(scripted)


@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), nn.functional.cross_entropy], ids=range(2))
def test_a_loss_without_answers_is_named(loss):
    learn = on_arrays(own_net(), loss_func=loss)
    for ask in (lambda: learn.predict(0), learn.show_results):
        with pytest.raises(CourseError, match='turns scores into answers'): ask()


def test_what_a_scripted_network_can(scripted, tmp_path):
    scripted.path = tmp_path
    scripted.save('weights', with_opt=True)
    scripted.load('weights', with_opt=True)
    assert evaluate(scripted).losses.isfinite().all() and saliency(scripted, 2).maps.shape == (2, 2, 8, 8)
    n = len(scripted.dls.train_ds)
    with pytest.raises(CourseError, match="can't be exported"): scripted.export(tmp_path/'s.pkl')
    assert len(scripted.dls.train_ds) == n and scripted.opt is not None


def test_a_softmax_too_many_is_noticed(capsys):
    notice.cache_clear()
    on_arrays(nn.Sequential(own_net(), nn.Softmax(1)))
    assert 'ends in a softmax' in capsys.readouterr().out


def multi_label_dls(vocab=None):
    x = torch.rand(24, 1, 8, 8)
    block = DataBlock((TransformBlock, MultiCategoryBlock(vocab=vocab)), get_x=lambda i: x[i], get_y=lambda i: ['all'] + ['odd']*(i % 2))
    return block.dataloaders(range(24), bs=8, num_workers=0)


def test_several_labels_are_trained_one_by_one():
    learn = fitted(learner_for('cnn', multi_label_dls(), seed=1))
    assert type(learn.loss_func) is BCEWithLogitsLossFlat and 'accuracy_multi' in learn.history
    out, y = learn.get_preds(act=noop)
    assert learn.validate()[0] == pytest.approx(F.binary_cross_entropy_with_logits(out, y).item(), rel=1e-5)
    with pytest.raises(CourseError, match='label_smoothing must be 0'): learner_for('cnn', multi_label_dls(), label_smoothing=.1)
    with pytest.raises(CourseError, match='several labels'): evaluate(learn)
    with pytest.raises(CourseError, match='without one class each'): grad_cam(learn, 2, of='actual')
    cam = grad_cam(learn, 2, of='odd')
    with evaluating(learn.model): want = learn.model(learn.dls.valid.one_batch()[0][:2]).sigmoid()
    assert torch.allclose(cam.preds, want.detach().as_subclass(torch.Tensor), atol=1e-6)


targets = [(torch.arange(24) % 3, CrossEntropy), (torch.rand(24, 3), SquaredError), (torch.rand(24), SquaredError)]

@pytest.mark.parametrize('y, loss', targets, ids=['classes', 'columns', 'numbers'])
def test_data_without_names_are_understood_by_their_targets(y, loss):
    x = torch.rand(24, 5)
    dls = DataLoaders.from_dsets(TensorDataset(x[:16], y[:16]), TensorDataset(x[16:], y[16:]), bs=8, num_workers=0)
    learn = fitted(learner_for(nn.Linear(5, 3 if y.ndim == 2 or not y.is_floating_point() else 1), dls))
    assert type(learn.loss_func) is loss
    if y.is_floating_point(): assert fitted(learner_for('mlp', dls)).n_done == 1
    else:
        with pytest.raises(CourseError, match='how many classes'): learner_for('mlp', dls)


@pytest.mark.parametrize('target', [RegressionBlock(n_out=2), PointBlock], ids=['numbers', 'points'])
def test_pictures_with_numbers(target, image_folder, tmp_path):
    block = DataBlock((ImageBlock(PILImageBW), target), get_items=get_image_files, splitter=RandomSplitter(0.5, seed=1),
                      get_y=lambda o: [[3., 4.]] if target is PointBlock else [1., float(o.stem)])
    learn = fitted(learner_for('cnn', block.dataloaders(image_folder, bs=2, num_workers=0)))
    assert type(learn.loss_func) is SquaredError and learn.history.mse.item() == pytest.approx(evaluate(learn).loss, rel=1e-4)
    assert report(learn, tmp_path/'r.pdf').path.stat().st_size > 1000


def test_results_are_shown(capsys):
    learn = fitted(on_arrays('mlp'))
    with learn.quiet(): learn.show_results(max_n=2)
    with learn.quiet(), pytest.raises(CourseError, match='dl must be a loader'): learn.get_preds(dl=[5])


class Twice(nn.Module):
    "Computes in float64"
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10).double()
    def forward(self, x): return self.layer(x.flatten(1).double())


def flat(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize('kw, says', [
    (dict(arch=flat().requires_grad_(False)), 'nothing to train'), (dict(splitter=lambda m: None), 'got None'),
    (dict(splitter=lambda m: [list(m.parameters())]*2), 'got one twice'), (dict(opt_func=torch.optim.LBFGS), 'LBFGS computes each batch'),
    (dict(opt_func=lambda p,lr: torch.optim.SGD(p[0] if isinstance(p[0], list) else p, lr)), 'got SGD: wrap it'),
    (dict(arch='mlp', loss_func=nn.CrossEntropyLoss(reduction='none')), 'must give one number'),
    (dict(arch=Twice()), 'outputs of type float64'), (dict(arch=flat().half()), 'in training mode'),
    (dict(arch=nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device='meta'))), "device 'meta'")])
def test_what_cannot_be_trained_is_said(kw, says):
    with pytest.raises(CourseError, match=says): learner_for(**dict(arch=flat(), data='digits', n_per_class=10, bs=32) | kw).create_opt()


def test_a_class_of_torch_is_an_optimiser():
    learn = learner_for(flat(), data='digits', n_per_class=10, bs=32, opt_func=torch.optim.SGD)
    with learn.quiet(): learn.fit(1, 0.1)
    assert type(learn.opt.opt) is torch.optim.SGD


def test_files_that_are_no_weights(tmp_path):
    learn = learner_for('mlp', data='digits', n_per_class=10, bs=32, path=tmp_path)
    learner_for(flat(), data='digits', n_per_class=10, bs=32, path=tmp_path).save('other', with_opt=False)
    (tmp_path/'models/text.pth').write_bytes(b'text')
    with pytest.raises(CourseError, match='other has the weights of another network'): learn.load('other')
    with pytest.raises(CourseError, match='text cannot be read as weights'): learn.load('text')
