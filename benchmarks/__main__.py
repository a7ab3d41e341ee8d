"""Measure the speed of dlcourse against a bare PyTorch loop, fastai, torchvision, Lightning and skorch.

Loops are timed in one process, one contestant after the other in each round, in CPU seconds (on a GPU, seconds on the wall);
imports and set-up in fresh processes, in seconds on the wall. A ratio is the median over the rounds of ours divided by the peer's
in the same round; its spread is the two quartiles. Targets are upper bounds."""
import argparse, json, os, sys, time
from types import SimpleNamespace

from dlcourse.cli.parsing import lenient_output, say
from .measure import RESULTS, ROOT

GROUPS = {'import': 'start-up: dlcourse --help, dlcourse.all, torch, fastai.vision.all',
          'million': 'set-up of one million 28×28 images: time and memory',
          'loader': 'an epoch of the loader alone, batches of 64 and 512',
          'augment': 'crop-and-flip and random affine, batches of 64 and 512',
          'fit-mlp-64': 'training a small MLP, batches of 64',
          'fit-mlp-512': 'training a small MLP, batches of 512',
          'fit-cnn-64': 'training a small CNN, batches of 64'}
NO_DEVICE = ('import', 'million') # What has nothing to do with a GPU
PACKAGES = 'dlcourse torch fastai torchvision lightning skorch numpy'


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                epilog='groups:\n' + '\n'.join(f'  {k:12} {v}' for k,v in GROUPS.items()))
    p.add_argument('--rows', nargs='+', metavar='GROUP', help='measure only these groups; the start of a name is enough')
    p.add_argument('--repeats', type=int, default=9, metavar='N', help='rounds of the loops that count; one more warms up (9)')
    p.add_argument('--starts', type=int, default=5, metavar='N', help='rounds of imports and set-up (5)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    p.add_argument('--quick', action='store_true', help='a dry run: tiny sizes, one round, nothing judged')
    p.add_argument('-o', '--output', metavar='FILE', 
                   help='where the JSON goes (results/benchmarks/bench-DEVICE.json, unless --rows or --quick is given)')
    options = p.parse_args(args)
    options.groups = chosen(p, options)
    options.warm_up = 0 if options.quick else 1
    if options.quick: options.repeats = options.starts = 1
    if options.output is None and not (options.rows or options.quick): options.output = RESULTS/f'bench-{options.device}.json'
    return options


def chosen(parser, options):
    "The names of the groups to measure"
    names = [k for k in GROUPS if options.device == 'cpu' or k not in NO_DEVICE]
    for o in options.rows or []:
        if any(k.startswith(o) for k in names): continue
        parser.error(f"no group of rows starts with {o!r}; on {options.device} there are: {', '.join(names)}")
    return [k for k in names if not options.rows or k.startswith(tuple(options.rows))]


def measure(group, options):
    "The rows of `group`, judged, and the measurements behind them"
    from . import loaders, loops, startup
    own = dict(million=startup.million_rows)
    own['import'] = startup.import_rows
    if group in own: rows, detail = own[group](options)
    else: rows, detail = {'loader': loaders.loader_rows, 'augment': loaders.augment_rows}.get(group, loops.fit_rows)(group, options)
    return [r.judge(not options.quick) for r in rows], detail


def run_facts(options, start, load):
    "What was run where: the package's `provenance`, and how this suite was called"
    from dlcourse.provenance import provenance
    about = provenance(options.device, PACKAGES, paths=('.', ROOT/'benchmarks'))
    how = dict(rounds=options.repeats, starts=options.starts, quick=options.quick, keeps_memory=getattr(options, 'keeps_memory', False))
    return dict(command=' '.join(['python -m benchmarks', *sys.argv[1:]]), **about | dict(threads=options.threads), **how,
                load_before=load, load_after=list(os.getloadavg()), seconds=time.time() - start)


def cell(v, form): return '' if v is None else format(v, form)


def table(rows):
    "The rows as text"
    lines = [('', 'ours', 'peer', 'ratio', 'spread', 'target', 'met')]
    for r in rows:
        form = '.3g' if r['unit'] == 's' else '.1f'
        spread = '–'.join(format(o, '.3g') for o in r['spread']) if r['spread'] else ''
        met = r['note'] or {True: 'yes', False: 'NO', None: ''}[r['met']]
        figures = [cell(r['ours'], form), cell(r['peer'], form), cell(r['ratio'], '.3f'), spread, cell(r['target'], 'g')]
        lines.append((r['name'], *figures, met))
    widths = [max(len(o[i]) for o in lines) for i in range(6)]
    return '\n'.join('  '.join([o[0].ljust(widths[0])] + [c.rjust(w) for c,w in zip(o[1:6], widths[1:])] + [o[6]]).rstrip() for o in lines)


def write(results, path):
    from dlcourse.core import whole_file
    with whole_file(path) as f: json.dump(results, f, indent=1, ensure_ascii=False); f.write('\n')
    print(f'written to {path}')


def record(rows, groups, module, began, output, **how):
    "Print the rows of another module of this suite, and write them with what was run where"
    from .measure import rounded
    say(table(rows))
    start, load, kept = began
    options = SimpleNamespace(device='cpu', starts=1, quick=False, keeps_memory=kept, **how)
    about = dict(run_facts(options, start, load), command=' '.join([f'python -m benchmarks.{module}', *sys.argv[1:]]))
    write(dict(rows=rows, groups=groups, provenance=rounded(about)), output)


def main(args=None):
    options = arguments(args)
    from .measure import begin, rounded
    start, load, options.keeps_memory = begin(options.threads)
    import torch
    if options.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('there is no GPU that torch can use here: measure with --device cpu')
    rows, groups = [], {}
    for o in options.groups:
        say(f'{o}: {GROUPS[o]}')
        found, groups[o] = measure(o, options)
        rows += [r.plain() for r in found]
    say(table(rows))
    results = dict(rows=rows, groups=rounded(groups), provenance=rounded(run_facts(options, start, load)))
    if options.output: write(results, options.output)


if __name__ == '__main__':
    with lenient_output(): main()
