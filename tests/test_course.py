"The course: experiments and their records, a quick trial of each experiment, the documents' own rules and values"
import copy, json, math, pickle, sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.schedule import SchedCos
from fastcore.nbio import read_nb
from matplotlib.figure import Figure
from torch import nn

import outputs
from dlcourse.core import CourseError, num_threads
from dlcourse.course import experiment as ex, intervals as iv, records as rc
from dlcourse.course.experiment import NotMeasured, Trial, experiments, find_experiments, recorded, reproduce
from dlcourse.course.mac import hyperparameters, imbalance, looking, pair, perturbed, recipe, similar_size, stopping, views
from dlcourse.course import glossary
from dlcourse.course.glossary import names_term, terms
from dlcourse.course.mba.architectures import three_nets, ways
from dlcourse.course.mba.boston import DecayRate, epochs_for, house_net
from dlcourse.course.mba.losses import four, logistic_probabilities, points, truth
from dlcourse.course.mba.optimisers import adam_rule, by_hand_and_torch, rank_correlation, sgd_rule
from dlcourse.course.pcs import all_conv, feature_space, graphs, leak, more_features, neurons, random_labels, sizes, surrogate as sur
from dlcourse.course.pcs import batchnorm_only, critical_layers
from dlcourse.course.pcs.blocks import first_over_last, gradient_by_block, residual_mlp, sigmoid_learner, sum_fails
from dlcourse.course.pcs.critical_periods import draw_windows, falling, gap, kept, settings_of, variants as window_variants, windows
from dlcourse.course.pcs.ensembles import disagreement, draw_ensembles
from dlcourse.course.pcs.layers import dense_chain, drawn_accuracy, never_falls
from dlcourse.course.pcs.plane import neighbour_vote
from dlcourse.course.pcs.landscape import downhill_share, first_crossing, radius_of
from dlcourse.course.pcs.lesions import decays_gradually, erase_blocks
from dlcourse.course.pcs.projections import compare_layer, fitted_models, widths_of
from dlcourse.course.merging import merge
from dlcourse.course.records import differences_to
from dlcourse.course.shares import trials_of_share
from dlcourse.data.sources import load
from dlcourse.course.tp1.cifar10 import l2_adam
from dlcourse.course.tp1.eurosat import images
from dlcourse.data.blocks import dls_for
from dlcourse.data.loader import renormalized
from dlcourse.insight.embedding import layer_activations, probe_accuracy
from dlcourse.insight.explain import Explanation
from dlcourse.insight.resolution import SizedPreds, cheapest_right, look_twice
from dlcourse.models.blocks import act_layer, count_params
from dlcourse.models.skips import doubling_mlp
from dlcourse.models.views import as_is, mirrored
from dlcourse.models.zoo import model_for, size_of
from dlcourse.training.learner import learner_for
from dlcourse.training.losses import (
    BinaryLoss, Brier, EvenLoss, MultiHinge, RivalLoss, cross_entropy, hinge, quadratic, zero_one)
from dlcourse.training.schedules import SchedRipple
from dlcourse.training.transfer import concat_tables, feature_table

ROOT = Path(__file__).resolve().parent.parent


def quick(variant, seed=1): return Trial(variant, seed)


# ---- experiments and records ----

def exp(run, **kwargs):
    return ex.Experiment('test-1', 'A test', run, **{**dict(variants=('a', 'b'), seeds=2), **kwargs})
def simple(t): return dict(acc=t.seed + (t.variant == 'b'), curve=[1, 2.5])


def test_crash_loses_the_trial_in_flight_only(tmp_path):
    ran = []
    def run(t):
        ran.append((t.variant, t.seed))
        if t.seed == 2 and len(ran) < 5: raise RuntimeError('power cut')
        return simple(t)
    with pytest.raises(RuntimeError): ex.reproduce(exp(run), full=True, folder=tmp_path)
    assert [(r['variant'], r['seed']) for r in rc.read_record(tmp_path/'test-1.json')['rows']] == [('a', 1), ('b', 1)]
    ran += [None, None]
    assert len(ex.reproduce(exp(run), full=True, folder=tmp_path)['rows']) == 4
    assert ran == [('a', 1), ('b', 1), ('a', 2), None, None, ('a', 2), ('b', 2)]
    assert sorted(o.name for o in tmp_path.iterdir()) == ['test-1.json', 'test-1.svg']


def test_what_is_added_runs_with_the_threads_of_the_record(tmp_path):
    "Also what is measured again; the process has its own number afterwards, after an error too"
    def run(t): return dict(threads=torch.get_num_threads())
    def threads(record): return [r['figures']['threads'] for r in record['rows']]
    with num_threads(1): assert threads(ex.reproduce(exp(run), full=True, seeds=1, folder=tmp_path)) == [1, 1]
    with num_threads(2):
        assert threads(ex.reproduce(exp(run), full=True, folder=tmp_path)) == [1]*4
        assert threads(ex.reproduce(exp(run), full=True, folder=tmp_path, again=True)) == [1]*4
        assert threads(ex.reproduce(exp(run), full=True, folder=tmp_path/'new')) == [2]*4
        def fail(t): raise RuntimeError('power cut')
        with pytest.raises(RuntimeError): ex.reproduce(exp(fail), full=True, folder=tmp_path, again=True)
        assert torch.get_num_threads() == 2


def test_rows_of_different_threads_are_named(tmp_path):
    said = []
    def run(t): return dict(threads=torch.get_num_threads())
    with num_threads(1): ex.reproduce(exp(run), full=True, seeds=1, folder=tmp_path)
    record = rc.read_record(tmp_path/'test-1.json')
    record['rows'][0]['provenance']['threads'] = 2
    rc.write_record({k: v for k,v in record.items() if k not in ('schema', 'checksum')}, tmp_path/'test-1.json')
    ex.reproduce(exp(run), full=True, folder=tmp_path, show=said.append)
    assert said[0] == 'test-1 was measured with different numbers of threads: this run takes 2'


def test_more_seeds_keep_the_old_ones_and_fewer_drop_none(tmp_path):
    first = ex.reproduce(exp(simple), full=True, folder=tmp_path)
    assert len(ex.reproduce(exp(simple), full=True, seeds=3, folder=tmp_path)['rows']) == 6
    record = ex.reproduce(exp(simple), full=True, folder=tmp_path)
    assert len(record['rows']) == 6 and record['seeds'] == 3 and record['rows'][0] == first['rows'][0]


def test_seeds_by_variant(tmp_path):
    e = exp(simple, seeds=dict(a=1, b=3))
    record = ex.reproduce(e, full=True, folder=tmp_path)
    assert [(r['variant'], r['seed']) for r in record['rows']] == [('a', 1), ('b', 1), ('b', 2), ('b', 3)] and record['trials'] == 4
    assert record['command'] == 'dlcourse reproduce test-1 --full'
    assert ex.reproduce(e, full=True, seeds=4, folder=tmp_path)['command'].endswith('--seeds 4')


def test_again_measures_anew_what_is_asked_for(tmp_path):
    values = iter(range(100))
    run = lambda t: dict(n=next(values))
    ex.reproduce(exp(run), full=True, folder=tmp_path)
    record = ex.reproduce(exp(run), full=True, folder=tmp_path, variants=['b'], again=True)
    assert [r['figures']['n'] for r in record['rows']] == [0, 2, 4, 5]


def test_quick_and_full_lie_apart(tmp_path):
    run = lambda t: dict(n=t.pick(1, 2))
    ex.reproduce(exp(run), folder=tmp_path)
    assert ex.reproduce(exp(run), full=True, folder=tmp_path)['summary'][0]['mean'] == 2
    quick = rc.read_record(tmp_path/'test-1.quick.json')
    assert quick['summary'][0]['mean'] == 1 and quick['verdicts'] == [] and len(quick['rows']) == 2


def test_mean_spread_and_verdicts(tmp_path):
    expects = {'b better': lambda r: r['b']['acc'] > r['a']['acc'], 'each seed': lambda r: r.by_seed['a']['acc'] == [1, 2],
               'c': lambda r: r['c']['acc'] > 0, 'wrong': lambda r: r['a']['acc'] > 5}
    e = exp(simple, expects=expects)
    record = ex.reproduce(e, full=True, folder=tmp_path)
    spread = pytest.approx(0.5**0.5)
    assert record['summary'] == [dict(variant=v, figure='acc', mean=mean, spread=spread, n=2) for v,mean in (('a', 1.5), ('b', 2.5))]
    assert [o['met'] for o in record['verdicts']] == [True, True, None, False]
    assert rc.verdict_table(record)['came true'].tolist() == ['yes', 'yes', 'not measured', 'no']


@pytest.mark.parametrize('how, verdict', [
    ({}, 'inside'), (dict(tolerance=dict(acc=0.01)), 'outside'), (dict(not_comparable='other data'), 'not comparable'),
    (dict(not_comparable=dict(b='other data')), 'inside')])
