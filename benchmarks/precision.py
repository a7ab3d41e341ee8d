"""What a network reaches in bfloat16 against float32: the same seeds, the official test images.

    python -m benchmarks.precision [--tasks NAME ...] [--seeds N] [-o FILE]

Each seed trains twice, with the same weights, images and order. The file is written after each seed, and seeds that it has are not run
again. A processor without instructions for bfloat16 gives the same accuracies, about eight times as slowly: times are no part of this."""
import argparse, json, sys
from pathlib import Path
from types import SimpleNamespace

from .__main__ import run_facts, write
from .measure import RESULTS, begin, rounded

TASKS = {'mnist-300': dict(arch='cnn', data='mnist', n_per_class=300, epochs=10, lr=3e-3),
         'cifar10-500': dict(arch='cnn_v2', data='cifar10', n_per_class=500, epochs=10, lr=3e-3)}
PRECISIONS = ('float32', 'bf16')


def reached(seed, precision, arch, epochs, lr, **data):
    "Test accuracy of `arch` after one cycle; a fifth of the images validates"
    from dlcourse.training.learner import learner_for
    learn = learner_for(arch, seed=seed, precision=precision, **data)
    with learn.quiet():
        learn.fit_one_cycle(epochs, lr)
        return learn.validate(ds_idx=2)[1]


def judged(task, runs):
    "A row: both accuracies of each seed, the mean difference with its interval, and whether a loss goes beyond it"
    from dlcourse.course.intervals import Difference
    found = Difference(tuple(o['bf16'] - o['float32'] for o in runs))
    limits = found.interval
    return dict(name=task, settings=TASKS[task], runs=runs, mean={k: sum(o[k] for o in runs)/len(runs) for k in PRECISIONS},
                difference=found.mean, interval=limits, met=None if limits is None else limits[1] >= 0)


def kept(path):
    "Task -> the seeds that the file has"
    rows = json.loads(path.read_text(encoding='utf-8'))['rows'] if path.exists() else []
    return {r['name']: r['runs'] for r in rows if r['settings'] == TASKS.get(r['name'])}


def main(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.precision', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tasks', nargs='+', default=list(TASKS), choices=list(TASKS), metavar='NAME', help='only these: ' + ', '.join(TASKS))
    p.add_argument('--seeds', type=int, default=5, metavar='N', help='seeds 1 to N (5)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('-o', '--output', type=Path, default=RESULTS/'precision.json', metavar='FILE')
    options = p.parse_args(args)
    start, load, memory = begin(options.threads)
    runs = kept(options.output)
    how = SimpleNamespace(device='cpu', repeats=1, starts=1, threads=options.threads, quick=False, keeps_memory=memory)
    todo = [(task, seed) for seed in range(1, options.seeds + 1) for task in options.tasks]
    for task, seed in todo:
        mine = runs.setdefault(task, [])
        if seed in [o['seed'] for o in mine]: continue
        mine.append(dict(seed=seed, **{k: reached(seed, k, **TASKS[task]) for k in PRECISIONS}))
        print(task, mine[-1], flush=True)
        rows = [judged(k, v) for k,v in runs.items()]
        about = dict(run_facts(how, start, load), command=' '.join(['python -m benchmarks.precision', *sys.argv[1:]]))
        write(dict(rows=rounded(rows), provenance=rounded(about)), options.output)


if __name__ == '__main__': main()
