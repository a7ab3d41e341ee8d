"""What resting bodies, cached features and folded copies save, against fastai's frozen networks and against eager inference.

    python -m benchmarks.transfer [--rows GROUP ...] [--rounds N] [-o FILE]

Contestants take turns in one process and are timed in CPU seconds. Only the rows measured are replaced in FILE.
Needs $DLCOURSE_DATA with EuroSAT. What pretrained networks reach is an experiment: `dlcourse reproduce tp1-2.1 --full`."""
import argparse, json, os, sys, time
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

from .__main__ import run_facts, write
from .measure import RESULTS, Row, compare, interleaved, keep_memory, rounded, silent

GROUPS = dict(epoch='a frozen epoch on images against fastai',
              cached64='five epochs of MobileNetV2 at 64 px, features computed once, against fastai',
              cached224='the same at 224 px',
              alexnet224='the same with AlexNet at 224 px',
              same='predictions of cached and uncached runs',
              inference='MobileNetV2 answering at 64 px and 224 px, `fast` against the network as it is')

# Targets of an epoch and of five cached ones, images per class
TIMED = {('mobilenet_v2', 64): (0.25, 1/12, 64), ('mobilenet_v2', 224): (None, 1/20, 16), ('alexnet', 224): (None, 1/4.5, 16)}

CACHED = dict(cached64=('mobilenet_v2', 64), cached224=('mobilenet_v2', 224), alexnet224=('alexnet', 224))


@lru_cache
def examples(data, per_class):
    "The first `per_class` training images of each class of the data set `data`"
    from dataclasses import replace
    import torch
    from dlcourse.data.sources import load
    ex = load(data)
    rows = torch.cat([torch.nonzero(ex.y == c)[:per_class, 0] for c in range(len(ex.vocab))])
    return replace(ex, x=ex.x[rows], y=ex.y[rows])


def few_images(size, per_class, backbone):
    "EuroSAT images in memory, the first of each class, a fifth of them for validation"
    from dlcourse.data.blocks import dls_for
    from dlcourse.data.loader import renormalized
    ex = examples('eurosat', per_class)
    return renormalized(dls_for((ex.x, ex.y), size=size, seed=1), backbone.mean, backbone.std)


def contestants(arch, size, per_class):
    "Ours without and with cache, and fastai's `Learner` as `vision_learner` makes it, frozen, on the same loaders; the weights are random"
    import torchvision
    from fastai.metrics import accuracy
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.learner import create_vision_model, default_split
    from dlcourse.models.backbones import backbone_of
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
        # `vision_learner` of 2.8.12 drops its `cut`
        model = create_vision_model(getattr(torchvision.models, arch), 10, pretrained=False, cut=1)
        learn = Learner(dls, model, CrossEntropyLossFlat(), splitter=default_split, metrics=accuracy)
        learn.freeze()
        return lambda: learn.fit_one_cycle(epochs, 1e-3)
    return len(dls.train_ds), len(dls.valid_ds), ours, fresh, peer


def once(options, rounds): return SimpleNamespace(device='cpu', warm_up=1 if rounds > 1 else 0, repeats=rounds)


def epoch_rows(options):
    n, m, ours, _, peer = contestants('mobilenet_v2', 64, TIMED['mobilenet_v2', 64][2])
    with silent(): found = interleaved(dict(ours=ours(1), peer=peer(1)), once(options, options.rounds))
    name = f'mobilenet_v2, 64 px: a frozen epoch on {n} images, {m} for validation / fastai'
    return [speed_row(name, 'epoch', found, TIMED['mobilenet_v2', 64][0])]


def cached_rows(options, group, arch, size):
    _, target, per_class = TIMED[arch, size]
    n, m, _, fresh, peer = contestants(arch, size, per_class)
    with silent(): found = interleaved(dict(ours=fresh(5), peer=peer(5)), once(options, options.rounds if size < 100 else 1))
    name = f'{arch}, {size} px: 5 frozen epochs on {n} images, {m} for validation, features computed once / fastai'
    return [speed_row(name, group, found, target)]


def speed_row(name, group, found, target, note=None):
    "A row of `measure`, as a dictionary"
    r = compare(name, group, found['ours'], found['peer'], target, note=note).judge().plain()
    times = f"{r['ours']:.3g} s against {r['peer']:.3g} s"
    print(f"{name}: {times}, ratio {r['ratio']:.4f}, {1/r['ratio']:.1f} times (target ratio {target})", flush=True)
    return dict(kind='speed', **r)


def same_rows(options):
    "The largest difference of probabilities after three epochs with and without cache, from the same weights in the same order"
    from dlcourse.models.backbones import backbone_of
    from dlcourse.training.learner import learner_for
    preds, right = [], []
    for cache in (None, True):
        dls = few_images(64, TIMED['mobilenet_v2', 64][2], backbone_of('mobilenet_v2'))
        with silent(): learn = learner_for('mobilenet_v2', dls, seed=1, cache=cache)
        with learn.quiet():
            learn.fit_one_cycle(3, 3e-3)
            preds.append(learn.get_preds()[0])
            right.append(learn.validate()[1])
    diff = float((preds[0] - preds[1]).abs().max())
    print(f'largest difference of probabilities {diff:.2g}, accuracies {right}', flush=True)
    r = Row('mobilenet_v2, 64 px: cached and uncached probabilities, largest difference', 'same', unit='1', clock=None, ours=diff,
            rounds=1, target=1e-5,
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
        name = f'mobilenet_v2, {size} px: answers for a batch of {n}, folded and channels last / as it is'
        res.append(speed_row(name, 'inference', found, target, note))
    return res


def measured(options):
    "Group -> its rows, for the groups asked for"
    rows = dict(epoch=epoch_rows, same=same_rows, inference=inference_rows)
    for group,o in CACHED.items(): rows[group] = partial(cached_rows, group=group, arch=o[0], size=o[1])
    for o in sorted(options.rows, key=lambda o: o != 'inference'): # First, as a user's process is: memory can't be unkept
        kept = o != 'inference' and keep_memory()
        yield o, kept, rows[o](options)


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.transfer', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                epilog='groups:\n' + '\n'.join(f'  {k:12} {v}' for k,v in GROUPS.items()))
    p.add_argument('--rows', nargs='+', metavar='GROUP', choices=GROUPS, default=list(GROUPS), help='measure only these groups')
    p.add_argument('--rounds', type=int, default=3, metavar='N', help='rounds of what is timed (3)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('-o', '--output', default=RESULTS/'transfer.json', metavar='FILE')
    options = p.parse_args(args)
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
    torch.set_num_threads(options.threads)
    for group,kept,rows in measured(options):
        how = dict(repeats=options.rounds, starts=1, threads=options.threads, quick=False, keeps_memory=kept)
        about = run_facts(SimpleNamespace(device='cpu', **how), start, load)
        about['command'] = 'python -m benchmarks.transfer ' + ' '.join(sys.argv[1:])
        Path(options.output).parent.mkdir(exist_ok=True)
        write(merged(options.output, group, rows, about), options.output)
        start, load = time.time(), list(os.getloadavg())


if __name__ == '__main__': main()