def test_a_reported_figure_is_held_against_the_obtained_one(tmp_path, how, verdict):
    e = exp(lambda t: dict(acc=0.5 + t.seed/50), reported=dict(a=dict(acc=0.5)), **how)
    record = ex.reproduce(e, full=True, folder=tmp_path)
    table = rc.reported_and_obtained(record)
    assert table.verdict.tolist() == [verdict, ''] and table['95 % interval'].tolist() == ['0.52 to 0.54']*2
    assert 'verdict' not in rc.reported_and_obtained(dict(record, reported={}))


def test_intervals_of_many_values():
    values = np.random.default_rng(0).normal(5, 2, 400)
    half = 1.96*values.std()/20
    assert iv.interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert iv.size_interval(1., 50)[1] == 1 and iv.size_interval(1., 50)[0] == pytest.approx(0.9287, abs=1e-3)
    assert iv.interval([]) is None and not iv.paired([1., 2., 3.], [1., 2., 3.]).is_clear
    with pytest.raises(CourseError, match='same seeds'): iv.paired([1, 2], [1])
    with pytest.raises(CourseError): iv.size_interval(1.2, 50)


def test_not_measured_is_said_and_tried_again(tmp_path):
    def run(t):
        if t.variant == 'b' and not (tmp_path/'weights').exists(): raise ex.NotMeasured('weights are missing: put them there')
        return simple(t)
    record = ex.reproduce(exp(run, reported=dict(b=dict(acc=9))), full=True, folder=tmp_path)
    assert [r.get('not_measured') for r in record['rows']] == [None, None] + 2*['weights are missing: put them there']
    assert rc.reported_and_obtained(record).loc[('b', 'acc')].tolist() == [9, 'not measured', '', 0, 'not measured']
    (tmp_path/'weights').touch()
    assert all('figures' in r for r in ex.reproduce(exp(run), full=True, folder=tmp_path)['rows'])


def test_provenance_of_each_row(tmp_path):
    about = ex.reproduce(exp(simple), full=True, folder=tmp_path)['rows'][0]['provenance']
    assert {'date', 'commit', 'uncommitted_changes', 'device', 'hardware', 'threads', 'versions', 'system'} == about.keys()
    assert about['versions']['torch'] and about['hardware']['cores'] >= 1


EDITS = {'was changed after it was measured': lambda d: d['rows'][0]['figures'].update(acc=7),
         'seeds is missing or of the wrong kind': lambda d: d.update(seeds='2'), 'summary is missing': lambda d: d.pop('summary'),
         'has the format 99': lambda d: d.update(schema=99)}

@pytest.mark.parametrize('message, change', EDITS.items(), ids=EDITS)
def test_edited_records_are_refused(tmp_path, message, change):
    ex.reproduce(exp(simple), full=True, folder=tmp_path)
    file = tmp_path/'test-1.json'
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    for f in (lambda: rc.read_record(file), lambda: ex.reproduce(exp(simple), full=True, folder=tmp_path)):
        with pytest.raises(CourseError, match=message): f()
    assert json.loads(file.read_text()) == record


def test_no_json_and_no_file(tmp_path):
    (tmp_path/'a.json').write_text('{')
    with pytest.raises(CourseError, match='is not a record'): rc.read_record(tmp_path/'a.json')
    with pytest.raises(CourseError, match='there is no record'): rc.read_record(tmp_path/'b.json')
    (tmp_path/'c.json').write_text('[1]')
    with pytest.raises(CourseError, match='is not a record'): rc.read_record(tmp_path/'c.json')
    (tmp_path/'d.json').write_text('['*100_000)
    with pytest.raises(CourseError, match='nests more than 50 levels'): rc.read_record(tmp_path/'d.json')


@pytest.mark.parametrize('key, entry', [('rows', ['a']), ('rows', dict(variant='a', seed=1, figures=dict(loss=[{}]))), ('summary', {}),
                                        ('rows', dict(variant='a', seed=1, provenance=1)), ('verdicts', dict(met='?')), ('variants', 1)])
def test_a_record_of_a_stranger_holds_what_a_record_holds(key, entry, tmp_path):
    "Also with a checksum that fits"
    ex.reproduce(exp(simple), full=True, folder=tmp_path)
    record = json.loads((tmp_path/'test-1.json').read_text())
    record = {k: v for k,v in record.items() if k != 'schema'} | {key: [*record[key], entry]}
    rc.write_record(record, tmp_path/'test-1.json')
    with pytest.raises(CourseError, match=f'an entry of {key} is of the wrong kind'): rc.read_record(tmp_path/'test-1.json')


def test_unknown_names(tmp_path):
    with pytest.raises(CourseError, match='unknown experiment'): ex.find_experiments(['mba-777'])
    with pytest.raises(CourseError, match="unknown variant 'c'"): ex.reproduce(exp(simple), variants=['c'], folder=tmp_path)
    with pytest.raises(CourseError, match="unknown device 'tpu'"): ex.reproduce(exp(simple), device='tpu', folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_full_without_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv('DLCOURSE_DATA', str(tmp_path/'none'))
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'none'))
    e = exp(simple, needs=('cifar10', 'digits'))
    with pytest.raises(CourseError, match='needs cifar10: dlcourse data get cifar10'): ex.reproduce(e, full=True, folder=tmp_path/'out')
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('figures', [dict(a='high'), dict(a=[1, None]), dict(a=True)])
def test_a_figure_is_a_number(tmp_path, figures):
    with pytest.raises(CourseError, match='a figure is a number'): ex.reproduce(exp(lambda t: figures), folder=tmp_path)


# ---- shares of several machines -------------------------------------------------------------------

@pytest.mark.parametrize('n', range(1, 9))
@pytest.mark.parametrize('counts', [dict(a=3), dict(a=3, b=3), dict(a=1, b=4, c=2), dict(a=0, b=2)])
def test_each_trial_is_in_one_share(n, counts):
    shares = [trials_of_share(list(counts), counts, f'{k}/{n}') for k in range(1, n + 1)]
    assert sorted(o for s in shares for o in s) == [(v, s) for v in sorted(counts) for s in range(1, counts[v] + 1)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_no_share_gets_the_slow_variant_alone():
    counts = dict.fromkeys('abc', 6)
    for k in (1, 2, 3): assert {v for v,_ in trials_of_share(list('abc'), counts, f'{k}/3')} == set('abc')


@pytest.mark.parametrize('text', ['0/3', '4/3', '1', '1/0', 'a/b', '1/2/3', '', '-1/2', '1.0/2', '1/9999999'])
def test_shares_that_cannot_be(text, tmp_path):
    for how, says in (dict(share=text), 'share must be K/N with K from 1'), (dict(share='1/2', again=True), 'share goes without again'):
        with pytest.raises(CourseError, match=says): ex.reproduce(exp(simple), folder=tmp_path/'out', **how)
    assert not (tmp_path/'out').exists()


def noisy(trial): return dict(a=float(torch.rand(()))*(2 if trial.variant == 'a' else 1), curve=torch.rand(3).tolist())


def without_machine(record):
    "A record without times and places, which differ from machine to machine"
    rows = [{k: v for k,v in r.items() if k not in ('seconds', 'provenance')} for r in record['rows']]
    return {k: v for k,v in record.items() if k not in ('seconds', 'checksum', 'rows')} | dict(rows=rows)


@pytest.fixture
def split(monkeypatch):
    "An experiment of 2 × 3 trials that is registered, and a function that measures one share of it"
    e = exp(noisy, seeds=3)
    monkeypatch.setitem(ex.registry, e.id, e)
    monkeypatch.setattr(ex, 'save_drawing', lambda exp, record, file: file.touch())
    return e, lambda share, folder, **kwargs: ex.reproduce(e, full=True, share=share, folder=folder, **kwargs)


@pytest.mark.parametrize('seeds', [None, 5])
def test_merged_shares_equal_a_single_run(split, tmp_path, seeds):
    e, measure = split
    for k in (3, 1, 4, 2): measure(f'{k}/4', tmp_path/str(k), seeds=seeds)
    merged, = merge([tmp_path/str(k) for k in (1, 2, 3, 4)], folder=tmp_path/'all')
    alone = ex.reproduce(e, full=True, seeds=seeds, folder=tmp_path/'alone')
    assert without_machine(merged) == without_machine(alone) and len(merged['rows']) == 2*(seeds or 3)
    assert all(r['provenance']['commit'] == ex.provenance()['commit'] for r in merged['rows']) and (tmp_path/'all'/'test-1.svg').exists()
    assert merge([tmp_path/'all', tmp_path/'1'], folder=tmp_path/'all') == [merged] # a second time


def test_shares_in_one_folder_run_no_trial_twice(split, tmp_path):
    "Two processes with a folder in common; the second one's trials are added to what the first one has"
    e, measure = split
    lines = []
    for k in (1, 2): measure(f'{k}/2', tmp_path, show=lines.append)
    assert len(lines) == len(set(lines)) == 6
    both, alone = (ex.reproduce(e, full=True, folder=o) for o in (tmp_path, tmp_path/'alone'))
    assert without_machine(both) == without_machine(alone)


def test_a_share_that_was_ended_carries_on_and_nothing_is_lost(split, tmp_path):
    e, measure = split
    def stop(line):
        if '(2 of 3)' in line: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): measure('1/2', tmp_path/'1', show=stop)
    assert len(rc.read_record(tmp_path/'1'/'test-1.json')['rows']) == 1
    part, = merge([tmp_path/'1'], folder=tmp_path/'all')
    assert len(part['rows']) == 1 and part['trials'] == 6
    assert len(measure('1/2', tmp_path/'1')['rows']) == 3
    assert len(ex.reproduce(e, full=True, folder=tmp_path/'all')['rows']) == 6


