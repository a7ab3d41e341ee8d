"""What pretrained networks reach on EuroSAT and CIFAR-10, and what resting bodies and cached features save.

    python -m benchmarks.transfer [--rows GROUP ...] [--seeds N] [--features FOLDER] [-o FILE]

Sizes, heads, budgets and rates were fixed before any test image was looked at; those were judged once for each seed.
Only the rows measured are replaced in FILE. The accuracies need $DLCOURSE_DATA with EuroSAT, CIFAR-10 and the weights."""
import argparse, json, os, statistics, sys, time
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

from .__main__ import provenance, write
from .measure import ROOT, Row, compare, interleaved, keep_memory, rounded

GROUPS = dict(frozen='EuroSAT: frozen MobileNetV2, SqueezeNet 1.1 and their fusion, several seeds',
              cifar='CIFAR-10, 3,000 training images: frozen MobileNetV2 at 96 px, several seeds',
              scratch='EuroSAT: MobileNetV2 from scratch at 64 px, one seed',
              tuned='EuroSAT: MobileNetV2 fine-tuned end to end at 64 px, one seed',
              epoch='a frozen epoch on images against fastai',
              cached64='five epochs of MobileNetV2 at 64 px, features computed once, against fastai',
              cached224='the same at 224 px',
              alexnet224='the same with AlexNet at 224 px',
              same='predictions of cached and uncached runs',
              inference='MobileNetV2 answering at 64 px and 224 px, `fast` against the network as it is')
NETS = ('mobilenet_v2', 'squeezenet1_1')
FUSED = '+'.join(NETS)
VALID = 0.1 # Of the training part, for all accuracies on EuroSAT
SIZE, HEAD = 64, dict(epochs=6, lr=3e-3, bs=128, head='fastai', dropout=0.5)
CIFAR = dict(epochs=8, lr=3e-3, bs=64, head='fastai', dropout=0.5)
SCRATCH = dict(epochs=5, lr=4e-3)
TUNED = dict(head_epochs=3, epochs=5, lr=(4e-4, 2e-3))


# Features, once for all seeds

