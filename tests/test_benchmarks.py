"The speed suite runs in tiny sizes and writes what the docs page reads; how fast anything is isn't tested"
import json, subprocess, sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import Aside
from fastcore.nbio import read_nb

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT)) # benchmarks is not installed
RESULTS = [o for d in ('cpu', 'cuda') if (o := ROOT/'results'/'benchmarks'/f'bench-{d}.json').exists()]
ROW = 'name group unit clock ours peer ratio spread rounds target met note'.split()
FROM = 'command commit uncommitted_changes date device hardware threads quick versions seconds'.split()
GROUPS = ['import', 'million', 'loader', 'augment', 'fit-mlp-64', 'fit-mlp-512', 'fit-cnn-64']


def benchmarks(*args):
    return subprocess.run([sys.executable, '-m', 'benchmarks', *map(str, args)], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    "What a dry run prints and writes"
    path = tmp_path_factory.mktemp('bench')/'quick.json'
    code, out, err = Aside(f"from benchmarks.__main__ import main\nmain(['--quick', '-o', {str(path)!r}])", ROOT).result()
    assert code == 0, err
    return out, json.loads(path.read_text(encoding='utf-8'))


def holds_the_schema(results):
    assert set(results) == {'rows', 'groups', 'provenance'}
    assert len({row['name'] for row in results['rows']}) == len(results['rows'])
    assert not set(FROM) - set(results['provenance'])
    for row in results['rows']:
        assert list(row) == ROW
        assert row['group'] in results['groups']
        if row['note'] and row['note'].startswith('not measured'): assert row['ours'] is row['ratio'] is row['met'] is None
        else: assert row['ours'] is not None and len(row['spread']) == 2 and row['rounds'] >= 1
        assert (row['peer'] is None) == (row['ratio'] is None)


def test_help():
    out = benchmarks('--help')
    assert out.returncode == 0
    for o in GROUPS: assert o in out.stdout


def test_help_of_transfer():
    out = subprocess.run([sys.executable, '-m', 'benchmarks.transfer', '--help'], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    for o in ('epoch', 'cached64', 'cached224', 'alexnet224', 'same', 'inference', '--rounds'): assert o in out.stdout


def test_recorded_explanations():
    results = json.loads((ROOT/'results'/'benchmarks'/'bench-insight.json').read_text(encoding='utf-8'))
    holds_the_schema(results)
    for row in results['rows']: assert row['target'] == 1.1 and row['met'] == (row['ratio'] <= 1.1)


@pytest.mark.parametrize('name', ['bench-studies', 'bench-similarity', 'bench-folders', 'bench-convolutions', 'bench-memory',
                                  'bench-parallel'])
def test_recorded_studies(name):
    "What has a target is judged, unless this machine couldn't measure it"
    results = json.loads((ROOT/'results'/'benchmarks'/f'{name}.json').read_text(encoding='utf-8'))
    holds_the_schema(results)
    for row in results['rows']:
        value = row['ours'] if row['ratio'] is None else row['ratio']
        assert row['met'] == (None if row['target'] is None or value is None else value <= row['target'])


def test_recorded_precision():
    "The same seeds in both precisions; a loss is an interval below zero"
    from benchmarks.precision import TASKS, judged
    rows = json.loads((ROOT/'results'/'benchmarks'/'precision.json').read_text(encoding='utf-8'))['rows']
    assert {r['name'] for r in rows} == set(TASKS) and all([o['seed'] for o in r['runs']] == [1, 2, 3, 4, 5] for r in rows)
    for r in rows: assert r['met'] == judged(r['name'], r['runs'])['met'] and r['settings'] == TASKS[r['name']]


def test_a_loss_beyond_the_interval_is_told():
    from benchmarks.precision import judged
    def met(drops): return judged('mnist-300', [dict(seed=i, float32=0.9, bf16=0.9 - o) for i,o in enumerate(drops)])['met']
    assert [met(o) for o in ([0.01, -0.01, 0.], [0.01, 0.02, 0.015], [-0.01, -0.02], [0.01])] == [True, False, True, None]


def test_help_without_torch():
    show = "import sys, benchmarks.__main__ as m; m.arguments([]); assert not {'torch', 'fastai'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, '-c', show], cwd=ROOT, capture_output=True).returncode == 0


def test_unknown_group():
    out = benchmarks('--rows', 'fit-mpl')
    assert out.returncode == 2 and 'fit-mlp-64' in out.stderr and 'Traceback' not in out.stderr


@pytest.mark.parametrize('args', [['--quick'], ['--rows', 'fit']])
def test_partial_runs_do_not_replace_results(args):
    from benchmarks.__main__ import arguments
    assert arguments(args).output is None and arguments([]).output.name == 'bench-cpu.json'


def test_quick_has_all_groups(quick):
    out, results = quick
    holds_the_schema(results)
    assert set(results['groups']) == {o['group'] for o in results['rows']} == set(GROUPS)
    for row in results['rows']: assert row['name'] in out and row['met'] is None


def test_missing_peers_are_named(quick):
    for peer in ('Lightning', 'skorch'):
        rows = [o for o in quick[1]['rows'] if o['name'].endswith(f' / {peer}')]
        assert len(rows) == 3
        if not find_spec(peer.lower()): assert {o['note'] for o in rows} == {"not measured: pip install 'dlcourse[bench]'"}


def test_ratios_are_of_the_same_round():
    from benchmarks.measure import compare
    row = compare('a / b', 'g', [1., 4., 9.], [1., 2., 3.], target=2).judge()
    assert (row.ratio, row.spread, row.met) == (2., [1.5, 2.5], True)
    assert compare('a / b', 'g', [1., 4., 9.], [1., 2., 3.], target=1.9).judge().met is False


def test_a_contestant_that_does_not_learn_is_noticed():
    from benchmarks.loops import Task, bare_loop, learned
    task = Task('mlp', 64, 64)
    with pytest.raises(RuntimeError, match='lazy'): learned({'lazy': (None, bare_loop(task)[1])}, task, 0.7)


@pytest.mark.parametrize('path', RESULTS, ids=[o.stem for o in RESULTS])
def test_recorded_results(path):
    results = json.loads(path.read_text(encoding='utf-8'))
    holds_the_schema(results)
    assert not results['provenance']['quick'] and f"bench-{results['provenance']['device']}" == path.stem


@pytest.mark.parametrize('path', RESULTS, ids=[o.stem for o in RESULTS])
def test_page_shows_the_recorded_results(path):
    "The saved outputs of the page are those of the newest results"
    made = json.loads(path.read_text(encoding='utf-8'))['provenance']['date']
    shown = json.dumps([c.outputs for c in read_nb(ROOT/'nbs'/'benchmarks.ipynb').cells if c.cell_type == 'code'])
    assert made in shown, 'run it again: nbdev-test nbs/benchmarks.ipynb --save'