def changed(folder, more=0, **provenance):
    "Write the record of a folder with other facts of its rows; `more` is added to their figure a"
    record = rc.read_record(folder/'test-1.json')
    for r in record['rows']:
        r['provenance'] |= provenance
        r['figures']['a'] += more
    rc.write_record({k: v for k,v in record.items() if k not in ('schema', 'checksum')}, folder/'test-1.json')


@pytest.mark.parametrize('facts, says', [
    (dict(commit='0'*40), 'was measured with commit 0+, and'), (dict(uncommitted_changes=None), 'with uncommitted_changes None'),
    (dict(threads=77), 'with threads 77, and .* with [0-9]+: measure all shares with the same OMP_NUM_THREADS'),
    (dict(device='cuda'), 'with device cuda, and .* with cpu: measure all shares with the same --device'),
    (dict(versions=dict(torch='1.0')), 'measured with dlcourse None, and .* with .*: measure all shares with the same code')])
def test_records_of_other_code_and_settings_are_refused(split, tmp_path, facts, says):
    for k in (1, 2): split[1](f'{k}/2', tmp_path/str(k))
    changed(tmp_path/'2', **facts)
    with pytest.raises(CourseError, match=says): merge([tmp_path/'1', tmp_path/'2'], folder=tmp_path/'all')
    assert not (tmp_path/'all').exists()


def test_machines_may_differ(split, tmp_path):
    for k in (1, 2): split[1](f'{k}/2', tmp_path/str(k))
    versions = rc.read_record(tmp_path/'2'/'test-1.json')['rows'][0]['provenance']['versions']
    changed(tmp_path/'2', hardware=dict(cpu='another'), date='2020', system='another', versions=versions | dict(python='3.99'))
    merged, = merge([tmp_path/'1', tmp_path/'2'], folder=tmp_path/'all')
    assert {r['provenance']['hardware']['cpu'] for r in merged['rows']} >= {'another'} and len(merged['rows']) == 6


def test_equal_figures_are_one_row(split, tmp_path):
    "Measured twice with equal figures, at other times: nothing to choose between"
    e, measure = split
    for k in (1, 2): measure(f'{k}/2', tmp_path/str(k))
    alone = ex.reproduce(e, full=True, folder=tmp_path/'alone')
    changed(tmp_path/'1', date='earlier')
    assert without_machine(merge([tmp_path/o for o in ('1', '2', 'alone')], folder=tmp_path/'all')[0]) == without_machine(alone)


def test_merges_that_cannot_be(split, tmp_path, monkeypatch):
    e, measure = split
    for k in (1, 2): measure(f'{k}/2', tmp_path/str(k))
    ex.reproduce(e, full=True, folder=tmp_path/'alone')
    changed(tmp_path/'alone', more=.5)
    with pytest.raises(CourseError, match='have both measured seed 1 of a: leave one of them out'):
        merge([tmp_path/'1', tmp_path/'alone'], folder=tmp_path/'all')
    with pytest.raises(CourseError, match='have both measured'): merge([tmp_path/'1'], folder=tmp_path/'alone')
    with pytest.raises(CourseError, match='there is no folder'): merge([tmp_path/'none'], folder=tmp_path/'all')
    with pytest.raises(CourseError, match='has no record to merge'): merge([tmp_path/'1'], ['mba-7'], folder=tmp_path/'all')
    with pytest.raises(CourseError, match='has no record to merge'): merge([tmp_path/'1'], full=False, folder=tmp_path/'all')
    monkeypatch.setitem(ex.registry, e.id, replace(e, variants=('a', 'c')))
    with pytest.raises(CourseError, match='is of another version of test-1: its variants differs'):
        merge([tmp_path/'1'], folder=tmp_path/'all')
    file = tmp_path/'2'/'test-1.json'
    file.write_text(file.read_text().replace('"seed": 1', '"seed": 9'))
    with pytest.raises(CourseError, match='was changed after it was measured'): merge([tmp_path/'1', tmp_path/'2'], folder=tmp_path/'all')
    assert not (tmp_path/'all').exists()


def test_what_one_machine_could_not_measure(split, tmp_path, monkeypatch):
    "A row without figures stays only where no machine has any"
    def without_weights(trial): raise NotMeasured('its weights are missing')
    e, measure = split
    for k, run in ((1, without_weights), (2, noisy)): ex.reproduce(replace(e, run=run), full=True, share=f'{k}/2', folder=tmp_path/str(k))
    ex.reproduce(e, full=True, variants=['a'], folder=tmp_path/'more', seeds=1)
    merged, = merge([tmp_path/o for o in ('1', '2', 'more')], folder=tmp_path/'all')
    assert len(merged['rows']) == 6 and sum('not_measured' in r for r in merged['rows']) == 2


def test_drawing(tmp_path):
    def draw(record):
        fig = Figure()
        fig.subplots().plot([r['seed'] for r in record['rows']])
        return fig
    texts = []
    for _ in range(2):
        ex.reproduce(exp(simple, draw=draw), full=True, folder=tmp_path)
        texts.append((tmp_path/'test-1.svg').read_bytes())
    assert texts[0] == texts[1] and b'<svg' in texts[0]


def test_every_experiment_of_the_package_is_complete():
    for e in ex.experiments().values():
        assert e.title and e.run and e.variants and all(e.seeds_of(p) > 0 for p in e.variants) and set(e.reported) <= set(e.variants), e.id


def test_every_record_is_whole_and_of_an_experiment():
    there, files = ex.experiments(), [o for o in (ROOT/'results'/'experiments').glob('*.json') if not o.name.endswith('.quick.json')]
    assert len(files) == len(there)
    for f in files:
        record = rc.read_record(f)
        exp = there[record['id']]
        assert exp.id == f.stem and rc.summary(record['rows']) == record['summary']
        assert rc.verdicts(exp.expects, record['rows']) == record['verdicts'], f'python tools/verdicts.py {exp.id}'


def test_every_expectation_is_a_sentence():
    for e in ex.experiments().values():
        for o in e.expects: assert len(o.split()) >= 5 and (o[0].isupper() or o[0].isdigit()), o


def test_own_records_come_before_the_published_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('DLCOURSE_RESULTS', raising=False)
    published = ex.recorded('mba-8')
    assert published['rows'] and not list(tmp_path.iterdir()), 'reading writes nothing'
    own = {k: v for k,v in published.items() if k not in ('schema', 'checksum')}
    rc.write_record(dict(own, title='Mine'), rc.record_file('mba-8'))
    assert ex.recorded('mba-8')['title'] == 'Mine' and ex.recorded('mba-7')['rows']
    assert ex.recorded('mba-7', tmp_path/'results')['rows'] == []


def test_a_damaged_record_is_measured_anew_only_on_request(tmp_path):
    file = tmp_path/'test-1.json'
    file.write_text('{"half')
    with pytest.raises(CourseError): ex.reproduce(exp(simple), full=True, folder=tmp_path)
    with pytest.raises(CourseError): ex.reproduce(exp(simple), full=True, again=True, variants=['a'], folder=tmp_path)
    assert len(ex.reproduce(exp(simple), full=True, again=True, folder=tmp_path)['rows']) == 4
    assert (tmp_path/'test-1.damaged').read_text() == '{"half'


def test_a_damaged_record_does_not_hide_the_others(tmp_path):
    (tmp_path/'mba-1.json').write_text('{"half')
    table = ex.reproduction(['mba'], tmp_path)
    assert table.state['mba-1'] == 'changed or damaged' and (table.state.drop('mba-1') == 'not measured').all()


def test_progress_counts_what_is_left(tmp_path):
    said = []
    ex.reproduce(exp(simple), variants=['a'], folder=tmp_path)
    ex.reproduce(exp(simple), seeds=2, folder=tmp_path, show=said.append)
    assert said == ['test-1 b seed 1 (1 of 3)', 'test-1 a seed 2 (2 of 3)', 'test-1 b seed 2 (3 of 3)']


def test_fewer_seeds_than_usual_are_not_all(tmp_path):
    e = exp(simple)
    record = ex.reproduce(e, full=True, seeds=1, folder=tmp_path)
    assert ex._state(e, record) == '2 of 4 trials'
    assert ex._state(e, ex.reproduce(e, full=True, folder=tmp_path)) == 'measured'


@pytest.mark.parametrize('run', [lambda t: dict(acc=1.), lambda t: dict(curve_by_epoch=[1, 2])])
def test_every_record_can_be_drawn(run, tmp_path):
    record = ex.reproduce(exp(run, variants=('',), reported={'': dict(acc=0.5)}), folder=tmp_path)
    assert len(rc.draw_record(record).axes) == 1


def test_whole_numbers_are_written_out(tmp_path):
    record = ex.reproduce(exp(lambda t: dict(parameters=4_218_842), variants=('',), seeds=1), full=True, folder=tmp_path)
    assert rc.reported_and_obtained(record).obtained.tolist() == ['4,218,842']

