"""What the defaults reach, over several seeds, judged once on the official test images.

    python -m benchmarks.accuracy [--seeds N] [--run FOLDER ...] [-o FILE]

Budgets and rates were fixed on validation images of other seeds beforehand; nothing is chosen here."""
import argparse, csv, json, os, statistics, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

from .__main__ import run_facts, write
from .measure import RESULTS, rounded

FIRST = '''
import json, time
start = time.time()
from dlcourse.all import *
learn = learner_for("cnn", seed=SEED)
with learn.quiet():
    learn.fit_one_cycle(3)
    test = learn.validate(ds_idx=2)[1]
print(json.dumps(dict(test=test, own_seconds=time.time() - start)))
'''
MNIST = dict(mlp=dict(epochs=10, lr=3e-3), cnn=dict(epochs=10, lr=3e-3))


def first_run(seed):
    "Test accuracy and seconds, interpreter and imports included, of the example on the home page"
    start = time.time()
    command = [sys.executable, '-W', 'ignore', '-c', FIRST.replace('SEED', str(seed))]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(out.stdout.strip().splitlines()[-1]), seconds=time.time() - start)


def mnist_run(arch, seed):
    "Test accuracy after training on 300 images of each digit, a fifth of them for validation, without augmentation"
    from dlcourse.training.learner import learner_for
    budget = MNIST[arch]
    learn = learner_for(arch, data='mnist', n_per_class=300, seed=seed)
    with learn.quiet():
        learn.fit_one_cycle(budget['epochs'], budget['lr'])
        test = learn.validate(ds_idx=2)[1]
    return dict(test=test, valid=learn.history.accuracy.iloc[-1], seconds=float(learn.history.seconds.sum()))


def row(name, claim, target, run, seeds, **more):
    "One line: every seed, mean and spread"
    runs = [dict(seed=s, **run(s)) for s in seeds]
    tests = [o['test'] for o in runs]
    spread = statistics.stdev(tests) if len(tests) > 1 else None
    mean = statistics.mean(tests)
    res = dict(name=name, claim=claim, target=target, mean=mean, spread=spread, met=mean >= target, runs=runs, **more)
    print(f"{name}: {res['mean']:.4f} (target {target}), seeds {' '.join(f'{o:.4f}' for o in tests)}", flush=True)
    return res


def run_folder(folder):
    "One line for a finished run of the command line: its settings, history and figures"
    folder = Path(folder)
    settings, metrics = json.loads((folder/'settings.json').read_text())['settings'], json.loads((folder/'metrics.json').read_text())
    with open(folder/'history.csv', newline='') as f: history = list(csv.DictReader(f))
    return dict(name=f"{settings['data']}, {settings['arch']}, {len(history)} epochs, command line", claim='one seed',
                target=None, mean=metrics['test']['accuracy'], spread=None, met=None, settings=settings, history=history, metrics=metrics)


def main(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.accuracy', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=3, metavar='N', help='seeds 1 to N (3)')
    p.add_argument('-o', '--output', default=RESULTS/'accuracy.json', metavar='FILE')
    p.add_argument('--run', nargs='+', default=[], metavar='FOLDER', help='finished run folders to record beside')
    options = p.parse_args(args)
    start, load, seeds = time.time(), list(os.getloadavg()), range(1, options.seeds + 1)
    rows = [row('fashion_mini, cnn, 3 epochs', 'learner_for("cnn").fit_one_cycle(3) on the shipped images', 0.80, first_run, seeds)]
    if (Path(os.environ.get('DLCOURSE_DATA', '.'))/'MNIST').exists():
        for arch, target in (('mlp', 0.925), ('cnn', 0.965)):
            claim = 'no augmentation, a fifth of the 3,000 images validates'
            rows.append(row(f'MNIST, 300 per class, {arch}', claim, target, lambda s: mnist_run(arch, s), seeds, budget=MNIST[arch]))
    else: print('MNIST not measured: $DLCOURSE_DATA does not hold it')
    rows += [run_folder(o) for o in options.run]
    import torch
    output, options = options.output, SimpleNamespace(device='cpu', repeats=1, starts=1, threads=torch.get_num_threads(), quick=False)
    about = run_facts(options, start, load)
    about['command'] = 'python -m benchmarks.accuracy ' + ' '.join(sys.argv[1:])
    write(dict(rows=rounded(rows), provenance=rounded(about)), output)


if __name__ == '__main__': main()
