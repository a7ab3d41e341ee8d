"The experiments of the first document: each runs quickly, is drawn, and has a record that its verdicts follow from; sets of images survive the disk"
import numpy as np
import pytest
import torch
from dlcourse.core import CourseError
from dlcourse.course.experiment import Trial, experiments, find_experiments, recorded, reproduce
from dlcourse.course.records import obtained_table, record_file, verdicts
from dlcourse.course.mac import hyperparameters, imbalance, pair, perturbed, recipe, similar_size, stopping, views
from dlcourse.data.blocks import dls_for
from dlcourse.models.zoo import size_of

SOME = {'mac-3c': ['NN 30', 'CNN 300'], 'mac-3d': ['NN stopped', 'CNN to the end'], 'mac-4a': ['NN clean', 'CNN noise'],
        'mac-4b': ['NN oversampling', 'CNN class weights', 'NN 2 classes'], 'mac-4d': ['CNN CIFAR-10', 'NN EuroSAT'], 'mac-4f': ['CNN kernel size', 'NN optimiser']}
OURS = ['mac-3a', 'mac-3c', 'mac-3d', 'mac-3e', 'mac-4a', 'mac-4b', 'mac-4c', 'mac-4d', 'mac-4f', 'mac-recipe']


def quick(variant, seed=1): return Trial(variant, seed, False, 'cpu')


@pytest.mark.parametrize('id', OURS)
def test_quick_runs_are_measured_and_drawn(id, tmp_path):
    record = reproduce(id, variants=SOME.get(id), folder=tmp_path)
    assert len(record['rows']) == len(SOME.get(id, record['variants'])) and all(r['figures'] for r in record['rows'])
    assert record_file(id, False, tmp_path).with_suffix('.svg').exists()


@pytest.mark.parametrize('id', OURS)
def test_records_are_whole_and_their_verdicts_follow_from_the_rows(id):
    exp, record = find_experiments([id])[0], recorded(id)
    if not record['rows']: pytest.skip(f'{id} has not been measured')
    assert {(r['variant'], r['seed']) for r in record['rows'] if 'figures' in r} == {(p, s) for p in exp.variants for s in range(1, exp.seeds + 1)}
    assert verdicts(exp.expects, record['rows']) == record['verdicts'] and None not in [o['met'] for o in record['verdicts']]
    assert not any(r['provenance']['uncommitted_changes'] for r in record['rows'])


@pytest.mark.parametrize('id', OURS)
def test_nothing_measured_is_drawn_too(id):
    empty = dict(recorded(id), rows=[], summary=[])
    assert find_experiments([id])[0].draw(empty).axes
    assert (obtained_table(empty, ['test']) == 'not measured').all(axis=None)


def test_every_item_is_there(): assert set(OURS) <= set(experiments())


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
    same, other = (perturbed.changed_test(ex, kind, perturbed.strengths[kind][i]).x_test for i in (0, -1))
    assert torch.equal(same, ex.x_test) and not torch.equal(other, ex.x_test)


def test_unknown_kind_of_change():
    with pytest.raises(CourseError, match="unknown kind of change 'sizes'. Did you mean 'size'"): perturbed.change('sizes', 1)


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
                similar_size.learner_for(arch, dls, **{**args, **known})


def test_recipe_is_augmented_only_in_training():
    learn = recipe.by_recipe(quick('NN'), 'NN', widths=(16,))
    x = [[b[0] for b in dl.new(shuffle=False)] for dl in (learn.dls.valid, learn.dls.valid)]
    assert all(torch.equal(a, b) for a, b in zip(*x))
    assert any(type(t).__name__ == 'BatchAffine' for t in learn.dls.train.after_batch.fs)