# ---- every experiment ----

# Variants of a quick run, where not all of them are run: the others take the same way with other settings
SOME = {'mac-3c': ['NN 30', 'CNN 300'], 'mac-3d': ['NN stopped', 'CNN to the end'], 'mac-4a': ['NN clean', 'CNN noise'],
        'mac-4b': ['NN oversampling', 'CNN class weights', 'NN 2 classes'], 'mac-4d': ['CNN CIFAR-10', 'NN EuroSAT'],
        'mac-4f': ['CNN kernel size', 'NN optimiser'], 'mba-8': ['2', '32'], 'tp1-1.5': ['2'],
        'pcs-4.5': ['perceptron', 'residual'], 'pcs-5.3': ['none', 'norm', 'random'],
        'pcs-2.3': ['50% drawn again', 'clothes, 100% drawn again', 'random, dropout'], 'pcs-5.1': ['five', 'snapshots', 'longer'],
        'pcs-4.1': ['2 × 2048', '64 × 64'], 'pcs-4.3': ['trained'], 'pcs-4.4': ['CNN', 'MLP untrained'], 'pcs-6.1': ['tSNE'],
        'pcs-5.2': ['never', 'decay middle', 'augmentation last, restarted'],
        'pcs-7.1': ['1', '4'], 'pcs-7.2': ['plain deep', 'skips deep'],
        'tp1-2.1': ['mobilenet_v2, scratch', 'squeezenet1_1, frozen', 'mobilenet_v2, fine-tuned'],
        'pcs-6.4': ['strides', 'Linear head', 'averaged'], 'pcs-6.2': ['random parts'], 'pcs-6.3': ['clothing'],
        'tp1-2.2': ['mobilenet_v2+squeezenet1_1, late'],
        'pcs-1.1': ['scaling SVM leak', 'selection SVM Pipeline', 'selection boosting leak'], 'pcs-1.4': ['blobs pca', 'digits tsne']}
IDS = list(experiments())


def test_every_item_is_there():
    assert {f'mba-{i}' for i in range(1, 11)} <= set(IDS)
    assert {'mac-3a', 'mac-3c', 'mac-3d', 'mac-3e', 'mac-4a', 'mac-4b', 'mac-4c', 'mac-4d', 'mac-4e', 'mac-4f', 'mac-recipe'} <= set(IDS)


@pytest.mark.parametrize('id', IDS)
def test_quick_run(id, tmp_path):
    "A quick run measures everything that was reported, and is drawn"
    exp, variants = experiments()[id], SOME.get(id)
    with outputs.paintless('svg'), outputs.timed_once(): record = reproduce(id, variants=variants, folder=tmp_path)
    assert {r['variant'] for r in record['rows']} == set(variants or exp.variants)
    for r in record['rows']: assert r['figures'] and set(exp.reported.get(r['variant'], {})) <= set(r['figures'])
    if id.startswith('mba'): assert None not in [v for r in record['rows'] for v in r['figures'].values()]
    assert rc.record_file(id, False, tmp_path).with_suffix('.svg').exists() == bool(exp.draw)


@pytest.mark.parametrize('id', IDS)
def test_record_was_measured_with_committed_code(id):
    exp, record = experiments()[id], recorded(id)
    assert not any(r['provenance']['uncommitted_changes'] for r in record['rows'])
    if id.startswith('mac'):
        assert {(r['variant'], r['seed']) for r in record['rows'] if 'figures' in r} == {
            (v, s) for v in exp.variants for s in range(1, exp.seeds + 1)}
        assert None not in [o['met'] for o in record['verdicts']]
    if id.startswith('mba'): assert all('figures' in r for r in record['rows'])


@pytest.mark.parametrize('id', [k for k in IDS if experiments()[k].draw and k.startswith('mac')])
def test_nothing_measured_is_drawn_too(id):
    empty = dict(recorded(id), rows=[], summary=[])
    assert experiments()[id].draw(empty).axes
    assert (rc.obtained_table(empty, ['test']) == 'not measured').all(axis=None)


# ---- mac ----

@pytest.mark.parametrize('shape', [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_matched_pair_have_one_size(shape):
    made = pair.matched_pair(shape, 10)
    nn, cnn = (size_of(arch, shape, 10, **args) for arch, args in made.values())
    assert abs(nn/cnn - 1) <= 0.02


def test_a_quick_trial_can_be_repeated():
    first, again = (similar_size.similar_size(quick('CNN')) for _ in range(2))
    assert first == again != similar_size.similar_size(quick('CNN', seed=2))


def test_restored_weights_are_those_of_the_best_epoch():
    found = stopping.stopping(quick('NN stopped'))
    assert found['restored_difference'] < 1e-4 and found['valid_curve'][found['best_epoch']] == min(found['valid_curve'])


@pytest.mark.parametrize('kind', perturbed.strengths)
def test_the_first_strength_changes_nothing_and_the_last_does(kind):
    ex = perturbed.small_set(quick(''))
    same, other = (perturbed.with_changed_test(ex, kind, perturbed.strengths[kind][i]).x_test for i in (0, -1))
    assert torch.equal(same, ex.x_test) and not torch.equal(other, ex.x_test)


def test_unknown_kind_of_change():
    with pytest.raises(CourseError, match="unknown kind 'sizes'. Did you mean 'size'"): perturbed.change_of('sizes', 1)


def test_the_tail_and_its_repairs():
    plain, over, even = (imbalance.variant_data(quick(''), o) for o in ('unbalanced', 'oversampling', 'balanced'))
    counts = [np.bincount(o.labels(), minlength=10) for o in (plain, over, even)]
    assert counts[0][0] == 50*counts[0][9] and len(set(counts[1])) == len(set(counts[2])) == 1
    assert abs(counts[2].sum() - counts[0].sum()) < 10


def test_recalls_are_those_of_the_report():
    dls = imbalance.variant_data(quick(''), '5 classes')
    ev = pair.evaluate_on(pair.trial_learner(quick(''), 'NN', dls))
    assert np.allclose(imbalance.recalls(ev), ev.report().recall[:5])


def test_worst_pairs():
    C = [[9, 1, 0], [3, 9, 2], [0, 1, 9]]
    assert views.worst_pairs(C, 2) == [(0, 1), (1, 2)] and views.mistakes_of(sum(C, []), (0, 1)) == 4


def test_every_value_of_every_axis_makes_a_network():
    dls = dls_for('fashion_mini', n_per_class=20, seed=1)
    for net in pair.nets:
        arch, args = hyperparameters.base[net]
        for options in hyperparameters.axes(net).values():
            for o in options.values():
                known = {k: v for k, v in o.items() if k not in ('bs', 'lr', 'augment')}
                learner_for(arch, dls, **{**args, **known})


def test_recipe_is_augmented_only_in_training():
    learn = recipe.by_recipe(quick('NN'), 'NN', widths=(16,))
    x = [[b[0] for b in dl.new(shuffle=False)] for dl in (learn.dls.valid, learn.dls.valid)]
    assert all(torch.equal(a, b) for a, b in zip(*x))
    assert any(type(t).__name__ == 'BatchAffine' for t in learn.dls.train.after_batch.fs)


# ---- mac: looking inside ----

@pytest.fixture(scope='module')
def cnn(): return looking.train_network(quick('ink'), 'cnn')


def explanation(images, maps, preds, targets):
    classes = torch.tensor([preds])
    scores, targets = torch.rand(len(preds), 2), torch.tensor(targets)
    return Explanation('Grad-CAM', 'layer', images, ['predicted'], classes, maps[None], scores, targets, ['a', 'b'])


def test_networks_of_one_size():
    mlp, cnn = (looking.untrained_learner(quick(o), o).model for o in looking.architectures)
    sizes = [sum(p.numel() for p in o.parameters()) for o in (mlp, cnn)]
    assert abs(sizes[0]/sizes[1] - 1) < 0.02
    with pytest.raises(CourseError, match="Did you mean 'cnn'"): looking.untrained_learner(quick('cn'), 'cn')


def test_heat_on_the_ink_and_beside_it():
    images, maps = torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4)
    images[0, 0, 0], images[1, 0, 3] = 1, 1 # the first row is ink, the last row is
    maps[:, 0] = 1
    table = looking.ink_shares(explanation(images, maps, [0, 1], [0, 0]))
    assert table.on_ink.tolist() == [1, 0] and table.on_other_ink.tolist() == [0, 1] and table.ink.tolist() == [0.25, 0.25]
    assert table.right.tolist() == [True, False]


def test_images_without_heat_are_counted_apart():
    images, maps = torch.ones(4, 1, 2, 2), torch.ones(4, 2, 2)
    maps[3] = 0
    found = looking.by_answer(looking.ink_shares(explanation(images, maps, [0, 0, 1, 1], [0, 0, 0, 1])))
    assert found['no_evidence'] == 0.25 and found['test_accuracy'] == 0.75
    assert found['on_ink'] == found['on_ink_right'] == found['on_ink_wrong'] == 1


def test_chunks_make_no_difference(cnn):
    whole, parts = looking.evidence(cnn, 60, chunk=60), looking.evidence(cnn, 60, chunk=20)
    assert whole.right.equals(parts.right)
    assert torch.allclose(torch.tensor(whole.on_ink), torch.tensor(parts.on_ink), equal_nan=True, atol=1e-5)


def test_last_hidden_layer_feeds_the_last_linear_one(cnn):
    name = looking.last_hidden(cnn)
    acts = layer_activations(cnn, [name, 'head.out'], n=50, pool=False)
    out = cnn.model.head.out(torch.tensor(acts.features[name]))
    assert torch.allclose(out.detach(), torch.tensor(acts.features['head.out']), atol=1e-4)


def test_last_hidden_layer_needs_one(cnn):
    flat = learner_for(nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten()), cnn.dls)
    with pytest.raises(CourseError, match='no hidden layer'): looking.last_hidden(flat)


