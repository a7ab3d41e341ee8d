"""Every path that moves tensors, on a second device: a tensor that was forgotten on the CPU fails here, on a machine without a GPU.

The device is made in Python (`second_device.py`): it has numbers, so that data-dependent paths run too, and it refuses what torch's fake
tensors refuse. It can't show what belongs to a real GPU's kernels and drivers: bfloat16 and fp16 under autocast, `torch.compile`, pinned
memory, measured times (`torch.cuda.synchronize`), names and number of GPUs, files that are read straight to a device, and last digits.
Exported programs are made on the CPU by contract."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.basics import Adam, Callback, F1Score, accuracy
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.vision.augment import Resize
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from dlcourse.data.arrays import Examples
from dlcourse.data.blocks import dls_for
from dlcourse.data.check import check
from dlcourse.data.explore import channel_stats, class_distribution, show_classes
from dlcourse.data.sampling import class_weights
from dlcourse.data.transforms import BatchAffine, CropFlip, RandomPosition, RandomScale, SaltAndPepper
from dlcourse.insight.calibration import calibration
from dlcourse.insight.cost import cost
from dlcourse.insight.curves import plot_curves
from dlcourse.insight.embedding import layer_activations
from dlcourse.insight.evaluation import evaluate
from dlcourse.insight.explain import grad_cam, saliency
from dlcourse.insight.inference import compare_speed, export_folder, fast, pixel_net
from dlcourse.insight.landscape import loss_line, loss_surface, trajectory
from dlcourse.insight.layers import layer_table
from dlcourse.insight.lesions import lesions
from dlcourse.insight.probes import union_probe
from dlcourse.insight.resolution import RandomPart, RandomSize, at_sizes, thumbnails
from dlcourse.insight.robustness import gradient_norms, layer_robustness
from dlcourse.insight.similarity import similarity
from dlcourse.models.folding import fold_batchnorm
from dlcourse.models.fusion import Rescale
from dlcourse.models.views import OverViews, as_is, half_turned, mirrored, shifted
from dlcourse.models.zoo import model_for
from dlcourse.training.callbacks import BestWeights, EarlyStopping, LookaheadCallback, StopOnNaN
from dlcourse.training.ensembles import ensemble, snapshot_ensemble
from dlcourse.training.kept import KeepWeights
from dlcourse.training.lean import adam, sgd
from dlcourse.training.learner import learner_for
from dlcourse.training.losses import Brier, CrossEntropy, EvenLoss, MultiHinge, RivalLoss
from dlcourse.training.runs import Run, start
from dlcourse.training.settings import Settings
from dlcourse.training.transfer import feature_table
from dlcourse.training.windows import During, train_only
from second_device import is_there, second_device, there

rng = np.random.default_rng(0)
PICTURES = Examples(rng.integers(0, 256, (36, 3, 16, 16), dtype=np.uint8), np.arange(36) % 3,
                    x_test=rng.integers(0, 256, (9, 3, 16, 16), dtype=np.uint8), y_test=np.arange(9) % 3)
NET = dict(filters=(4, 8), depth=2)
TRANSFORMS = dict(
    salt=lambda **k: SaltAndPepper(0.1, **k), place=lambda **k: RandomPosition(2, **k), scale=lambda **k: RandomScale(**k),
    canvas=lambda **k: RandomPosition(canvas=24, **k), affine=lambda **k: BatchAffine(**k), black=lambda **k: CropFlip(2, **k),
    mirror=lambda **k: CropFlip(2, mode='reflect', **k), part=lambda **k: RandomPart(**k), size=lambda **k: RandomSize([8, 16], **k))


def pictures(device, data=PICTURES, bs=12, **kwargs): return dls_for(data, bs=bs, seed=0, device=device, **kwargs)


def weights_of(learn): return torch.cat([o.detach().cpu().flatten().float() for o in learn.model.state_dict().values()])


def fitted(device, arch='residual', epochs=1, dls=None, fit_cbs=None, **kwargs):
    "A small network that was trained on `device`, where all of its weights are"
    learn = learner_for(arch, dls or pictures(device), seed=0, **kwargs)
    with learn.quiet(): learn.fit(epochs, 1e-3, cbs=fit_cbs)
    assert all(is_there(o) == (torch.device(device) == there) for o in learn.model.state_dict().values())
    return learn


@pytest.fixture(scope='module')
def kept(): return KeepWeights()


@pytest.fixture(scope='module')
def learn(kept):
    "A residual network that was trained on the second device with weights of classes, and whose weights of each epoch were kept"
    weighted = CrossEntropy(weight=torch.tensor([1., 2., 1.]))
    with second_device() as d: return fitted(d, epochs=2, filters=(4, 4), norm='batch', fit_cbs=kept, loss_func=weighted)


# The second device is as strict as torch's own imitation of a GPU

def both(f, *args):
    "Whether `f` is refused on the second device, and whether it is with torch's fake tensors"
    def refused(d):
        try: f(d, *args)
        except (RuntimeError, TypeError): return True
        return False
    with second_device() as d: ours = refused(d)
    with FakeTensorMode(): theirs = refused('cuda')
    return ours, theirs


def one(d, *shape): return torch.ones(*shape or (3,), device=d)
def rows(d): return torch.zeros(2, dtype=torch.long, device=d)


@pytest.mark.parametrize('f, refused', [
    (lambda d: one(d) + torch.ones(3), True), (lambda d: one(d) + torch.tensor(1.), False), (lambda d: torch.tensor(1.) + one(d), False),
    (lambda d: torch.cat([one(d), torch.ones(3)]), True), (lambda d: torch.stack([one(d), torch.ones(3)]), True),
    (lambda d: one(d)[rows('cpu')], False), (lambda d: one(d, 3, 3) @ torch.ones(3, 3), True),
    (lambda d: torch.where(one(d) > 0, one(d), torch.ones(3)), True), (lambda d: one(d).copy_(torch.ones(3)), False),
    (lambda d: one(d, 4, 3).index_select(0, rows('cpu')), True), (lambda d: one(d).add_(torch.ones(3)), True),
    (lambda d: nn.functional.cross_entropy(one(d, 2, 3), rows(d), torch.ones(3)), True), (lambda d: one(d) + torch.ones(3).to(d), False),
    (lambda d: nn.Linear(3, 3)(one(d)), True), (lambda d: nn.Linear(3, 3, device=d)(one(d)), False),
    (lambda d: one(d) + one(d).new_zeros(3), False), (lambda d: torch.zeros_like(one(d), device='cpu') + one(d), True),
    (lambda d: one(d).cpu() + torch.ones(3), False), (lambda d: one(d).cpu() + one(d), True)])
def test_the_second_device_refuses_what_a_gpu_refuses(f, refused): assert both(f) == (refused, refused)


def test_the_second_device_refuses_numpy_and_generators_of_the_cpu():
    with second_device() as d:
        for f in (lambda: one(d).numpy(), lambda: np.asarray(one(d)), lambda: torch.rand(3, device=d, generator=torch.Generator()),
                  lambda: torch.rand(3, generator=torch.Generator(d)), lambda: torch.ones(3)[rows(d)],
                  lambda: torch.randperm(3, generator=torch.Generator(d))):
            with pytest.raises((RuntimeError, TypeError)): f()
        assert is_there(torch.rand(3, device=d, generator=torch.Generator(d))) and not is_there(one(d).cpu()) and one(d).cpu().numpy().any()
        x = one(d).requires_grad_()
        x.square().sum().backward()
        assert is_there(x.grad) and x.grad.device == there and not is_there(torch.ones(3)) and float(x.detach()[0]) == 1
    assert torch.ones(3).device.type == 'cpu' and type(torch.Generator()) is torch.Generator


class Forgetful(nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x) + torch.zeros(3)


def test_a_forgotten_device_fails():
    fitted('cpu', Forgetful(nn.Sequential(nn.Flatten(), nn.Linear(768, 3))))
    with second_device() as d, pytest.raises(RuntimeError, match='all tensors to be on the same device'):
        fitted(d, Forgetful(nn.Sequential(nn.Flatten(), nn.Linear(768, 3))))


# Data

@pytest.mark.parametrize('seed', [None, 3])
@pytest.mark.parametrize('name', TRANSFORMS)
def test_transforms(name, seed):
    with second_device() as d: assert all(map(is_there, pictures(d, batch_tfms=TRANSFORMS[name](seed=seed)).one_batch()))


@pytest.fixture
def photos(tmp_path):
    "A folder of 24 pictures of three classes, and one of the same pictures as a memory-mapped array"
    for i,x in enumerate(PICTURES.x[:24]):
        (tmp_path/f'class {i % 3}').mkdir(exist_ok=True)
        Image.fromarray(x.transpose(1, 2, 0)).save(tmp_path/f'class {i % 3}'/f'{i}.png')
    return tmp_path


@pytest.mark.parametrize('how', [dict(), dict(mapped=True), dict(in_memory=False, mapped=False), dict(in_memory=False, mapped=False,
                                 item_tfms=Resize(8)), dict(augment=True), dict(size=8), dict(imbalance=0.5), dict(normalize=False)])
def test_folders(photos, how, monkeypatch):
    monkeypatch.setenv('DLCOURSE_CACHE', str(photos.parent/'cache'))
    with second_device() as d:
        dls = dls_for(photos, bs=4, device=d, **how)
        for dl in dls.loaders: assert all(is_there(o) for b in dl for o in b)
        assert is_there(dls.test_dl([sorted(photos.rglob('*.png'))[0]]).one_batch()[0])


def test_tables_and_numbers():
    x, y = rng.random((30, 5), dtype=np.float32), rng.random(30, dtype=np.float32)
    with second_device() as d: assert np.isfinite(fitted(d, 'mlp', dls=pictures(d, (x, y), 8), widths=(8,)).history.valid_loss).all()
    with second_device() as d: fitted(d, 'mlp', dls=pictures(d, (x, (np.arange(30) % 2)), 8), widths=(8,)).predict(x[0])


def test_arrays_that_lie_there():
    "Tensors of your own may be on the device already: they are read, looked at, and made grey"
    with second_device() as d:
        x, y = (torch.as_tensor(o).to(d) for o in (PICTURES.x, PICTURES.y))
        for how in (dict(), dict(channels=1), dict(size=8), dict(n_per_class=4)):
            assert all(map(is_there, pictures(d, (x, y), 4, **how).one_batch()))
        assert len(channel_stats(x)) == 2 and class_distribution((x, y)).sum().sum() and show_classes((x, y), 2)
        fitted(d, dls=pictures(d, (x, y)), filters=(4,)).predict(x[0])
        check(pictures(d), model_for('mlp', (3, 16, 16), 3))


# Networks and training

ARCHS = dict(mlp=dict(widths=(8,)), cnn=dict(filters=4, depth=2), cnn_base={}, cnn_v2=dict(filters=(4, 4)),
             cnn_v3=dict(filters=(4, 4), dropout=0.), residual=dict(filters=(4, 8)), inception={}, all_conv={},
             whitened=dict(filters=(8, 8, 8)), last=dict(arch='cnn', filters=4, depth=2, channels_last=True))


@pytest.mark.parametrize('arch', ARCHS)
def test_networks_learn_the_same_there(arch, monkeypatch):
    how = dict(arch=arch, channels_last=False) | ARCHS[arch]
    with monkeypatch.context() as m:
        m.setattr('dlcourse.models.blocks._dropped', F.dropout) # torch's own, as on every device but a processor
        here = weights_of(fitted('cpu', **how))
    with second_device() as d: assert torch.equal(weights_of(fitted(d, **how)), here)


LEARNERS = dict(
    early=dict(early_stopping=1), smooth=dict(label_smoothing=0.1), adam=dict(opt_func=adam),
    sgd=dict(opt_func=sgd), fastai=dict(opt_func=Adam), brier=dict(loss_func=Brier()), hinge=dict(loss_func=MultiHinge()),
    rival=dict(loss_func=RivalLoss()), even=dict(loss_func=EvenLoss()),
    metrics=dict(metrics=[accuracy, F1Score(average='macro')]),
    **{type(o).__name__: dict(cbs=[o]) for o in (BestWeights(), EarlyStopping('accuracy'), LookaheadCallback(2), StopOnNaN(), MixUp(),
       CutMix(), GradientClip(0.1), GradientAccumulation(20), KeepWeights())},
    during=dict(cbs=[During(MixUp(), 0, 1), During(dict(wd=0.1), 1), During(CropFlip(2), 1)]))


@pytest.mark.parametrize('name', LEARNERS)
def test_learners(name):
    with second_device() as d: fitted(d, **dict(arch='mlp', widths=(8,), epochs=2) | LEARNERS[name])


def test_loss_with_class_weights():
    with second_device() as d:
        dls = pictures(d, imbalance=0.5)
        w = class_weights(dls.labels(), dls.c)
        for o in (w, w.to(d)): fitted(d, 'mlp', dls=dls, widths=(8,), loss_func=CrossEntropy(weight=o))


def test_parts_that_learn_and_ensembles():
    with second_device() as d:
        learn = learner_for('residual', pictures(d), filters=(4, 8), norm='batch', seed=0)
        train_only(learn, 'norm')
        with learn.quiet(): found = snapshot_ensemble(learn, cycles=2, epochs=1)
        for o in (found, ensemble([learn, learn], 'vote')):
            with o.no_bar(): assert torch.isfinite(o.get_preds()[0]).all()


PAIR = 'squeezenet1_1+shufflenet_v2_x0_5'
TRANSFER = dict(plain={}, cached=dict(cache=True), copies=dict(cache=True, copies=2, dls=dict(augment=True)),
                pair=dict(arch=PAIR, train_bn=True))


@pytest.mark.parametrize('name', TRANSFER)
def test_transfer(name):
    how = dict(arch='squeezenet1_1') | TRANSFER[name]
    with second_device() as d:
        learn = learner_for(dls=pictures(d, size=32, **how.pop('dls', {})), pretrained=False, seed=0, **how)
        learn.freeze()
        with learn.quiet(): learn.fit(1)
        assert is_there(next(learn.model.parameters())) and torch.isfinite(learn.get_preds()[0]).all()


def test_tables_of_features(tmp_path):
    with second_device() as d:
        learn = learner_for('squeezenet1_1', pictures(d, size=32), pretrained=False, seed=0)
        for file in (None, tmp_path/'f.safetensors', tmp_path/'f.safetensors'):
            table = feature_table(learn.model, learn.dls, file, views=(as_is, mirrored))
            with learn.on_table(table), learn.quiet(): learn.fit(1)
        with learn.on_table(table, average=True), learn.quiet(): assert np.isfinite(learn.validate()).all()
        rescaled = Rescale(*[replace(learn.model.backbone, mean=[o]*3) for o in (0.1, 0.2)]).to(d)
        assert is_there(rescaled(one(d, 2, 3, 4, 4)))


class Stop(Callback):
    "Ctrl-C in the second epoch"
    def after_batch(self):
        if self.learn.training and len(self.learn.rows) == 1: raise KeyboardInterrupt


def test_a_run_carries_on_there(tmp_path, monkeypatch):
    monkeypatch.setattr('dlcourse.training.settings.find_device', lambda name: name and torch.device(name))
    how = dict(epochs=2, lr=0.01, data_args=dict(n_per_class=10, augment=True), model_args=dict(filters=[4], depth=1),
               learner_args=dict(early_stopping=2, channels_last=False))
    def settings(device, folder): return start(Settings('cnn', 'digits', device=device, **how), tmp_path/folder)
    settings('cpu', 'here').train()
    with second_device():
        run = settings('xpu', 'there')
        with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop()])
        again = Run(tmp_path/'there')
        again.train()
        assert is_there(next(again.learner().model.parameters())) and evaluate(Run(tmp_path/'there').learner()).accuracy >= 0
    assert weights_of(again.learner()).equal(weights_of(Run(tmp_path/'here').learner()))


def test_saved_weights_and_whole_learners(learn, tmp_path):
    before = weights_of(learn)
    learn.path = tmp_path
    with second_device() as d:
        for device in (None, d, 'cpu'): learn.save('weights'), learn.load('weights', device=device)
        assert weights_of(learn).equal(before) and is_there(next(learn.model.parameters()))


# Insight

def rows_of(learn): return layer_activations(learn, n=9)


INSIGHT = dict(
    evaluate=lambda l, k: evaluate(l, 'test').plot_top_losses(2),
    report=lambda l, k: (evaluate(l).report(), evaluate(l).interpretation().confusion_matrix()), layers=lambda l, k: layer_table(l),
    cost=lambda l, k: cost(l, runs=1), lesions=lambda l, k: lesions(l, blocks=['body.block2'], n=9),
    grad_cam=lambda l, k: (grad_cam(l).plot(), grad_cam(l, of=['predicted', 'actual'])), saliency=lambda l, k: saliency(l),
    activations=lambda l, k: rows_of(l).embed('pca'), probes=lambda l, k: union_probe(rows_of(l), folds=2),
    cka=lambda l, k: similarity(l), two=lambda l, k: similarity(l, l),
    robustness=lambda l, k: [layer_robustness(l, k, o, n=9) for o in (('random', 0), 0)], gradients=lambda l, k: gradient_norms(l),
    line=lambda l, k: loss_line(l, points=3, n=9, progress=False),
    between=lambda l, k: loss_line(l, k.state(0), points=3, n=9, batchnorm='batch', progress=False),
    surface=lambda l, k: loss_surface(l, points=3, n=9, progress=False),
    trajectory=lambda l, k: trajectory(l, k, points=3, n=9, progress=False),
    calibration=lambda l, k: (calibration(l).plot(), calibration(*l.get_preds())), curves=lambda l, k: plot_curves(l),
    sizes=lambda l, k: at_sizes(l, [8, 16]), thumbnails=lambda l, k: thumbnails(l), predict=lambda l, k: l.predict(PICTURES.x[0]),
    results=lambda l, k: l.show_results(max_n=2), lr_find=lambda l, k: l.lr_find(num_it=25, show_plot=False),
    tta=lambda l, k: l.tta(n=1), summary=lambda l, k: l.summary(), check=lambda l, k: check(l.dls))
FASTAI = ('predict', 'results', 'lr_find', 'tta', 'summary') # leave the network as their last pass needed it


@pytest.mark.parametrize('name', INSIGHT)
def test_insight(name, learn, kept):
    modes = [o.training for o in learn.model.modules()]
    with second_device(), learn.quiet(): INSIGHT[name](learn, kept)
    assert torch.is_grad_enabled() and (name in FASTAI or [o.training for o in learn.model.modules()] == modes)


def test_temper(learn):
    with second_device() as d:
        other = ensemble([learn, learn])
        with other.no_bar(): assert other.temper() > 0 and is_there(other.model(learn.dls.one_batch()[0]))


def test_inference(learn):
    x = torch.rand(2, 3, 16, 16)
    with second_device() as d:
        for net in (fast(learn), fast(learn.model, (3, 16, 16)), fold_batchnorm(learn.model)): assert is_there(net(x.to(d)))
        views = OverViews(learn.model, (as_is, mirrored, half_turned, shifted(1, -1)))
        assert is_there(views.eval()(x.to(d))) and len(compare_speed({'one': learn.model}, x.to(d), 1))
        assert not is_there(pixel_net(learn).expected)
