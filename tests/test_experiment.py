"Experiments: what is recorded, resumed, refused"
import json

import pytest
from dlcourse.core import CourseError
from dlcourse.course import experiment as ex, records as rc


def exp(run, **kwargs): return ex.Experiment('test-1', 'A test', run, **{**dict(variants=('a', 'b'), seeds=2), **kwargs})
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


def test_more_seeds_keep_the_old_ones_and_fewer_drop_none(tmp_path):
    first = ex.reproduce(exp(simple), full=True, folder=tmp_path)
    assert len(ex.reproduce(exp(simple), full=True, seeds=3, folder=tmp_path)['rows']) == 6
    record = ex.reproduce(exp(simple), full=True, folder=tmp_path)
    assert len(record['rows']) == 6 and record['seeds'] == 3 and record['rows'][0] == first['rows'][0]


def test_seeds_by_variant(tmp_path):
    e = exp(simple, seeds=dict(a=1, b=3))
    record = ex.reproduce(e, full=True, folder=tmp_path)
    assert [(r['variant'], r['seed']) for r in record['rows']] == [('a', 1), ('b', 1), ('b', 2), ('b', 3)] and record['trials'] == 4
    assert record['command'] == 'dlcourse reproduce test-1 --full' and ex.reproduce(e, full=True, seeds=4, folder=tmp_path)['command'].endswith('--seeds 4')


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
    e = exp(simple, expects={'b better': lambda r: r['b']['acc'] > r['a']['acc'], 'each seed': lambda r: r.by_seed['a']['acc'] == [1, 2], 'c': lambda r: r['c']['acc'] > 0, 'wrong': lambda r: r['a']['acc'] > 5})
    record = ex.reproduce(e, full=True, folder=tmp_path)
    assert record['summary'] == [dict(variant='a', figure='acc', mean=1.5, spread=pytest.approx(0.5**0.5), n=2), dict(variant='b', figure='acc', mean=2.5, spread=pytest.approx(0.5**0.5), n=2)]
    assert [o['met'] for o in record['verdicts']] == [True, True, None, False]
    assert rc.verdict_table(record)['came true'].tolist() == ['yes', 'yes', 'not measured', 'no']


def test_not_measured_is_said_and_tried_again(tmp_path):
    def run(t):
        if t.variant == 'b' and not (tmp_path/'weights').exists(): raise ex.NotMeasured('weights are missing: put them there')
        return simple(t)
    record = ex.reproduce(exp(run, reported=dict(b=dict(acc=9))), full=True, folder=tmp_path)
    assert [r.get('not_measured') for r in record['rows']] == [None, None] + 2*['weights are missing: put them there']
    assert rc.reported_and_obtained(record).loc[('b', 'acc')].tolist() == [9, 'not measured', 0]
    (tmp_path/'weights').touch()
    assert all('figures' in r for r in ex.reproduce(exp(run), full=True, folder=tmp_path)['rows'])


def test_provenance_of_each_row(tmp_path):
    about = ex.reproduce(exp(simple), full=True, folder=tmp_path)['rows'][0]['provenance']
    assert {'date', 'commit', 'uncommitted_changes', 'device', 'hardware', 'threads', 'versions', 'system'} == about.keys()
    assert about['versions']['torch'] and about['hardware']['cores'] >= 1


@pytest.mark.parametrize('change, message', [(lambda d: d['rows'][0]['figures'].update(acc=7), 'was changed after it was measured'),
                                             (lambda d: d.update(seeds='2'), 'seeds is missing or of the wrong kind'), (lambda d: d.pop('summary'), 'summary is missing'),
                                             (lambda d: d.update(schema=99), 'has the format 99')])
def test_edited_records_are_refused(tmp_path, change, message):
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


def test_unknown_names(tmp_path):
    with pytest.raises(CourseError, match='unknown experiment'): ex.find_experiments(['mba-777'])
    with pytest.raises(CourseError, match="unknown variant 'c'"): ex.reproduce(exp(simple), variants=['c'], folder=tmp_path)
    with pytest.raises(CourseError, match="unknown device 'tpu'"): ex.reproduce(exp(simple), device='tpu', folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_full_without_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv('DLCOURSE_DATA', str(tmp_path/'none'))
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'none'))
    with pytest.raises(CourseError, match='needs cifar10: dlcourse data get cifar10'): ex.reproduce(exp(simple, needs=('cifar10', 'digits')), full=True, folder=tmp_path/'out')
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('figures', [dict(a='high'), dict(a=[1, None]), dict(a=True)])
def test_a_figure_is_a_number(tmp_path, figures):
    with pytest.raises(CourseError, match='a figure is a number'): ex.reproduce(exp(lambda t: figures), folder=tmp_path)


def test_drawing(tmp_path):
    from matplotlib.figure import Figure
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
    from pathlib import Path
    there = ex.experiments()
    for f in (Path(__file__).parent.parent/'results').glob('experiments/*.json'):
        record = json.loads(f.read_text())
        assert there[rc.read_record(f)['id']].id == f.stem


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