def test_looking_leaves_the_learner_as_it_was(cnn):
    before, rng = {k: v.clone() for k,v in cnn.model.state_dict().items()}, torch.get_rng_state()
    cnn.model.train()
    looking.last_hidden(cnn), looking.evidence(cnn, 20), looking.separation(cnn, 100)
    assert all(torch.equal(v, before[k]) for k,v in cnn.model.state_dict().items()) and torch.equal(rng, torch.get_rng_state())
    assert all(m.training and not m._forward_hooks for m in cnn.model.modules())


def test_captum_agrees(cnn):
    pytest.importorskip('captum')
    found = looking.captum_difference(cnn, 10)
    x, classes = looking.image_batch(cnn, range(10), 'test')[0], torch.tensor([[0]*10, [1]*10])
    theirs = looking.captum_maps(cnn.model, x, classes, 'body.block3.act')
    ours, _ = looking.cam_maps(cnn.model, x, classes.flip(0), 'body.block3.act')
    assert (ours - theirs).abs().max() > 1e-4 # another class has other maps
    assert 0 < found['largest_value'] and found['largest_difference'] <= 1e-4*min(1, found['largest_value'])


def test_without_captum_one_part_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    ink, captum = reproduce('mac-4e', folder=tmp_path, variants=['ink', 'captum'])['rows']
    assert 'figures' in ink and 'pip install captum' in captum['not_measured'] and 'figures' not in captum
    with pytest.raises(NotMeasured): looking.captum_maps(nn.Identity(), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1), '')


# ---- mba ----

SAID = {'quadratic': [.018, .032, .106, .321, .24, .205, .331, .101, .043, .025],
        'cross-entropy': [.142, .195, .394, .837, .674, .603, .857, .382, .233, .17],
        '0-1': [0, 0, 0, 1, 0, 0, 1, 0, 0, 0],
        'hinge': [.265, .355, .651, 1.134, .98, .905, 1.151, .635, .415, .313]}
FUNCTIONS = [zero_one, quadratic, cross_entropy, hinge]


@pytest.mark.parametrize('name', four)
def test_losses_equal_the_printed_ones(name):
    each = four[name](logistic_probabilities(points, truth), torch.tensor(truth), 'none')
    assert torch.allclose(each, torch.tensor(SAID[name], dtype=each.dtype), atol=.0011), 'the last printed digit of one is cut, not rounded'


@pytest.mark.parametrize('f', FUNCTIONS)
def test_losses_take_any_shape(f):
    p, y = torch.rand(2, 3, 4), torch.randint(0, 2, (2, 3, 4))
    each = f(p, y, 'none')
    assert each.shape == p.shape
    assert torch.allclose(f(p, y), each.mean()) and torch.allclose(f(p, y, 'sum'), each.sum())
    assert torch.allclose(f(p.flatten(), y.flatten(), 'none'), each.flatten())
    assert f(torch.ones(3), torch.ones(3)) == 0 and f(torch.zeros(3), torch.zeros(3)) == 0
    with pytest.raises(CourseError, match='own target'): f(torch.rand(3, 1), torch.rand(4))
    with pytest.raises(CourseError, match='own target'): f(torch.rand(3, 2), torch.rand(2, 3))
    with pytest.raises(CourseError, match='reduction'): f(p, y, 'average')


def test_a_certain_mistake_costs_a_lot_but_not_infinity():
    assert cross_entropy(torch.tensor([0.]), torch.tensor([1])) == 100


@pytest.mark.parametrize('f', [quadratic, cross_entropy, hinge])
def test_losses_have_a_slope(f):
    x = torch.randn(8, 1, requires_grad=True)
    BinaryLoss(f)(x, torch.randint(0, 2, (8,))).backward()
    assert x.grad.abs().min() > 0


def test_losses_of_classes():
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    p, corner = x.softmax(1), torch.eye(3)[y]
    assert torch.allclose(Brier('none')(x, y), ((p - corner)**2).sum(1))
    assert torch.allclose(MultiHinge()(x, y), nn.functional.multi_margin_loss(x, y))
    assert torch.allclose(Brier()(torch.zeros(1, 5), torch.tensor([3])), torch.tensor(.8))


@pytest.mark.parametrize('momentum', [0., .5, .9])
def test_sgd_by_hand(momentum):
    mine, theirs = by_hand_and_torch(sgd_rule(.005, momentum), lambda p: torch.optim.SGD(p, .005, momentum=momentum), 200)
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize('betas', [(.9, .999), (.8, .95), (0., .9)])
def test_adam_by_hand(betas):
    mine, theirs = by_hand_and_torch(adam_rule(.02, betas, 1e-7), lambda p: torch.optim.Adam(p, .02, betas, 1e-7), 200)
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_a_wrong_rule_would_be_seen():
    mine, theirs = by_hand_and_torch(adam_rule(.02, (.9, .99)), lambda p: torch.optim.Adam(p, .02), 20)
    assert not torch.allclose(mine, theirs, rtol=0, atol=1e-6)


def test_rank_correlation():
    assert rank_correlation(dict(a=1, b=2, c=3), dict(a=10, b=11, c=50)) == pytest.approx(1)
    assert rank_correlation(dict(a=1, b=2, c=3), dict(c=10, b=11, a=50)) == pytest.approx(-1)


def test_counts():
    assert count_params(model_for('inception', (1, 28, 28), 10)) == 196_154
    assert count_params(model_for('residual', (1, 28, 28), 10)) == 186_058
    assert count_params(house_net()) == 369


def test_house_net_begins_as_in_keras():
    for o in house_net().modules():
        if isinstance(o, nn.Linear):
            assert (o.bias == 0).all() and o.weight.abs().max() <= math.sqrt(6/sum(o.weight.shape))


def test_decay_rounds_as_the_document_prints_it():
    class Opt:
        hypers = [dict(lr=.02)]
        def set_hyper(self, k, v): self.hypers[-1][k] = v
    class Learn: epoch, opt = 0, Opt()
    cb, rates = DecayRate(.05, 10), []
    cb.learn = Learn()
    for Learn.epoch in range(20):
        cb.before_epoch()
        rates.append(Opt.hypers[-1]['lr'])
    assert rates == [.02]*10 + [.019, .0181, .0172, .0164, .0156, .0148, .0141, .0134, .0127, .0121]


def test_epochs(): assert [epochs_for(2**i) for i in range(1, 9)] == list(range(10, 18))


def test_ways():
    found = {k: ways(o) for k,o in three_nets().items()}
    assert sum(found['VGG'].values()) == 1 and sum(found['ResNet'].values()) == 2**4
    assert min(found['ResNet']) == 2 and min(found['Inception']) == 3


# ---- tp1 ----

def test_decay_goes_through_the_gradient():
    p, q = (nn.Parameter(torch.tensor([1., -2.])) for _ in range(2))
    ours, theirs = partial(l2_adam, wd=0.1)([p], lr=0.01), torch.optim.Adam([q], lr=0.01, weight_decay=0.1)
    for o,w in ((ours, p), (theirs, q)):
        for _ in range(3):
            w.grad = torch.tensor([0.5, 0.1])
            o.step()
    assert torch.allclose(p, q) and ours.hypers[0]['wd'] == 0.1


def test_quick_images_are_few_and_coloured():
    dls = images(Trial('', 1, False, 'cpu'), 64)
    assert dls.one_batch()[0].shape[1:] == (3, 64, 64) and len(dls.train_ds) < 400


# ---- tables of features ----

@pytest.fixture(scope='module')
def few_digits(): return dls_for('digits', size=32, n_per_class=12, bs=16, seed=1)


def frozen_net(dls, arch='squeezenet1_1', **kwargs):
    learn = learner_for(arch, dls, pretrained=False, head='mean', seed=1, **kwargs)
    learn.freeze()
    return learn


@pytest.fixture(scope='module')
def frozen_learner(few_digits): return frozen_net(few_digits)


def test_trained_and_judged_as_on_images(few_digits):
    dls = few_digits
    both = []
    for tabled in (False, True):
        learn = frozen_net(dls)
        for p in learn.model.head.modules():
            if isinstance(p, nn.Dropout): p.p = 0.
        with learn.quiet():
            if tabled:
                with learn.on_table(feature_table(learn.model, dls)):
                    learn.fit(2, 1e-3)
                    both.append((learn.history.valid_loss.tolist(), learn.validate(ds_idx=2)))
            else:
                learn.fit(2, 1e-3)
                both.append((learn.history.valid_loss.tolist(), learn.validate(ds_idx=2)))
        assert learn.dls is dls
    assert both[0][0] == pytest.approx(both[1][0], abs=1e-5) and list(both[0][1]) == pytest.approx(list(both[1][1]), abs=1e-5)


