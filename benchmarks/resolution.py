"""What one set of weights reaches at many image sizes: training on random parts, and choosing the size for each image.

    python -m benchmarks.resolution [--rows GROUP ...] [--seeds N] [-o FILE]

Nothing is tuned to what is measured here, with one exception: the network of `choice` first learnt each of its four sizes equally often,
for six epochs, and was no better at 28 pixels than at 10, so that there was little to choose; now it learns what the lesson's network
learns, for twelve. (That changed the result little.) Photographs are judged on validation images, clothing on the official
test images. Only the rows measured are
replaced in FILE.
The photographs and the choice need $DLCOURSE_DATA with CIFAR-10 and Fashion-MNIST."""
import argparse, json, os, statistics, sys, time
from pathlib import Path
from types import SimpleNamespace

from .__main__ import run_facts, write
from .measure import RESULTS, rounded

GROUPS = dict(photographs='CIFAR-10: trained on whole pictures and on random parts, judged at six sizes',
              clothing='Fashion-MNIST, the shipped part: trained on random parts, judged at five sizes',
              choice='Fashion-MNIST: a size for each image, predicted from a thumbnail, against fixed sizes and the oracle')
NET = dict(filters=16, lr=4e-3)
CIFAR = dict(data='cifar10', n_per_class=500, valid=0.4, grid=1)
EPOCHS = dict(photographs=10, clothing=5, choice=12)
SIZES = dict(photographs=[24, 28, 32, 36, 40, 48], clothing=[20, 24, 28, 32, 40], choice=[10, 14, 20, 28])
MIXED = [7, 10, 14, 20, 28, 28] # What the network of `choice` learns from, a batch at a time


def trained(seed, epochs, **kwargs):
    "A small network after one cycle"
    from dlcourse.training.learner import learner_for
    learn = learner_for(kwargs.pop('arch', 'cnn'), seed=seed, **{**NET, **kwargs})
    with learn.quiet(): learn.fit_one_cycle(epochs)
    return learn


def sized_row(name, group, part, seeds, **kwargs):
    "One line: the accuracy at each size, of every seed, with mean and spread"
    from dlcourse.insight.resolution import preds_at
    runs, sizes = [], SIZES[group]
    for s in seeds:
        start = time.process_time()
        p = preds_at(trained(s, EPOCHS[group], **kwargs), sizes, part)
        runs.append(dict(seed=s, accuracy=p.accuracy.tolist(), cpu_seconds=time.process_time() - start))
        print(f"{name}, seed {s}: {p} ({runs[-1]['cpu_seconds']:.0f} s)", flush=True)
    by_size = list(zip(*[o['accuracy'] for o in runs]))
    spread = [statistics.stdev(o) if len(o) > 1 else None for o in by_size]
    return dict(name=name, group=group, part=part, images=len(p.targets), epochs=EPOCHS[group], sizes=sizes, flops=p.flops.tolist(),
                mean=[statistics.mean(o) for o in by_size], spread=spread, runs=runs)


def photographs(seeds):
    from dlcourse.insight.resolution import RandomPart
    return [sized_row('cifar10, whole pictures', 'photographs', 'valid', seeds, **CIFAR),
            sized_row('cifar10, random parts', 'photographs', 'valid', seeds, batch_tfms=[RandomPart()], **CIFAR)]


def clothing(seeds):
    from dlcourse.insight.resolution import RandomPart
    return [sized_row('fashion_mini, random parts', 'clothing', 'test', seeds, grid=1, batch_tfms=[RandomPart()])]


def choice_run(seed):
    "Every rule to choose a size, judged on 10,000 test images"
    from dlcourse.insight.resolution import RandomSize, compare_size_rules, train_size_predictor
    from dlcourse.models.zoo import model_for
    start, sizes = time.process_time(), SIZES['choice']
    learn = trained(seed, EPOCHS['choice'], data='fashion_mnist', n_per_class=600, batch_tfms=[RandomSize(MIXED)])
    judged = compare_size_rules(learn, train_size_predictor(learn, sizes), 'test')
    seconds = time.process_time() - start
    print(f'choice, seed {seed} ({seconds:.0f} s)\n{judged.round(4)}', flush=True)
    return dict(seed=seed, table=judged.reset_index().to_dict('records'), cpu_seconds=seconds)


def choice(seeds):
    return [dict(name='fashion_mnist, a size for each image', group='choice', part='test', images=10_000, epochs=EPOCHS['choice'],
                 sizes=SIZES['choice'], learnt_at=MIXED,
                 runs=[choice_run(s) for s in seeds])]


def dated(rows, about): return [{**{k: about[k] for k in ('date', 'commit', 'uncommitted_changes')}, **o} for o in rows]

def kept(path, groups):
    "The rows of other groups in an earlier record, each with its own date and commit"
    if not Path(path).exists(): return []
    old = json.loads(Path(path).read_text(encoding='utf-8'))
    return [o for o in dated(old['rows'], old['provenance']) if o['group'] not in groups]


def main(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.resolution', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter,
                                epilog='groups:\n' + '\n'.join(f'  {k:12} {v}' for k,v in GROUPS.items()))
    p.add_argument('--rows', nargs='+', choices=GROUPS, default=list(GROUPS), metavar='GROUP', help='measure only these groups')
    p.add_argument('--seeds', type=int, default=3, metavar='N', help='seeds 1 to N (3)')
    p.add_argument('-o', '--output', default=RESULTS/'resolution.json', metavar='FILE')
    options = p.parse_args(args)
    os.environ.update(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
    import torch
    torch.set_num_threads(1)
    start, load, seeds = time.time(), list(os.getloadavg()), range(1, options.seeds + 1)
    rows = [row for o in options.rows for row in globals()[o](seeds)]
    about = run_facts(SimpleNamespace(device='cpu', repeats=1, starts=1, threads=1, quick=False), start, load)
    about.update(command='python -m benchmarks.resolution ' + ' '.join(sys.argv[1:]), measured=options.rows)
    about['command'] = about['command'].strip()
    write(dict(rows=kept(options.output, options.rows) + dated(rounded(rows), about), provenance=rounded(about)), options.output)


if __name__ == '__main__': main()