def folded(body):
    "A copy of `body` with batch normalisation folded into the convolutions in front of it, channels last"
    import copy
    from torch import channels_last, nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval
    body = copy.deepcopy(body).eval()
    for m in list(body.modules()):
        kids = list(m.named_children())
        for (a, conv), (b, norm) in zip(kids, kids[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(m, a, fuse_conv_bn_eval(conv, norm))
                setattr(m, b, nn.Identity())
    return body.to(memory_format=channels_last)


@lru_cache
def examples(data, per_class=None):
    "The data set `data`, or its first `per_class` training images of each class"
    from dataclasses import replace
    import torch
    from dlcourse.data.sources import load
    ex = load(data)
    if per_class is None: return ex
    rows = torch.cat([torch.nonzero(ex.y == c)[:per_class, 0] for c in range(len(ex.vocab))])
    return replace(ex, x=ex.x[rows], y=ex.y[rows])


def images(ex, size, backbone):
    "Loaders of `ex` at `size`, the test part for validation, normalised for `backbone`"
    from dlcourse.data.blocks import dls_for, renormalized
    return renormalized(dls_for(ex, size=size, valid='test', bs=8, val_bs=8), backbone.mean, backbone.std)


def one_batch(net, bodies, x):
    "What the fixed layers make of the maps of each network and of the fusion `net`"
    from torch import cat, channels_last
    fixed = net.fixed_layers()
    def pooled(f):
        for layer in fixed: f = layer(f)
        return f
    maps = {k: body(x.to(memory_format=channels_last)) for k,body in bodies.items()}
    res = {k: pooled(f) for k,f in maps.items()}
    if len(maps) > 1: res[FUSED] = pooled(cat([net.body.pool(f) for f in maps.values()], dim=1))
    return res


def table(ex, size, names):
    "Network -> features of all images of `ex`, training part first"
    import torch
    from dlcourse.models.zoo import model_for
    net = model_for('+'.join(names), (3, size, size), 10, head='fastai')
    bodies = {k: folded(o) for k,o in (net.body.bodies.items() if len(names) > 1 else [(names[0], net.body)])}
    dls, res = images(ex, size, net.backbone), {}
    for dl in dls.loaders:
        rows = torch.as_tensor(dl.dataset.items).long().split(dl.bs)
        for i,(x,_) in zip(rows, dl.new(shuffle=False, drop_last=False)):
            with torch.inference_mode(): found = one_batch(net, bodies, x.as_subclass(torch.Tensor))
            for k,f in found.items():
                if k not in res: res[k] = torch.zeros(len(ex.x) + len(ex.x_test), f.shape[1])
                res[k][i] = f
    return res


def features(data, size, names, folder=None, per_class=None):
    "As `table`, kept in `folder` if there is one"
    import torch
    file = Path(folder)/f'{data}-{size}-{"+".join(names)}.pt' if folder else None
    if file and file.exists(): return torch.load(file)
    start, load = time.time(), os.getloadavg()
    res = table(examples(data, per_class), size, names)
    print(f'{data}, {size} px: features in {time.time() - start:.0f} s, load {load[0]:.1f}', flush=True)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(res, file)
    return res


# Accuracy

def on_features(learn, found):
    "Put the rows of the features `found` in place of the images of `learn`, in all three parts"
    import torch
    from dlcourse.training.transfer import feature_dls
    def part(name, dl): return [found[torch.as_tensor(dl.dataset.items).long()]], torch.as_tensor(learn.dls.labels(name)).long()
    learn.dls = feature_dls(learn.dls, [part(o, dl) for o,dl in zip(('train', 'valid', 'test'), learn.dls.loaders)])


def head_run(arch, found, ex, seed, budget, test=True, **kwargs):
    "Accuracies of a new head on features `found`"
    from dlcourse.training.learner import learner_for
    start, budget = time.time(), dict(budget)
    epochs, lr = budget.pop('epochs'), budget.pop('lr')
    with quiet(): learn = learner_for(arch, data=ex, seed=seed, **budget, **kwargs)
    with learn.quiet(), learn.model.from_features():
        on_features(learn, found)
        learn.fit_one_cycle(epochs, lr)
        res = dict(valid=learn.history.accuracy.iloc[-1], seconds=time.time() - start)
        if test: res['test'] = learn.validate(ds_idx=2)[1]
    return res


def quiet():
    from .measure import silent
    return silent()


def row(name, group, claim, target, run, seeds, **more):
    "One line: every seed, mean and spread"
    runs = [dict(seed=s, **run(s)) for s in seeds]
    tests = [o['test'] for o in runs]
    mean, spread = statistics.mean(tests), statistics.stdev(tests) if len(tests) > 1 else None
    met = None if target is None else mean >= target
    print(f"{name}: {mean:.4f} (target {target}), seeds {' '.join(f'{o:.4f}' for o in tests)}", flush=True)
    return dict(name=name, group=group, kind='accuracy', claim=claim, target=target, mean=mean, spread=spread, met=met, runs=runs, **more)


def frozen_rows(options):
    found = features('eurosat', SIZE, NETS, options.features)
    targets = dict(zip((*NETS, FUSED), (0.955, None, 0.965)))
    return [row(f'EuroSAT, {k}, frozen', 'frozen', f'{SIZE} px, head on features computed once', t, lambda s: head_run(k, found[k], examples('eurosat'), s, HEAD, valid=VALID),
                options.seeds, budget=dict(HEAD, size=SIZE, valid=VALID)) for k,t in targets.items()]


def cifar_rows(options):
    found = features('cifar10', 96, NETS[:1], options.features, per_class=300)
    run = lambda s: head_run(NETS[0], found[NETS[0]], examples('cifar10', 300), s, CIFAR)
    return [row('CIFAR-10, 300 per class, mobilenet_v2, frozen', 'cifar', '96 px', 0.80, run, options.seeds, budget=dict(CIFAR, size=96))]


def flips(x):
    "Each image of the batch turned over at random, left to right and top to bottom"
    import torch
    for dim in (2, 3): x = torch.where((torch.rand(len(x), device=x.device) < 0.5)[:, None, None, None], x.flip(dim), x)
    return x


def image_run(seed, pretrained, epochs, lr, head_epochs=0, found=None):
    "Accuracies of MobileNetV2 at 64 px, all of it trained on flipped images, after `head_epochs` on the features `found`"
    from dlcourse.data.transforms import BatchTransform
    from dlcourse.training.learner import learner_for
    class Flips(BatchTransform): apply = staticmethod(flips)
    start, before = time.time(), None
    with quiet(): learn = learner_for(NETS[0], data=examples('eurosat'), valid=VALID, seed=seed, pretrained=pretrained, augment=[Flips()])
    with learn.no_bar():
        if head_epochs:
            on_images = learn.dls
            with learn.model.from_features():
                on_features(learn, found)
                learn.fit_one_cycle(head_epochs, 3e-3)
            before, learn.dls = learn.history.accuracy.iloc[-1], on_images
        learn.unfreeze()
        learn.fit_one_cycle(epochs, slice(*lr) if isinstance(lr, tuple) else lr)
        test = learn.validate(ds_idx=2)[1]
    return dict(test=test, valid=learn.history.accuracy.iloc[-1], valid_frozen=before, seconds=time.time() - start, history=learn.history.to_dict('list'))


def scratch_rows(options):
    return [row('EuroSAT, mobilenet_v2, from scratch', 'scratch', f"64 px, {SCRATCH['epochs']} epochs, flips, one seed", None,
                lambda s: image_run(s, False, **SCRATCH), options.seeds[:1], budget=dict(SCRATCH, size=64, valid=VALID))]


def tuned_rows(options):
    found = features('eurosat', 64, NETS, options.features)[NETS[0]]
    return [row('EuroSAT, mobilenet_v2, fine-tuned', 'tuned', f"64 px, head first, then {TUNED['epochs']} epochs end to end, flips, one seed", 0.975,
                lambda s: image_run(s, True, found=found, **TUNED), options.seeds[:1], budget=dict(TUNED, size=64, valid=VALID))]



# Speed

TIMED = {('mobilenet_v2', 64): (0.25, 1/12, 64), ('mobilenet_v2', 224): (None, 1/20, 16), ('alexnet', 224): (None, 1/4.5, 16)} # Targets of an epoch and of five cached ones, images per class

CACHED = dict(cached64=('mobilenet_v2', 64), cached224=('mobilenet_v2', 224), alexnet224=('alexnet', 224))


def few_images(size, per_class, backbone):
    "EuroSAT images in memory, the first of each class, a fifth of them for validation"
    from dlcourse.data.blocks import dls_for, renormalized
    ex = examples('eurosat', per_class)
    return renormalized(dls_for((ex.x, ex.y), size=size, seed=1), backbone.mean, backbone.std)


def contestants(arch, size, per_class):
    "Ours without and with cache, and fastai's `Learner` as `vision_learner` makes it, frozen, on the same loaders; the weights are random"
    import torchvision
    from fastai.metrics import accuracy
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.learner import create_vision_model, default_split
    from dlcourse.models.pretrained import backbone_of
    from dlcourse.training.learner import learner_for
    dls = few_images(size, per_class, backbone_of(arch))
    def ours(epochs, **kwargs):
        learn = learner_for(arch, dls, pretrained=False, head='fastai', **kwargs)
        learn.freeze()
        return lambda: learn.fit_one_cycle(epochs, 1e-3)
    def fresh(epochs): # Each round computes its features
        learn = learner_for(arch, dls, pretrained=False, head='fastai', cache=True)
        learn.freeze()
        def run(): learn._found = None; learn.fit_one_cycle(epochs, 1e-3)
        return run
    def peer(epochs):
        model = create_vision_model(getattr(torchvision.models, arch), 10, pretrained=False, cut=1) # `vision_learner` of 2.8.12 drops its `cut`
        learn = Learner(dls, model, CrossEntropyLossFlat(), splitter=default_split, metrics=accuracy)
        learn.freeze()
        return lambda: learn.fit_one_cycle(epochs, 1e-3)
    return len(dls.train_ds), len(dls.valid_ds), ours, fresh, peer


def once(options, rounds): return SimpleNamespace(device='cpu', warm_up=1 if rounds > 1 else 0, repeats=rounds)


def epoch_rows(options):
    n, m, ours, _, peer = contestants('mobilenet_v2', 64, TIMED['mobilenet_v2', 64][2])
    with quiet(): found = interleaved(dict(ours=ours(1), peer=peer(1)), once(options, options.rounds))
    return [speed_row(f'mobilenet_v2, 64 px: a frozen epoch on {n} images, {m} for validation / fastai', 'epoch', found, TIMED['mobilenet_v2', 64][0])]


def cached_rows(options, group, arch, size):
    _, target, per_class = TIMED[arch, size]
    n, m, _, fresh, peer = contestants(arch, size, per_class)
    with quiet(): found = interleaved(dict(ours=fresh(5), peer=peer(5)), once(options, options.rounds if size < 100 else 1))
    return [speed_row(f'{arch}, {size} px: 5 frozen epochs on {n} images, {m} for validation, features computed once / fastai', group, found, target)]


def speed_row(name, group, found, target, note=None):
    "A row of `measure`, as a dictionary"
    r = compare(name, group, found['ours'], found['peer'], target, note=note).judge().plain()
    print(f"{name}: {r['ours']:.3g} s against {r['peer']:.3g} s, ratio {r['ratio']:.4f}, {1/r['ratio']:.1f} times (target ratio {target})", flush=True)
    return dict(kind='speed', **r)


def same_rows(options):
    "The largest difference of probabilities after three epochs with and without cache, from the same weights in the same order"
    from dlcourse.models.pretrained import backbone_of
    from dlcourse.training.learner import learner_for
    preds, right = [], []
    for cache in (None, True):
        dls = few_images(64, TIMED['mobilenet_v2', 64][2], backbone_of('mobilenet_v2'))
        with quiet(): learn = learner_for('mobilenet_v2', dls, seed=1, cache=cache)
        with learn.quiet():
            learn.fit_one_cycle(3, 3e-3)
            preds.append(learn.get_preds()[0])
            right.append(learn.validate()[1])
    diff = float((preds[0] - preds[1]).abs().max())
    print(f'largest difference of probabilities {diff:.2g}, accuracies {right}', flush=True)
    r = Row('mobilenet_v2, 64 px: cached and uncached probabilities, largest difference', 'same', unit='1', clock=None, ours=diff, rounds=1, target=1e-5,
            note=f'accuracies {right[0]:.4f} and {right[1]:.4f}').judge()
    return [dict(kind='equality', **r.plain())]


INFERENCE = {64: (256, 0.45), 224: (32, 0.30)} # Images in a batch and target, by size


def answering(size, n):
    "MobileNetV2 as it is and made fast, `n` images for them, and where its weights come from"
    import torch
    from dlcourse.core import CourseError
    from dlcourse.insight.inference import fast
    from dlcourse.models.zoo import model_for
    torch.manual_seed(1)
    x = torch.randn(n, 3, size, size)
    try: model, weights = model_for('mobilenet_v2', (3, size, size), 10), 'ImageNet weights'
    except CourseError: model, weights = model_for('mobilenet_v2', (3, size, size), 10, pretrained=False), 'random weights'
    return model.eval(), fast(model, x[:4]), x, weights


def inference_rows(options):
    "Each batch by the one and the other in turns, and the largest difference of their outputs as a share of the largest output"
    import torch
    res = []
    for size,(n, target) in INFERENCE.items():
        model, quick, x, weights = answering(size, n)
        with torch.inference_mode():
            found = interleaved(dict(ours=lambda: quick(x), peer=lambda: model(x)), once(options, options.rounds), times=3)
            error = ((quick(x) - model(x)).abs().max()/model(x).abs().max()).item()
        note = f'{weights}; largest error {error:.1e} of the largest output'
        res.append(speed_row(f'mobilenet_v2, {size} px: answers for a batch of {n}, folded and channels last / as it is', 'inference', found, target, note))
    return res


def measured(options):
    "Group -> its rows, for the groups asked for"
    rows = dict(frozen=frozen_rows, cifar=cifar_rows, scratch=scratch_rows, tuned=tuned_rows, epoch=epoch_rows, same=same_rows, inference=inference_rows)
    for group,o in CACHED.items(): rows[group] = partial(cached_rows, group=group, arch=o[0], size=o[1])
    for o in options.rows: yield o, rows[o](options)


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.transfer', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                epilog='groups:\n' + '\n'.join(f'  {k:12} {v}' for k,v in GROUPS.items()))
    p.add_argument('--rows', nargs='+', metavar='GROUP', choices=GROUPS, default=list(GROUPS), help='measure only these groups')
    p.add_argument('--seeds', type=int, default=3, metavar='N', help='seeds 1 to N (3)')
    p.add_argument('--rounds', type=int, default=3, metavar='N', help='rounds of what is timed (3)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('--features', metavar='FOLDER', help='keep features of the accuracy rows here; remove it if weights or code change')
    p.add_argument('-o', '--output', default=ROOT/'results'/'transfer.json', metavar='FILE')
    options = p.parse_args(args)
    options.seeds = range(1, options.seeds + 1)
    return options


def merged(path, group, rows, about):
    "The results in `path` with those of `group` replaced"
    old = json.loads(Path(path).read_text(encoding='utf-8')) if Path(path).exists() else dict(rows=[], provenance={})
    kept = [o for o in old['rows'] if o['group'] != group] + rounded(rows)
    kept.sort(key=lambda o: list(GROUPS).index(o['group']))
    return dict(rows=kept, provenance=dict(old['provenance'], **{group: rounded(about)}))


def main(args=None):
    options = arguments(args)
    os.environ.update(OMP_NUM_THREADS=str(options.threads), MKL_NUM_THREADS=str(options.threads))
    start, load = time.time(), list(os.getloadavg())
    import torch
    kept = keep_memory()
    torch.set_num_threads(options.threads)
    for group,rows in measured(options):
        about = provenance(SimpleNamespace(device='cpu', repeats=options.rounds, starts=1, threads=options.threads, quick=False, keeps_memory=kept), start, load)
        about['command'] = 'python -m benchmarks.transfer ' + ' '.join(sys.argv[1:])
        Path(options.output).parent.mkdir(exist_ok=True)
        write(merged(options.output, group, rows, about), options.output)
        start, load = time.time(), list(os.getloadavg())


if __name__ == '__main__': main()