def test_kept_in_a_file(few_digits, frozen_learner, tmp_path):
    dls, learn = few_digits, frozen_learner
    file = tmp_path/'a.safetensors'
    first = feature_table(learn.model, dls, file, (as_is, mirrored))
    written = file.stat().st_mtime_ns
    again = feature_table(learn.model, dls, file, (as_is, mirrored))
    assert all(torch.equal(a, b) for a,b in zip(first.xs, again.xs)) and file.stat().st_mtime_ns == written and len(first.xs) == 2
    whole = [renormalized(dls_for('digits', size=32, bs=16, seed=s), (0.5,), (0.2,)) for s in (3, 4)]
    tables = [feature_table(learn.model, o, tmp_path/'b.safetensors') for o in whole]
    assert torch.equal(tables[0].xs[0], tables[1].xs[0]), 'the split makes no difference'


@pytest.mark.parametrize('change, what', [('weights', 'weights'), ('images', 'images'), ('views', 'transforms')])
def test_a_stale_file_is_refused(few_digits, tmp_path, change, what):
    dls = few_digits
    learn, file, views = frozen_net(dls), tmp_path/'a.safetensors', (as_is,)
    feature_table(learn.model, dls, file, views)
    if change == 'weights':
        with torch.no_grad(): next(learn.model.body.parameters())[0] += 1
    if change == 'images': dls = dls_for('digits', size=32, n_per_class=12, bs=16, seed=9)
    if change == 'views': views = (mirrored,)
    with pytest.raises(CourseError, match=f'was made from other {what}'): feature_table(learn.model, dls, file, views)


def test_what_does_not_fit(few_digits, frozen_learner, tmp_path):
    dls, learn = few_digits, frozen_learner
    table = feature_table(learn.model, dls)
    others = dls_for('digits', size=32, bs=16, seed=3)
    with pytest.raises(CourseError, match='made of other images'):
        with frozen_net(others).on_table(table): pass
    with pytest.raises(CourseError, match='same images in the same views'): concat_tables([table, feature_table(learn.model, others)])
    two_views = feature_table(learn.model, dls, views=(as_is, mirrored))
    with pytest.raises(CourseError, match='same images in the same views'): concat_tables([table, two_views])
    in_files = dls_for('digits', size=32, n_per_class=12, bs=16, item_tfms=[lambda o: o])
    with pytest.raises(CourseError, match='images in memory'): feature_table(learn.model, in_files)


def test_everything_is_put_back_after_an_error(few_digits, frozen_learner):
    dls, learn = few_digits, frozen_learner
    net = learn.model
    with pytest.raises(KeyError), learn.on_table(feature_table(net, dls, views=(as_is, mirrored)), average=True): raise KeyError
    assert learn.model is net and learn.dls is dls and not net.takes_features


def test_fast_copy_follows_the_weights():
    net = model_for('mobilenet_v2', (3, 32, 32), 4, pretrained=False).eval()
    net.body.requires_grad_(False)
    x = torch.randn(3, 3, 32, 32)
    with net.quickly(), torch.no_grad():
        assert (net(x) - net.tail(net.features(x))).abs().max() == 0
        before = net.features(x)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in net._copy[1][0].modules())
        for o in net.body.buffers():
            if o.dtype.is_floating_point: o.mul_(1.5)
        after = net.features(x)
    with torch.no_grad(): off = (after - net.features(x)).abs().max()
    assert off < 1e-3*after.abs().max() and (after - before).abs().max() > 0.1*before.abs().max()
    assert net._copy == (None, None)


def test_a_body_that_learns_is_not_replaced():
    net = model_for('squeezenet1_1', (3, 48, 48), 4, pretrained=False).train()
    x = torch.randn(2, 3, 48, 48)
    with net.quickly():
        net(x).sum().backward()
        assert net._copy == (None, None) and next(net.body.parameters()).grad is not None


def test_copies_and_pickles_leave_the_fast_copy_behind():
    net = model_for('squeezenet1_1', (3, 48, 48), 4, pretrained=False).eval()
    net.body.requires_grad_(False)
    x = torch.randn(2, 3, 48, 48)
    with net.quickly():
        expected = net(x)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert other._copy == (None, None) and torch.allclose(other(x), expected, atol=1e-5)
    assert not [k for k in net.state_dict() if 'copy' in k]


# ---- pcs-3.3 to 3.5: a schedule, an activation and losses of our own ----

def test_ripple_stays_in_its_range_and_follows_the_cosine():
    for start, end, rests, dip in [(1., 0., 1, 1.), (0.1, 0.01, 3, 0.9), (0.01, 0.1, 5, 0.5)]:
        f, cos = SchedRipple(start, end, rests, dip), SchedCos(start, end)
        at = [f(i/300) for i in range(301)]
        assert min(start, end) - 1e-9 <= min(at) and max(at) <= max(start, end) + 1e-9
        assert [f(i/rests) for i in range(rests + 1)] == pytest.approx([cos(i/rests) for i in range(rests + 1)])
    for wrong in (dict(rests=0), dict(dip=1.5), dict(dip=-0.1)):
        with pytest.raises(CourseError): SchedRipple(1., 0., **wrong)


def test_soft_gate_is_known_by_name_and_never_flat():
    x = torch.linspace(-1e4, 1e4, 2001, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(act_layer('softgate')(x).sum(), x)
    assert slope.min() > 0 and slope.max() < 1.2


@pytest.mark.parametrize('loss', [RivalLoss, EvenLoss])
def test_own_losses_reduce_alike_and_stay_finite(loss):
    x, y = torch.randn(9, 4)*50, torch.randint(4, (9,))
    x.requires_grad_()
    each = loss(reduction='none')(x, y)
    assert each.shape == (9,) and torch.allclose(each.mean(), loss()(x, y)) and torch.allclose(each.sum(), loss(reduction='sum')(x, y))
    loss()(x, y).backward()
    assert x.grad.isfinite().all() and torch.equal(loss().decodes(x), x.argmax(1))
    with pytest.raises(CourseError, match='reduction'): loss(reduction='median')(x, y)


def test_even_loss_pulls_at_the_neglected_class_and_knows_one_class():
    x = torch.tensor([[3., 0]]*7 + [[3., 0]], requires_grad=True)
    y = torch.tensor([0]*7 + [1])
    pull = {f: torch.autograd.grad(f(x, y), x)[0][7].norm() for f in (EvenLoss(0.), EvenLoss(1.))}
    assert list(pull.values())[1] > list(pull.values())[0]
    assert torch.allclose(EvenLoss(5.)(x[:7], y[:7]), nn.functional.cross_entropy(x[:7], y[:7]))


def test_differences_say_what_is_not_measured():
    record = dict(variants=['a', 'b'], rows=[dict(variant=v, seed=s, figures=dict(acc=s/10 + (v == 'a')*(1 + s/100)))
                                             for v in 'ab' for s in (1, 2, 3)])
    table = differences_to(record, 'a', ['b'], 'acc')
    assert table['difference'].tolist() == ['+1.0200'] and table.clear.tolist() == ['yes']
    assert differences_to(dict(record, rows=[]), 'a', ['b'], 'acc').iloc[0, 0] == 'not measured'


def test_images_that_want_gradients_get_them():
    net = model_for('squeezenet1_1', (3, 48, 48), 4, pretrained=False).eval()
    net.body.requires_grad_(False)
    x = torch.randn(1, 3, 48, 48, requires_grad=True)
    with net.quickly(): net(x).sum().backward()
    assert x.grad.abs().sum() > 0


# Computational graphs -------------------------------------------------------

@pytest.mark.parametrize('variant', graphs.expressions)
def test_formulas_of_the_three_graphs(variant):
    values = graphs.random_values(variant, 3, 4)
    graph = graphs.graph_of(graphs.expressions[variant], **values)
    formulas = graphs.by_formula(variant, values)
    assert set(formulas) == set(values)
    assert graphs.largest_difference(graph, lambda o: graphs.autograd_derivative(graph, o), formulas.get) < 1e-12


def test_random_expression_repeats_itself():
    first, again, other = (graphs.random_expression(s)(torch.tensor(.5), torch.tensor(.7))['g'] for s in (1, 1, 2))
    assert first == again != other


def test_ladder_and_small_change():
    f = graphs.ladder(5)
    graph = graphs.graph_of(f, b=0.5)
    assert graphs.count_paths(graph, 'b') == 32
    assert graphs.by_a_small_change(f, dict(b=0.5), 'b') == pytest.approx(graphs.path_sum(graph, 'b').item(), rel=1e-6)


# Glossary -------------------------------------------------------------------

@pytest.mark.parametrize('term', terms())
def test_terms_occur_on_their_pages(term):
    portuguese, sentence, page = terms()[term]
    file = ROOT/'nbs'/f'{page}.ipynb'
    assert portuguese and sentence[0].isupper() and sentence.endswith('.') and file.exists()
    assert names_term('\n'.join(o.source for o in read_nb(file).cells), term), f'{page} does not use the term'


def test_terms_are_named_once():
    rows = [o.partition('|')[0].strip().lower() for o in glossary.TERMS.strip().splitlines()]
    assert len(rows) == len(set(rows)) >= 80


@pytest.mark.parametrize('text, term, there', [
    ('Over-fitting', 'over-fitting', True), ('an overfitting model', 'over-fitting', True), ('player', 'layer', False),
    ('Data sets', 'data set', True)])
def test_names_term(text, term, there): assert names_term(text, term) == there


# ---- pcs: foundations ----

def test_only_the_leak_finds_something_in_noise():
    X, y = leak.noise(1, 50, 2000)
    prepare, model = leak.SelectKBest(k=50), leak.classifiers['1-NN']
    assert leak.leaky_accuracy(prepare, model, X, y) > 0.8 > leak.clean_accuracy(prepare, model, X, y)


def test_noise_has_classes_of_one_size():
    X, y = leak.noise(3, 60, 4, classes=3)
    assert X.shape == (60, 4) and np.bincount(y).tolist() == [20, 20, 20]


@pytest.mark.parametrize('m', [1, 2, 7])
def test_means_and_farthest_samples_are_those_of_the_definition(m):
    X, y = feature_space.blobs(2, m, (9, 1, 4))
    order = np.random.default_rng(0).permutation(len(y))
    means, far = feature_space.loops(X[order], y[order])
    np.testing.assert_allclose(feature_space.class_means(X[order], y[order]), means)
    assert feature_space.farthest_samples(X[order], y[order]).tolist() == far.tolist()


def test_of_two_farthest_samples_the_first_is_taken():
    assert feature_space.farthest_samples(np.array([[0.], [2.], [5.]]), np.array([0, 0, 1])).tolist() == [0, 2]


def test_pca_keeps_means_in_the_middle():
    X, y = feature_space.blobs(1, 6)
    points, means, mean = feature_space.place(X, y, 'pca')
    np.testing.assert_allclose(feature_space.class_means(points, y), means, atol=1e-9)
    np.testing.assert_allclose(points.mean(0), mean, atol=1e-9)


# ---- pcs: projections ----

def test_shapes_of_a_pair_have_the_same_layers():
    assert widths_of('k=2 growing') == [2**i for i in range(1, 9)] and widths_of('k=2 shrinking') == widths_of('k=2 growing')[::-1]
    assert widths_of('k=16 shrinking') == [256, 16]


@pytest.mark.parametrize('name', fitted_models())
def test_layer_gives_what_the_model_gives(name):
    rng = np.random.default_rng(1)
    x, y = rng.normal(3, 2, (80, 30)), np.arange(80) % 10
    found = compare_layer(fitted_models()[name](x, y), x)
    assert found['difference'] < 1e-5 < found['without_bias']


# ---- pcs: layers ----

def test_neighbours_vote_without_the_example_itself():
    corners = np.array([[0., 0], [0, 1], [9, 9], [9, 8]])
    assert [neighbour_vote(corners, np.array(y), k=1) for y in ([0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1])] == [1, 0, 0.5]


def test_drawn_features_are_judged_by_the_same_probe():
    rng = np.random.default_rng(1)
    y = np.arange(60)%3
    x = rng.normal(size=(60, 6))
    x[:, 0] += 10*y
    assert drawn_accuracy(x, y, 6, seed=1, draws=1) == pytest.approx(probe_accuracy(x, y, seed=1), abs=0.02)
    assert drawn_accuracy(x, y, 1, seed=1) < drawn_accuracy(x, y, 6, seed=1, draws=1)


def test_a_fall_from_layer_to_layer_is_that_of_the_mean():
    curves = [[0.5, 0.7, 0.6], [0.5, 0.7, 0.7]]
    assert never_falls(curves, 0.06) and not never_falls(curves, 0.04)


def test_hidden_layers_of_the_plain_network_are_named_by_their_place():
    net = dense_chain(width=8, layers=3)
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert [k for k,o in net.named_children() if 'linear' in dict(o.named_children())] == ['1', '2', '3']

# ---- pcs: blocks ----

@pytest.mark.parametrize('way, low, high', [('plain', 0, 1e-4), ('sum', 0.1, 10), ('concatenation', 0.1, 100)])
def test_gradient_that_reaches_the_first_layer(way, low, high):
    dls = dls_for((torch.rand(40, 1, 4, 4), torch.arange(40) % 2), seed=1)
    torch.manual_seed(1)
    learn = sigmoid_learner(way, dls, 1, width=8)
    before = [p.clone() for p in learn.model.parameters()]
    assert low < first_over_last(learn) < high
    assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))


def test_a_residual_mlp_has_the_parameters_of_a_plain_one():
    assert count_params(residual_mlp(6, 3, [5]*4)) == count_params(model_for('mlp', 6, 3, widths=[5]*4))


def test_one_gradient_for_each_block():
    dls = dls_for((torch.rand(40, 1, 8, 8), torch.arange(40) % 2), seed=1)
    found = gradient_by_block(learner_for('block_net', dls, seed=1, blocks=3, filters=2))
    assert len(found) == 3 and min(found) > 0


@pytest.mark.parametrize('cure, fails', [(None, True), ('projection', False), ('widths', False)])
def test_the_sum_fails_without_a_cure(cure, fails): assert sum_fails(doubling_mlp(4, 3, cure=cure), torch.rand(2, 4)) == fails


def test_erased_blocks_are_counted_and_leave_no_trace():
    learn = learner_for('block_net', dls_for('digits', n_per_class=10, seed=1), blocks=2, filters=4, seed=1)
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    found = erase_blocks(learn, sets=2, n=20, most=2)
    assert len(found['without_each']) == len(found['by_number']) == 2 and 0 <= found['harmless'] <= 2
    assert found['by_number'][0] == pytest.approx(found['mean_without_one'])
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())


@pytest.mark.parametrize('by_number, gradual', [([0.6, 0.4], True), ([0.4, 0.3], False), ([0.8, 0.7], False)])
def test_gradual_decay(by_number, gradual):
    assert decays_gradually(dict(test_accuracy=[0.8, 0.8], by_number=[by_number, by_number])) == gradual


@pytest.mark.parametrize('bound, distance', [(0.5, 0.5), (1., 1.), (2.5, 1.75), (9., 2.)])
def test_a_bound_is_crossed_between_two_points(bound, distance):
    assert first_crossing([0, 1, 2], [0, 1, 3], bound) == pytest.approx(distance)


def test_shape_of_lines():
    t = np.linspace(-1, 1, 201)
    assert radius_of([8*t**2, 2*t**2]) == pytest.approx((0.25 + 0.5)/2, abs=1e-3)
    assert radius_of([0*t]) == 1 and radius_of([4*t**2], rise=1) == pytest.approx(0.5, abs=1e-3)
    assert radius_of([np.where(t < 0, 50*t**2, 2*t**2)]) == pytest.approx(0.3, abs=1e-3)
    assert downhill_share([np.abs(t)]) == 0 and downhill_share([t, -t]) == 0.5


def test_other_errors_are_not_taken_for_a_sum_that_fails():
    assert not sum_fails(doubling_mlp(4, 3, cure='widths'), torch.rand(2, 5))


# ---- more features than samples ----

def test_relu_features_of_more_begin_with_those_of_fewer():
    x = np.random.default_rng(1).standard_normal((5, 3))
    few, many = more_features.relu_features(x, 4, 2), more_features.relu_features(x, 9, 2)
    assert few.shape == (5, 3) and np.array_equal(few, many[:, :3]) and (many >= 0).all()


def test_minimum_norm_fits_exactly_from_as_many_features_as_samples():
    rng = np.random.default_rng(1)
    data = rng.standard_normal((20, 6)), rng.choice([-1., 1.], 20), rng.standard_normal((9, 6)), rng.choice([-1., 1.], 9)
    below, at, above = (more_features.errors_of(more_features.chosen_by_cv('minimum norm', 1), data, m)[0] for m in (10, 20, 60))
    assert below > 1e-3 and max(at, above) < 1e-12


# ---- pcs-5.1: an ensemble ----

def test_disagreement_is_a_mean_over_pairs():
    same, other = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])
    assert disagreement(torch.stack([same, same])) == 0
    assert disagreement(torch.stack([same, other])) == 0.25
    assert disagreement(torch.stack([same, same, other])) == pytest.approx(0.5/3)


def test_a_difference_takes_the_seeds_that_both_have():
    rows = [dict(variant=v, seed=s, figures=dict(ece=e)) for v,s,e in (('one', 1, 0.5), ('one', 2, 0.7), ('five', 2, 0.4))]
    assert rc.Results(rows).difference('one', 'five', 'ece').values == pytest.approx((0.3,))
    with pytest.raises(KeyError): rc.Results(rows).difference('one', 'five', 'ece', 'loss')


def test_ensembles_are_drawn_before_and_after_the_first_seed():
    figures = dict(test_accuracy=0.8, test_loss=0.5, bins=[[0, 0, 0], [200, 180, 150]])
    rows = [dict(variant='one', seed=1, figures=figures)]
    assert not draw_ensembles(dict(rows=[])).axes[2].lines[0].get_xdata().size
    assert draw_ensembles(dict(rows=rows)).axes[2].lines[0].get_ydata().tolist() == [0.75]

# ---- pcs-6.4: no fully connected layer ----

@pytest.mark.parametrize('way', all_conv.ways)
def test_only_the_linear_head_runs_a_matrix_product(way):
    net, x = all_conv.ways[way]((3, 20, 20), 7, 4), torch.rand(2, 3, 20, 20)
    assert all_conv.count_matrix_products(net, x) == (way == 'Linear head') == any(isinstance(o, nn.Linear) for o in net.modules())
    assert net(x).shape == (2, 7)


@pytest.mark.parametrize('product', [lambda x, w: x @ w, nn.functional.linear, lambda x, w: torch.einsum('nd,dk->nk', x, w)])
def test_a_matrix_product_outside_of_the_layers_is_seen(product):
    class Hidden(nn.Module):
        def forward(self, x): return product(x.flatten(1), torch.eye(4))
    assert all_conv.count_matrix_products(Hidden(), torch.rand(2, 1, 2, 2)) == 1


@pytest.mark.parametrize('shape', [(3, 2, 5), (4, 1, 1)])
def test_a_dense_layer_is_a_convolution(shape):
    dense, x = nn.Linear(math.prod(shape), 6), torch.rand(2, *shape)
    assert torch.allclose(all_conv.conv_from(dense, shape)(x).flatten(1), dense(x.flatten(1)), atol=1e-5)
    assert torch.allclose(all_conv.averaging(shape[0], shape[1:])(x).flatten(1), x.mean((2, 3)), atol=1e-6)


def test_the_averaging_kernel_is_not_trained():
    net = all_conv.averaged((1, 16, 16), 3, 4)
    assert not net.head.mean.weight.requires_grad and net.head.out.weight.requires_grad


# ---- pcs-6.3: the size that an image needs ----

@pytest.fixture
def sized_preds():
    rng = np.random.default_rng(1)
    preds, targets = torch.tensor(rng.dirichlet([0.5]*3, (4, 50))), torch.tensor(rng.integers(3, size=50))
    return SizedPreds([(o, o) for o in (1, 2, 3, 4)], preds, targets, np.array([1, 4, 9, 16]), torch.rand(1, 1, 4, 4))


def test_first_right_is_the_cheapest(sized_preds):
    right = (sized_preds.decoded == sized_preds.targets).numpy()
    assert sizes.first_right(right) == cheapest_right(sized_preds.decoded, sized_preds.targets).tolist()


def test_every_look_is_paid_for(sized_preds):
    right = (sized_preds.decoded == sized_preds.targets).numpy()
    for trust,row,cost in [(0, 0, 1), (1.1, 3, 30)]:
        found, flops = sizes.look_until_sure(sized_preds, trust)
        assert (found == right[row]).all() and (flops == cost).all()
    two = SizedPreds(sized_preds.sizes[:2], sized_preds.preds[:2], sized_preds.targets, sized_preds.flops[:2], sized_preds.images)
    assert all((a == b).all() for a,b in zip(sizes.look_until_sure(two, 0.7), look_twice(two, 0.7)))


def test_the_best_fixed_size_gains_nothing(sized_preds):
    best = sized_preds.accuracy.argmax()
    right = (sized_preds.decoded == sized_preds.targets).numpy()[best]
    assert sizes.gain_over_mixture(sized_preds, right, np.full(50, sized_preds.flops[best])) == pytest.approx(0, abs=1e-9)


# ---- pcs-5.2: critical periods ----

def test_variants_name_their_settings():
    found = [settings_of(o) for o in window_variants]
    assert len(set(found)) == len(window_variants) and {w for _,w,_ in found} == set(windows)
    assert settings_of('decay first, restarted') == ('decay', 'first', True)


def test_a_restarted_rate_falls_from_its_start_again():
    once, again = falling(False, 0.2), falling(True, 0.2)
    assert all(once(o) == again(o) for o in (0, 0.3, 0.66)) and again(2/3) == pytest.approx(0.2)
    assert once(1) == pytest.approx(0) and again(1) == pytest.approx(0) and again(5/6) == pytest.approx(0.1)


def test_gain_that_a_window_keeps():
    accuracy = {'never': 0.8, 'decay always': 0.9, 'decay first': 0.875, 'decay last': 0.8}
    rows = [dict(variant=k, seed=1, figures=dict(test_accuracy=v)) for k,v in accuracy.items()]
    r = rc.Results(rows)
    assert kept(r, 'decay', 'first') == pytest.approx(0.75) and gap(r, 'decay') == pytest.approx(0.075)
    r['decay always']['test_accuracy'] = 0.8
    assert math.isnan(kept(r, 'decay', 'first'))
    assert len(draw_windows(dict(rows=rows)).axes) == 2

# ---- pcs-3.6: a search, predicted ----

def test_the_limit_is_a_second_training_and_its_points_are_recorded():
    table = sur.trained_points(1, False)
    figures = sur.limit_figures(table)
    assert len(figures['again']) == len(table) == 20 and figures['value'] == table.value.tolist()
    assert [sur.space['init'][i] for i in figures['init']] == table.init.tolist()
    same = sur.limit_figures(table.assign(again=table.value))
    assert same['rank_correlation'] == pytest.approx(1)


def test_trust_costs_nothing_where_the_best_is_ranked_first():
    table = sur.pd.DataFrame(dict(split=[0, 0, 1, 1], measured=[.5, .9, .4, .6], predicted=[.1, .2, .9, .3]))
    assert sur.loss_of_trust(table) == pytest.approx(0.1)


@pytest.mark.parametrize('share, right', [(0, 1), (0.5, 0.55), (1, 0.1)])
def test_labels_drawn_again(share, right):
    ex = load('fashion_mini')
    mixed, again = (random_labels.corrupt_labels(ex, share, 1) for _ in range(2))
    assert torch.equal(mixed.y, again.y) and abs((mixed.y == ex.y).float().mean().item() - right) < 0.03
    assert torch.equal(mixed.y_test, ex.y_test) and torch.equal(mixed.x, ex.x)


def test_training_ends_once_all_labels_are_learned():
    found = random_labels.fit_figures(random_labels.fit_all(quick(''), few := random_labels.few_images('fashion_mini', 2, 1), 40), few)
    assert found['train_accuracy'] == 1 and found['epochs'] < 40 and 1 not in found['train_accuracy_by_epoch'][:-1]


@pytest.mark.parametrize('name', ['1 × 4096', '8 × 512', '64 × 64'])
def test_counts_of_spread_neurons(name):
    k, width = map(int, name.split(' × '))
    found = neurons.costs_of(neurons.spreads[name])
    weights = 784*width + (k - 1)*width**2 + 10*width
    assert k*width == 4096 and found['parameters'] == weights + 4096 + 10 and found['flops'] == 2*weights
    assert 4*found['parameters'] < found['bytes'] and found['one_low'] <= found['one_ms'] <= found['one_high']


# ---- pcs-5.3: only the batch normalisations ----

@pytest.mark.parametrize('what', ['norm', 'random', 'last', 'all'])
def test_only_the_part_that_learns_moves(what):
    dls = dls_for('fashion_mini', size=14, n_per_class=4, seed=1)
    learn = learner_for('residual', dls, norm='batch', seed=1, wd=0., filters=(4,), blocks=1)
    norms = sum(p.numel() for m in learn.model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    before, allowed = [p.clone() for p in learn.model.parameters()], batchnorm_only.train_part(learn, what, 1)
    with learn.quiet(): learn.fit(2, 0.1)
    moved = sum((p != q).sum().item() for p,q in zip(learn.model.parameters(), before))
    assert 0 < moved <= allowed == dict(norm=norms, random=norms - 4, last=4*10 + 10, all=count_params(learn.model))[what]


# ---- pcs-4.5: critical layers ----

def test_blocks_are_averaged_by_kind():
    assert critical_layers.by_kind([9, 1, 2, 5, 1, 2, 7, 3, 3, 9], 3) == dict(changing=6, keeping=2)


@pytest.mark.parametrize('drops, kind', [([.3, .4, .35], 'critical'), ([.01, .02, .015], 'robust'), ([.0, .3, .05], 'unclear')])
def test_layers_are_sorted_by_the_interval_of_their_drop(drops, kind):
    rows = [dict(variant='residual', seed=i, figures=dict(accuracy=.9, drops=[[.5, o, 0.]])) for i,o in enumerate(drops)]
    assert critical_layers.kind_of_layers(dict(rows=rows), 'residual').kind.tolist() == [kind]


def test_statistics_estimated_again_leave_weights_and_statistics_as_they_were():
    kept = critical_layers.KeepWeights()
    learn = critical_layers.layer_learner(Trial('residual', 1), 'residual', kept)
    with learn.quiet(): learn.fit(1)
    before, momenta = critical_layers.copied(learn.model), [m.momentum for m in learn.model.modules() if hasattr(m, 'momentum')]
    critical_layers.accuracy_with_fresh_statistics(learn, kept, ['body.block2'], n=20)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    assert [m.momentum for m in learn.model.modules() if hasattr(m, 'momentum')] == momenta
